//! Hubs, networks and disks that misbehave: one sentence each, and never a wrong file.

use std::fs;
use std::path::Path;

use mlxcel_hub::{Download, Hub, HubOptions};

use crate::{NAME, fetch, files, hub, noise};
use mlxcel_testing::fake_hub::{FakeHub, Fault};

/// A download that must end with the right file, whatever happened on the way.
fn survives(part: &str, times: usize, fault: Fault) -> FakeHub {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    server.fault(part, times, fault);
    let snapshot = fetch(&hub(&server, cache.path())).unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), noise(200_000), "{fault:?}");
    server
}

/// A download that must fail with one sentence that contains `expected`, and leave no file.
fn fails(part: &str, times: usize, fault: Fault, expected: &str) -> FakeHub {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    server.fault(part, times, fault);
    let error = fetch(&hub(&server, cache.path())).unwrap_err().to_string();
    assert!(error.contains(expected), "{fault:?}: {error}");
    assert!(!error.contains('\n') && error.len() < 400, "{error}");
    let reference = cache.path().join("models--org--model-1.0/refs/main");
    assert!(!reference.exists(), "{fault:?}: an incomplete model is found");
    server
}

#[test]
fn broken_connections_are_resumed() {
    // More often than there are attempts without progress.
    let server = survives("signed", 9, Fault::Cut(20_000));
    let sent: usize = server.log().iter().filter(|r| r.cdn).map(|r| r.sent).sum();
    assert_eq!(sent, 200_000, "nothing is fetched twice");
}

#[test]
fn a_connection_that_never_gets_anywhere_is_given_up() {
    let server = fails("signed", 99, Fault::Cut(0), "the connection broke");
    assert!(server.log().len() < 30);
}

#[test]
fn a_wrong_checksum_is_fetched_once_more() {
    survives("signed", 1, Fault::Corrupt);
    let server = fails("signed", 99, Fault::Corrupt, "wrong checksum");
    assert_eq!(server.log().iter().filter(|request| request.cdn).count(), 2);
}

#[test]
fn a_server_that_ignores_ranges() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    server.fault("signed", 1, Fault::Cut(50_000));
    server.fault("signed", 1, Fault::WholeFile);
    let snapshot = fetch(&hub(&server, cache.path())).unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), noise(200_000));
}

#[test]
fn refusals_that_last_are_not_repeated() {
    for (status, expected) in
        [(401, "HF_TOKEN"), (403, "access is restricted"), (404, "no such model")]
    {
        let server = fails("/api/", 99, Fault::Status(status), expected);
        assert_eq!(server.log().len(), 1, "{status}");
        fails("config.json", 99, Fault::Status(status), expected);
    }
}

#[test]
fn refusals_that_pass_are_waited_for() {
    for status in [429, 500, 503] {
        survives("signed", 3, Fault::Status(status));
        survives("/api/", 3, Fault::Status(status));
        let server = fails("/api/", 99, Fault::Status(status), "try again later");
        assert_eq!(server.log().len(), 5, "{status}");
    }
}

#[test]
fn what_is_no_hub_is_named() {
    fails("/api/", 99, Fault::Html, "it sends a web page");
    fails("/api/", 99, Fault::Redirect, "redirects");
    fails("/api/", 99, Fault::HugeHeader, "/api/models/org/model-1.0");
    fails("config.json", 99, Fault::Html, "wrong checksum");
    let evil = r#"{"sha":"abc","siblings":[{"rfilename":"../../x","size":1,"blobId":"x"}]}"#;
    fails("/api/", 1, Fault::Api(evil), "a file is called \"../../x\"");
    fails("/api/", 1, Fault::Api(r#"{"sha":"../x","siblings":[]}"#), "its revision is not one");
    fails("/api/", 1, Fault::Api(r#"{"sha":"abc","siblings":[]}"#), "holds no safetensors files");
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    const INFO: &str = r#"{"sha":"abc","siblings":[{"rfilename":"model.safetensors","lfs":{
        "size":1152921504606846976,
        "sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}}]}"#;
    let server = fails("/api/", 1, Fault::Api(INFO), "the disk of");
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_half_written_cache_is_repaired() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let snapshot = fetch(&hub).unwrap();
    let file = snapshot.join("model.safetensors");
    let blob = fs::canonicalize(&file).unwrap();
    let incomplete = blob.with_extension("incomplete");
    let right = noise(200_000);
    for (name, bytes) in [
        (&blob, &right[..1000]),      // cut short
        (&incomplete, &[7; 500][..]), // garbage
        (&incomplete, &[7; 200_001][..]),
        (&incomplete, &right[..]), // all there but the name
        (&incomplete, &right[..77_777]),
    ] {
        fs::remove_file(&blob).unwrap();
        fs::write(name, bytes).unwrap();
        fetch(&hub).unwrap();
        assert_eq!(fs::read(&file).unwrap(), right, "{} of {}", bytes.len(), name.display());
    }
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("nowhere", &file).unwrap();
    fetch(&hub).unwrap();
    assert_eq!(fs::read(&file).unwrap(), right);
}

#[test]
fn a_cache_that_cannot_be_written() {
    let (server, folder) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = fetch(&hub(&server, &file)).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
}

#[test]
fn no_network_and_offline() {
    let cache = tempfile::tempdir().unwrap();
    let options = |endpoint: &str, offline| HubOptions {
        endpoint: endpoint.to_owned(),
        token: None,
        offline,
        cache: Some(cache.path().to_owned()),
        retry_delay: std::time::Duration::ZERO,
    };
    // A port of the system's that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch(&Hub::new(options(&format!("http://{free}"), false))).unwrap_err();
    assert!(error.to_string().contains(&free.to_string()), "{error}");
    let error = fetch(&Hub::new(options(&format!("http://{free}"), true))).unwrap_err();
    assert!(error.to_string().starts_with("HF_HUB_OFFLINE is set"), "{error}");
}

#[test]
fn names_that_cannot_be() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    for (name, revision) in
        [("../x", "main"), ("org", "main"), ("a/b/c", "main"), (NAME, "../main"), (NAME, "a b")]
    {
        assert!(hub.plan(&Download { name, revision, include: &[] }).is_err(), "{name} {revision}");
    }
    assert_eq!(server.log().len(), 0);
    assert!(!Path::new(cache.path()).join("..").join("models--org").exists());
}
