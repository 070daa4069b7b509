//! Images in chat requests: completions do not depend on other requests, and bad images get a 400.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Response, Server};

const PATH: &str = "/v1/chat/completions";

/// A tiny Gemma 3 with its image encoder. Its window is as long as its context, so that prefixes are
/// kept.
pub(crate) fn model() -> TempDir {
    let folder = checkpoint("gemma3-vision", "<start_of_image>");
    let config = folder.path().join("config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    value["text_config"]["sliding_window"] = json!(1024);
    std::fs::write(&config, value.to_string()).unwrap();
    folder
}

/// A tiny model whose template renders an image as `marker`.
fn checkpoint(name: &str, marker: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "q4").unwrap();
    mlxcel_testing::golden::checkpoint(name, variant, folder.path()).unwrap();
    let template = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
                    {% for p in m.content %}{% if p.type == 'image' %}MARKER{% else %}\
                    {{ p.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}";
    let template = template.replace("MARKER", marker);
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

fn server(flags: &[&str]) -> Server {
    Server::over(model(), &[&["--ctx-size", "1024"], flags].concat(), &[])
}

/// A data URL with a picture that depends on `seed`.
fn picture(seed: u8) -> String {
    let picture = RgbImage::from_fn(160, 120, |x, y| {
        let (x, y) = (u8::try_from(x).unwrap(), u8::try_from(y).unwrap());
        Rgb([
            x.wrapping_mul(6).wrapping_add(seed.wrapping_mul(60)),
            y.wrapping_mul(8),
            seed ^ x ^ y,
        ])
    });
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).unwrap();
    data_url(png.get_ref())
}

fn data_url(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}

fn image(url: &str) -> Value {
    json!({ "type": "image_url", "image_url": { "url": url } })
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

/// A chat request with these parts and log-probabilities, which show every bit.
fn question(parts: &[Value]) -> Value {
    json!({ "messages": [{ "role": "user", "content": parts }], "max_tokens": 8, "temperature": 0,
        "ignore_eos": true, "logprobs": true, "top_logprobs": 3 })
}

fn choices(reply: &Response) -> Value {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["choices"].clone()
}

fn cached(reply: &Response) -> u64 {
    reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// Rows that attend to each other, in one pass.
#[test]
fn completions_with_an_image_do_not_depend_on_others() {
    the_same_alone_batched_and_cached(&model, 256);
}

/// Causal rows on a grid, more than a chunk.
#[test]
fn completions_with_a_grid_image_do_not_depend_on_others() {
    let model = || checkpoint("qwen2_5_vl", "<|vision_start|><|image_pad|><|vision_end|>");
    the_same_alone_batched_and_cached(&model, 20 * 15);
}

/// Cross-attention images take one token each; a prefix is shared only with the same images.
#[test]
fn completions_with_a_cross_attention_image_do_not_depend_on_others() {
    let server = |flags: &[&str]| {
        let model = checkpoint("mllama", "<|image|>");
        Server::over(model, &[&["--ctx-size", "1024"], flags].concat(), &[])
    };
    let (one, other, long) = (picture(1), picture(2), "more than a block of words ".repeat(12));
    let questions = [
        question(&[image(&one), text(&long)]),
        question(&[text(&long)]),
        question(&[image(&other), text(&long)]),
        question(&[text(&long), image(&one), text(" then "), image(&other), text(" and")]),
    ];
    let plain = server(&["--prompt-cache-bytes", "0"]);
    let replies = questions.clone().map(|question| plain.post(PATH, &question));
    let alone: Vec<Value> = replies.iter().map(choices).collect();
    assert_ne!(alone[0], alone[2], "the image matters");
    let tokens = |i: usize| replies[i].json()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!([tokens(0), tokens(2)], [tokens(1) + 1; 2], "one token an image");
    let together: Vec<Value> = std::thread::scope(|scope| {
        let ask = |question| {
            let plain = &plain;
            scope.spawn(move || choices(&plain.post(PATH, question)))
        };
        let threads: Vec<_> = questions.iter().map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone, "batched");
    plain.terminate();

    let server = server(&[]);
    // Text before an image depends on it: the second question shares nothing with the fourth.
    for (index, again) in
        [false, true].into_iter().flat_map(|again| (0..4).map(move |i| (i, again)))
    {
        let hit = if again { tokens(index) - 1 } else { 0 };
        let reply = server.post(PATH, &questions[index]);
        assert_eq!(cached(&reply), hit, "{index}");
        assert_eq!(choices(&reply), alone[index], "{index}: {hit} cached");
    }
    let mut several = questions[0].clone();
    several["n"] = json!(3);
    let reply = server.post(PATH, &several).json();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices[0]["logprobs"], choices[2]["logprobs"], "greedy completions are equal");
    let error = server.post(PATH, &question(&[image(&one), text("<|image|>")])).error(400);
    assert!(error["message"].as_str().unwrap().contains("2 place(s) for one (<|image|>)"));
    server.wait_until_idle();
    assert_eq!(server.get("/v1/memory").json()["intake_bytes"], 0);
    server.terminate();
}

/// Alone, among others, and over a cached prefix: log-probabilities included. An image becomes
/// `image_tokens` tokens.
fn the_same_alone_batched_and_cached(model: &dyn Fn() -> TempDir, image_tokens: u64) {
    let server =
        |flags: &[&str]| Server::over(model(), &[&["--ctx-size", "1024"], flags].concat(), &[]);
    let (one, other) = (picture(1), picture(2));
    let questions = [
        question(&[image(&one), text("what is it")]),
        question(&[text("only a text, of a few words")]),
        question(&[image(&other), text("what is it")]),
        question(&[text("first "), image(&one), text(" then "), image(&other), text(" and")]),
    ];
    let plain = server(&["--prompt-cache-bytes", "0"]);
    let replies = questions.clone().map(|question| plain.post(PATH, &question));
    let alone: Vec<Value> = replies.iter().map(choices).collect();
    assert_ne!(alone[0], alone[2], "the image matters");
    let prompts: Vec<u64> =
        replies.iter().map(|r| r.json()["usage"]["prompt_tokens"].as_u64().unwrap()).collect();
    assert_eq!(prompts[0], prompts[2]);
    assert!(prompts[1] < 50 && prompts[0] > image_tokens && prompts[3] > 2 * image_tokens);

    let together: Vec<Value> = std::thread::scope(|scope| {
        let ask = |question| {
            let plain = &plain;
            scope.spawn(move || choices(&plain.post(PATH, question)))
        };
        let threads: Vec<_> = questions.iter().map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone, "batched");
    plain.terminate();

    let server = server(&[]);
    let check = |index: usize, hit: std::ops::Range<u64>| {
        let reply = server.post(PATH, &questions[index]);
        assert!(hit.contains(&cached(&reply)), "{index}: {} cached", cached(&reply));
        assert_eq!(choices(&reply), alone[index], "{index}: cached");
    };
    check(0, 0..1);
    check(0, image_tokens..prompts[0]);
    check(2, 0..1);
    check(2, image_tokens..prompts[2]);
    check(3, 0..1);
    check(3, 2 * image_tokens..prompts[3]);
    check(0, image_tokens..prompts[0]);
    // A longer conversation goes on from the shorter one's image.
    let reply = server.post(PATH, &question(&[image(&one), text("what is that")]));
    assert!(cached(&reply) >= image_tokens, "{reply:?}");
    let mut streamed = questions[0].clone();
    streamed["stream"] = json!(true);
    let events = server.post(PATH, &streamed).events();
    assert_eq!(events.last().unwrap()["usage"]["prompt_tokens"], prompts[0]);
    server.wait_until_idle();
    assert_eq!(server.get("/v1/memory").json()["intake_bytes"], 0);
    assert_eq!(server.get("/v1/models").json()["data"][0]["images"], true);
    server.terminate();
}

#[test]
fn several_completions_share_one_image() {
    let server = server(&[]);
    let mut body = question(&[image(&picture(3)), text("what")]);
    body["n"] = json!(3);
    let reply = server.post(PATH, &body).json();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_eq!(choices[0]["logprobs"], choices[2]["logprobs"], "greedy completions are equal");
}

/// Each mistake is one sentence in OpenAI's format, and the next valid request is served.
#[test]
fn bad_images_get_a_400() {
    let server = server(&["--max-body-bytes", "1MiB"]);
    let refused = |parts: &[Value], expected: &str| {
        let error = server.post(PATH, &question(parts)).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(expected), "{expected}: {message}");
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!("messages"), &json!("invalid_request_error"))
        );
    };
    let bad = |file: &[u8], expected: &str| refused(&[image(&data_url(file))], expected);
    refused(&[image("https://example.org/cat.png")], "fetches no images");
    refused(&[image("data:image/png;base64,!!!!")], "not base64");
    bad(b"no image at all", "image 1 is no image (supported: PNG, JPEG, WebP)");
    bad(b"GIF89a\x01\x00\x01\x00\x00", "image 1 is a file of type image/gif");
    let png = STANDARD.decode(picture(1).split_once(',').unwrap().1).unwrap();
    bad(&png[..png.len() / 2], "image 1 cannot be decoded");
    // A header of 10000 × 10000 pixels, its checksum, and no pixels.
    let mut bomb = png[..33].to_vec();
    bomb[16..24].copy_from_slice(&[0, 0, 39, 16, 0, 0, 39, 16]);
    let checksum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
    bomb[29..33].copy_from_slice(&checksum);
    bomb.extend_from_slice(&[0, 0, 0, 0, b'I', b'D', b'A', b'T', 0x35, 0xaf, 0x06, 0x1e]);
    bad(&bomb, "image 1 has 10000 × 10000 pixels");
    refused(&[image(&picture(1)), text("<start_of_image>")], "1 image(s) were given");
    refused(&[json!({ "type": "input_audio", "input_audio": {} })], "not `input_audio`");
    let detail = json!({ "type": "image_url",
        "image_url": { "url": picture(1), "detail": "high" } });
    refused(&[detail], "`detail` is `auto`");

    let many = vec![image(&picture(1)); 4];
    let error = server.post(PATH, &question(&many)).error(400);
    assert_eq!(error["code"], "context_length_exceeded", "four images do not fit 1024 tokens");
    let large = question(&[image(&data_url(&vec![0; 1 << 20]))]);
    assert_eq!(server.post(PATH, &large).error(413)["code"], "request_too_large");
    choices(&server.post(PATH, &question(&[image(&picture(1)), text("what")])));
    server.wait_until_idle();
    assert_eq!(server.get("/v1/memory").json()["intake_bytes"], 0);
    server.terminate();
}

#[test]
fn a_cache_mode_without_images_is_named() {
    let server = server(&["--kv-cache-mode", "turbo4-delegated"]);
    let error = server.post(PATH, &question(&[image(&picture(1)), text("what")])).error(400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("turbo4-delegated takes no images"), "{message}");
    choices(&server.post(PATH, &question(&[text("what")])));
}

#[test]
fn a_text_model_refuses_images() {
    let server = Server::start(&[]);
    let error = server.post(PATH, &question(&[image(&picture(1))])).error(400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("model_type \"llama\" reads no images"), "{message}");
    assert_eq!(server.get("/v1/models").json()["data"][0]["images"], false);
    // Parts of text are text.
    choices(&server.post(PATH, &question(&[text("Once upon "), text("a time")])));
}

/// The estimate is made before anything is decoded or read: a text fits, an image does not.
#[test]
fn an_image_that_does_not_fit_is_refused_with_numbers() {
    let limited = |bytes: u64| {
        let flags = ["--ctx-size", "1024", "--prompt-cache-bytes", "0"];
        Server::over(model(), &flags, &[("MLXCEL_MEMORY_LIMIT", &format!("{}KiB", bytes >> 10))])
    };
    let ample = limited(1 << 30);
    let memory = ample.get("/v1/memory").json();
    ample.terminate();
    let bytes = |key: &str| memory[key].as_u64().unwrap();
    let idle = bytes("process_bytes") + bytes("weights_bytes") + bytes("headroom_bytes");
    let seen = question(&[image(&picture(1)), text("what")]);
    let read = question(&[text("what")]);
    let estimated = |server: &Server, question: &Value| {
        let refused = server.post(PATH, question).error(413);
        assert_eq!(refused["code"], "prefill_memory_exceeded", "{refused}");
        refused["estimated_bytes"].as_u64().unwrap()
    };
    let tight = limited(idle);
    let (more, less) = (estimated(&tight, &seen), estimated(&tight, &read));
    assert!(more > less + (1 << 20), "{more} {less}");
    drop(tight);
    let between = limited(more.midpoint(less));
    estimated(&between, &seen);
    let reply = between.post(PATH, &read);
    assert_ne!(reply.status, 413, "{reply:?}");
}

/// OpenAI's own Python client; `cargo xtask ci --only openai-client` installs and runs it.
#[test]
#[ignore = "needs Python with the package openai"]
fn the_official_client_sends_images() {
    let server = server(&[]);
    let python = std::env::var("MLXCEL_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/server/openai_images.py");
    let url = format!("http://{}/v1", server.address);
    let output = std::process::Command::new(python)
        .args([script, &url, &picture(1), &picture(2)])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}
