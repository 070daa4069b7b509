//! The page at `/`: served without the API key, and used in a real browser.

use super::images;
use super::support::Server;

#[test]
fn the_page_needs_no_key_and_loads_nothing_else() {
    let server = Server::start(&["--api-key", "secret"]);
    let reply = server.get("/");
    assert_eq!(reply.status, 200);
    let head = reply.head.to_lowercase();
    assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    for elsewhere in ["http://", "https://", "//cdn", "@import", "url("] {
        assert!(!reply.body.contains(elsewhere), "{elsewhere}");
    }
    assert!(reply.body.len() < 20 << 10, "{} bytes", reply.body.len());
}

/// Needs Python too; `cargo xtask ci --only page` runs it if both are installed. With a folder as its
/// third argument the script saves screenshots there.
#[test]
#[ignore = "needs chromium"]
fn the_page_works_in_a_browser() {
    let flags = ["--api-key", "secret", "--ctx-size", "32768", "--parallel", "4"];
    browse(&Server::with(32768, &flags, &[("MLXCEL_MEMORY_LIMIT", "512MiB")]));
}

/// The page with a model that takes images.
#[test]
#[ignore = "needs chromium"]
fn the_page_sends_images() {
    let flags = ["--api-key", "secret", "--ctx-size", "1024"];
    browse(&Server::over(images::model(), &flags, &[]));
}

/// Runs the browser script against `server`.
fn browse(server: &Server) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/server/page.py");
    let url = format!("http://{}/", server.address);
    let command = [script, &url, "secret"];
    let output = std::process::Command::new("python3").args(command).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}
