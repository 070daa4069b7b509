//! What a download does when all goes well, or is interrupted.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use mlxcel_hub::HubError;
use mlxcel_hub::{self as hub, Download, Hub, HubOptions};

use crate::{NAME, fetch, files, hub, noise};
use mlxcel_testing::fake_hub::{COMMIT, FakeHub, Fault, HubBehavior};

fn entry(cache: &Path) -> std::path::PathBuf {
    cache.join("models--org--model-1.0")
}

#[test]
fn the_cache_is_laid_out_as_other_tools_do_it() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    let snapshot = fetch(&hub(&server, cache.path())).unwrap();
    assert_eq!(snapshot, entry(cache.path()).join("snapshots").join(COMMIT));
    assert_eq!(hub::resolve_in(Path::new(NAME), Some(cache.path())).unwrap(), snapshot);
    let reference = fs::read_to_string(entry(cache.path()).join("refs/main")).unwrap();
    assert_eq!(reference, COMMIT);
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), noise(200_000));
    let link = fs::read_link(snapshot.join("model.safetensors")).unwrap();
    let blob = link.strip_prefix("../../blobs").unwrap().to_str().unwrap();
    assert_eq!(blob.len(), 64, "a SHA-256: {blob}");
    let small = fs::read_link(snapshot.join("config.json")).unwrap();
    assert_eq!(small.file_name().unwrap().len(), 40, "git's SHA-1");
    // The same weights under another name, and those in a folder, are not wanted.
    assert_eq!(fs::read_dir(&snapshot).unwrap().count(), 2);
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    fetch(&hub).unwrap();
    server.forget();
    fetch(&hub).unwrap();
    assert_eq!(server.log().len(), 1, "only the list of files is asked for");
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let behavior = HubBehavior { token: Some("secret".to_owned()), ..HubBehavior::default() };
    let (server, cache) = (FakeHub::with(NAME, &files(), behavior), tempfile::tempdir().unwrap());
    let options = HubOptions {
        endpoint: server.endpoint.clone(),
        token: Some("secret".to_owned()),
        offline: false,
        cache: Some(cache.path().to_owned()),
        retry_delay: std::time::Duration::ZERO,
    };
    fetch(&Hub::new(options)).unwrap();
    let (cdn, own): (Vec<_>, Vec<_>) = server.log().into_iter().partition(|request| request.cdn);
    assert!(!cdn.is_empty() && cdn.iter().all(|request| request.token.is_none()));
    assert!(own.iter().all(|request| request.token.as_deref() == Some("Bearer secret")));
    let error = fetch(&hub(&server, &cache.path().join("other"))).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
}

#[test]
fn an_interruption_keeps_what_has_arrived() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let planned = hub.plan(&Download { name: NAME, revision: "main", include: &[] }).unwrap();
    let total = planned.missing_bytes;
    server.fault("signed", 1, Fault::Cut(60_000));
    let mut last = 0;
    let mut stop = |_: &str, done, _| {
        last = done;
        if done > 30_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = hub.download(&planned, &mut stop).unwrap_err();
    assert!(matches!(error, HubError::Interrupted), "{error}");
    assert!(hub::resolve_in(Path::new(NAME), Some(cache.path())).is_err(), "not complete yet");
    let planned = hub.plan(&Download { name: NAME, revision: "main", include: &[] }).unwrap();
    assert_eq!(planned.missing_bytes, total - last);
    server.forget();
    let snapshot = fetch(&hub).unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), noise(200_000));
    assert!(server.log().iter().any(|request| request.range.is_some()));
}

#[test]
fn two_at_once_fetch_everything_once() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch(&hub(&server, cache.path())).unwrap());
        }
    });
    let fetched = server.log().iter().filter(|request| request.cdn).count();
    assert_eq!(fetched, 1);
}

#[test]
fn patterns_choose_files() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let plan = |pattern: &str| {
        let include = [pattern.to_owned()];
        let planned = hub.plan(&Download { name: NAME, revision: "main", include: &include })?;
        Ok::<_, hub::HubError>(planned.files.into_iter().map(|file| file.path).collect::<Vec<_>>())
    };
    assert_eq!(plan("*.json").unwrap(), ["config.json"]);
    assert_eq!(plan("original/*").unwrap(), ["original/model.pth"]);
    assert!(plan("*.gguf").unwrap_err().to_string().contains("*.gguf"));
    assert!(plan("[").unwrap_err().to_string().contains("--include ["));
}

#[test]
fn models_are_listed_and_removed() {
    let (server, cache) = (FakeHub::new(NAME, &files()), tempfile::tempdir().unwrap());
    fetch(&hub(&server, cache.path())).unwrap();
    let model = cache.path().join("models--org--real/snapshots/abc");
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "q4").unwrap();
    mlxcel_testing::golden::checkpoint("llama", variant, &model).unwrap();
    fs::create_dir(cache.path().join("models--org--real/refs")).unwrap();
    fs::write(cache.path().join("models--org--real/refs/main"), "abc").unwrap();
    fs::create_dir(cache.path().join("datasets--org--data")).unwrap();
    let machine = mlxcel_estimator::Machine::new(mlxcel_estimator::Backend::Cpu);
    let fits = |bytes| {
        let source = mlxcel_estimator::AvailableSource::WhatIf;
        let models =
            hub::list(cache.path(), &machine.clone().with_available(bytes, source)).unwrap();
        assert_eq!(models.len(), 2);
        let [broken, real] = &models[..] else { panic!("two models") };
        assert!(broken.name == NAME && broken.problem.is_some());
        assert_eq!((real.name.as_str(), real.bits, &real.problem), ("org/real", Some(4), &None));
        assert_eq!(real.model_type.as_deref(), Some("llama"));
        assert!(real.disk_bytes > 10_000);
        real.fits
    };
    assert_eq!((fits(1 << 40), fits(1 << 10)), (Some(true), Some(false)));
    assert!(hub::remove(cache.path(), "org/real").unwrap() > 10_000);
    assert!(!cache.path().join("models--org--real").exists());
    for name in ["org/real", "../x", "org", "/etc/x"] {
        assert!(hub::remove(cache.path(), name).is_err(), "{name}");
    }
    assert_eq!(hub::list(&cache.path().join("none"), &machine).unwrap(), []);
}
