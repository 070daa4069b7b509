//! Sizing by range requests: as after a download, for little.

use mlxcel_estimator::read_dir;
use mlxcel_testing::synth::{self, Dtype, Options, Weights};
use serde_json::Value;

use crate::{NAME, hub};
use mlxcel_testing::fake_hub::{FakeHub, Fault};

/// A checkpoint of more than 100 files, as a repository.
fn sharded() -> (tempfile::TempDir, Vec<(String, Vec<u8>)>) {
    let folder = tempfile::tempdir().unwrap();
    let config: Value = serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "vocab_size": 300, "tie_word_embeddings": false, "max_position_embeddings": 2048,
    });
    let options = Options { shard_bytes: 1, ..Options::new(Weights::Plain(Dtype::Bf16)) };
    synth::checkpoint(&config, &options, folder.path()).unwrap();
    let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
    });
    let files = files.collect();
    (folder, files)
}

fn serve(files: &[(String, Vec<u8>)]) -> FakeHub {
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    FakeHub::new(NAME, &files)
}

#[test]
fn a_hundred_shards_for_kilobytes_and_equal_to_the_local_estimate() {
    let (folder, files) = sharded();
    let shards = files.iter().filter(|(name, _)| name.ends_with(".safetensors")).count();
    assert!(shards >= 100);
    let server = serve(&files);
    let hub = hub(&server, folder.path());
    let (remote_spec, remote_weights) = hub.sized(NAME, "main").unwrap();
    let (spec, weights) = read_dir(folder.path()).unwrap();
    assert_eq!(remote_weights, weights);
    assert_eq!(format!("{:?}", remote_spec), format!("{spec:?}"));
    let log = server.log();
    let of_shards = log.iter().filter(|request| request.path.ends_with(".safetensors")).count();
    assert!(of_shards <= 3 * shards, "{of_shards} requests for {shards} shards");
    let sent: usize = log.iter().map(|request| request.sent).sum();
    assert!(sent < 20 << 20, "{sent} bytes");
    assert_eq!(log.len() - of_shards, 3, "the list, the configuration, the index");
}

#[test]
fn a_long_header_takes_one_request_more() {
    let (folder, mut files) = sharded();
    files.retain(|(name, _)| name == "config.json");
    // The same tensors in one file, whose header is made long by its metadata.
    let checkpoint = mlxcel_estimator::headers::Checkpoint::open(folder.path()).unwrap().unwrap();
    let mut tensors = Vec::new();
    for (path, header) in &checkpoint.files {
        let bytes = std::fs::read(path).unwrap();
        for (name, info) in &header.tensors {
            let range = usize::try_from(info.file_range.start).unwrap()
                ..usize::try_from(info.file_range.end).unwrap();
            let shape = info.shape.iter().map(|d| usize::try_from(*d).unwrap()).collect::<Vec<_>>();
            tensors.push((name.clone(), shape, bytes[range].to_vec()));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let dtype = safetensors::Dtype::BF16;
        (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    let long = [("note".to_owned(), "x".repeat(100_000))].into_iter().collect();
    files
        .push(("model.safetensors".to_owned(), safetensors::serialize(views, Some(long)).unwrap()));
    let server = serve(&files);
    let (_, remote_weights) = hub(&server, folder.path()).sized(NAME, "main").unwrap();
    assert_eq!(remote_weights.bytes, checkpoint.total_bytes());
    let requests: Vec<_> =
        server.log().into_iter().filter(|r| r.path.ends_with(".safetensors")).collect();
    assert_eq!(requests.len(), 3, "redirect, beginning, rest: {requests:?}");
    assert!(requests[2].cdn, "the rest is not redirected again");
}

#[test]
fn a_header_of_two_gigabytes_is_not_fetched() {
    let (folder, mut files) = sharded();
    files.retain(|(name, _)| name == "config.json");
    let mut bytes = (2_u64 << 30).to_le_bytes().to_vec();
    bytes.resize(200_000, b' ');
    files.push(("model.safetensors".to_owned(), bytes));
    let server = serve(&files);
    let error = hub(&server, folder.path()).sized(NAME, "main").unwrap_err().to_string();
    assert!(error.contains("promises 2147483648 bytes of header"), "{error}");
    let sent: usize = server.log().iter().map(|request| request.sent).sum();
    assert!(sent < 100_000, "{sent} bytes");
}

#[test]
fn what_is_missing_or_strange_is_named() {
    let (folder, mut files) = sharded();
    let check = |files: &[(String, Vec<u8>)], fault: Option<(&str, Fault)>, expected: &str| {
        let server = serve(files);
        if let Some((part, fault)) = fault {
            server.fault(part, 99, fault);
        }
        let error = hub(&server, folder.path()).sized(NAME, "main").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&files, Some(("signed", Fault::WholeFile)), "whole files where a range is requested");
    check(&files, Some(("config.json", Fault::Html)), "not usable JSON");
    let lost = files.iter().position(|(name, _)| name.ends_with("00007-of-00111.safetensors"));
    files.remove(lost.expect("111 tensors"));
    check(&files, None, "00007-of-00111.safetensors, which its index names");
    files.retain(|(name, _)| name != "config.json");
    check(&files, None, "holds no config.json");
}
