//! `generate --image`: valid images, and the error for each kind of invalid one.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::support::{Model, assert_refused, mlxcel};

/// A tiny Gemma 3 with its image encoder.
fn model() -> TempDir {
    model_of("gemma3-vision")
}

/// A tiny model of configuration `name`.
fn model_of(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "q4").unwrap();
    mlxcel_testing::golden::checkpoint(name, variant, dir.path()).unwrap();
    dir
}

/// A black and white PNG of one pixel.
const PNG: [u8; 67] = [
    0x89, b'P', b'N', b'G', 13, 10, 26, 10, 0, 0, 0, 13, b'I', b'H', b'D', b'R', 0, 0, 0, 1, 0, 0,
    0, 1, 1, 0, 0, 0, 0, 0x37, 0x6e, 0xf9, 0x24, 0, 0, 0, 10, b'I', b'D', b'A', b'T', 0x78, 0x01,
    0x63, 0x60, 0, 0, 0, 2, 0, 1, 0x73, 0x75, 0x01, 0x18, 0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae,
    0x42, 0x60, 0x82,
];

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn arguments<'a>(model: &'a Path, prompt: &'a str, images: &'a [PathBuf]) -> Vec<&'a str> {
    let mut args = vec!["generate", "-q", "-m", model.to_str().unwrap(), "-n", "2", "-p", prompt];
    for image in images {
        args.extend(["--image", image.to_str().unwrap()]);
    }
    args
}

/// Tokens of `prompt` with images at two places, after two tokens were generated.
fn prompt_tokens(dir: &TempDir, prompt: &str) -> u64 {
    let stats = dir.path().join("stats.json");
    let image = file(dir.path(), "a.png", &PNG);
    let images = [image.clone(), image];
    let mut args = arguments(dir.path(), prompt, &images);
    args.extend(["--ignore-eos", "--stats-json", stats.to_str().unwrap()]);
    let output = mlxcel(&args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let stats: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(stats).unwrap()).unwrap();
    assert_eq!(stats["generated_tokens"], 2);
    stats["prompt_tokens"].as_u64().unwrap()
}

#[test]
fn images_replace_the_markers_of_a_raw_prompt() {
    let tokens = prompt_tokens(&model(), "a <start_of_image> and <start_of_image> b");
    assert!(tokens > 2 * 258, "{tokens}");
}

/// A picture of one pixel is given the least size that the preparation states: 2 × 2 squares.
#[test]
fn the_size_of_an_image_determines_its_tokens() {
    let dir = model_of("qwen2_5_vl");
    let place = "<|vision_start|><|image_pad|><|vision_end|>";
    let tokens = prompt_tokens(&dir, &format!("{place}{place}abc"));
    assert_eq!(tokens, 2 * (2 + 4) + 3);
    let config = dir.path().join("preprocessor_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"min_pixels\": 256", "\"min_pixels\": 1024")).unwrap();
    assert_eq!(prompt_tokens(&dir, &format!("{place}{place}abc")), 2 * (2 + 16) + 3);
}

/// What stands beside the text is one token of it, whatever its size.
#[test]
fn an_image_for_cross_attention_takes_one_token() {
    let dir = model_of("mllama");
    let tokens = prompt_tokens(&dir, "a <|image|> and <|image|> b");
    assert_eq!(tokens, "a  and  b".len() as u64 + 2);
    let images = [file(dir.path(), "a.png", &PNG)];
    let args = arguments(dir.path(), "<|image|> <|image|>", &images);
    assert_refused(&args, &["1 image(s) were given", "2 place(s) for one (<|image|>)"]);
    let config = dir.path().join("preprocessor_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"max_image_tiles\": 4", "\"max_image_tiles\": 2"))
        .unwrap();
    let args = arguments(dir.path(), "<|image|>", &images);
    assert_refused(&args, &["max_image_tiles is 2, the encoder's 4 expected"]);
}

#[test]
fn a_chat_template_places_the_images() {
    let dir = model();
    let template = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}\
                    <start_of_image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let images = [file(dir.path(), "a.png", &PNG)];
    let output = mlxcel(&arguments(dir.path(), "what is it?", &images));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn images_and_markers_must_match() {
    let dir = model();
    let images = [file(dir.path(), "a.png", &PNG), file(dir.path(), "b.png", &PNG)];
    let refused = |prompt: &str, images: &[PathBuf], expected: &[&str]| {
        assert_refused(&arguments(dir.path(), prompt, images), expected);
    };
    refused("<start_of_image>", &images, &["2 image(s) were given", "1 place(s)"]);
    refused("nothing", &images[..1], &["1 image(s) were given", "0 place(s)", "<start_of_image>"]);
    let spelled = "<start_of_image> <image_soft_token>";
    refused(spelled, &images[..1], &["1 image(s) were given"]);
}

#[test]
fn invalid_images_are_named() {
    let dir = model();
    let refused = |name: &str, bytes: &[u8], expected: &[&str]| {
        let images = [file(dir.path(), name, bytes)];
        let args = arguments(dir.path(), "<start_of_image>", &images);
        assert_refused(&args, &[&[name], expected].concat());
    };
    refused("cut.png", &PNG[..50], &["cannot be decoded"]);
    refused("a.gif", b"GIF89a\x01\x00\x01\x00\x00", &["image/gif", "PNG, JPEG, WebP"]);
    refused("a.txt", b"no image at all", &["is no image"]);
    let absent = [dir.path().join("absent.png")];
    assert_refused(&arguments(dir.path(), "<start_of_image>", &absent), &["absent.png"]);
    // A header of 10000 × 10000 pixels, and its checksum.
    let mut bomb = PNG;
    bomb[16..24].copy_from_slice(&[0, 0, 39, 16, 0, 0, 39, 16]);
    bomb[29..33].copy_from_slice(&[0x92, 0x35, 0x5f, 0x8a]);
    refused("bomb.png", &bomb, &["10000 × 10000 pixels", "50000000"]);
}

#[test]
fn a_text_model_rejects_images() {
    let (model, dir) = (Model::new(), tempfile::tempdir().unwrap());
    let images = [file(dir.path(), "a.png", &PNG)];
    let args = arguments(model.path(), "hello", &images);
    assert_refused(&args, &["model_type \"llama\" reads no images", "gemma3"]);
}
