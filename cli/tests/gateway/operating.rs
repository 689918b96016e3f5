//! What operators see of the program: the access log, the delay before a drain, and the page, in a
//! real browser.

use std::process::Command;

use llmlb_tests::model_server::{Backend, Next};
use llmlb_tests::wire::answer;
use nix::sys::signal::Signal;

use crate::support::{Gateway, wait_until};

fn answering() -> Backend {
    Backend::start(&["m"], |_, wire| {
        let usage = r#"{"usage":{"prompt_tokens":1111,"completion_tokens":2222}}"#;
        wire.send(answer(
            "200 OK",
            "Content-Type: application/json\r\n",
            usage,
        ));
        Next::Read
    })
}

#[test]
fn the_access_log_is_a_line_of_json_a_request() {
    let backend = answering();
    let gateway = Gateway::with(&[backend.url()], &["--access-log"]);
    let headers = "X-Request-Id: id-1\r\nAuthorization: Bearer secret\r\n";
    let body = br#"{"model":"m"}"#;
    let path = "/v1/chat/completions?key=secret";
    assert_eq!(
        gateway.connect().ask("POST", path, headers, body).status(),
        200
    );
    let line = gateway.expect_log("id-1");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["path"], "/v1/chat/completions");
    assert_eq!(line["method"], "POST");
    assert_eq!(line["status"], 200);
    assert_eq!(line["backend"], backend.url());
    assert_eq!(line["model"], "m");
    assert_eq!(line["tokens_out"], 2222);
    assert!(line["duration_seconds"].as_f64().unwrap() > 0.0);
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
    assert!(gateway.log().iter().all(|line| !line.contains("secret")));
}

#[test]
fn before_it_drains_it_is_unready_and_still_takes_connections() {
    let backend = answering();
    let mut gateway = Gateway::with(&[backend.url()], &["--drain-delay", "3600"]);
    assert_eq!(gateway.get("/ready").status(), 200);
    gateway.signal(Signal::SIGTERM);
    wait_until("it to be unready", || {
        (gateway.get("/ready").status() == 503).then_some(())
    });
    assert_eq!(gateway.chat("m").status(), 200);
    assert_eq!(gateway.get("/health").status(), 200);
    // Another signal is no request to end at once: it ends the delay.
    gateway.signal(Signal::SIGINT);
    assert_eq!(gateway.wait().code(), Some(0));
}

/// What Chromium makes of a page after a while: its elements, as text.
fn browse(url: &str) -> Option<String> {
    let browser = ["chromium", "chromium-browser", "google-chrome"];
    let found = browser.into_iter().find(|name| {
        let found = Command::new(name).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    })?;
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(found)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
        ])
        .args([
            "--disable-quic",
            "--disable-background-networking",
            "--disable-sync",
        ])
        .args(["--disable-component-update", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--virtual-time-budget=9000", "--dump-dom", url])
        .output()
        .unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn in_a_browser_the_page_shows_what_the_metrics_say() {
    let backend = answering();
    let gateway = Gateway::with(&[backend.url()], &[]);
    for _ in 0..7 {
        assert_eq!(gateway.chat("m").status(), 200);
    }
    wait_until("something to draw", || {
        let state = gateway.get("/llmlb/state").json();
        (state["history"].as_array()?.len() > 3).then_some(())
    });
    let Some(shown) = browse(&format!("http://127.0.0.1:{}/llmlb", gateway.port)) else {
        println!("skipped: there is no Chromium here");
        return;
    };
    let row = |key: &str| {
        let row = shown
            .split(key)
            .nth(1)
            .unwrap_or_else(|| panic!("no {key} in {shown}"));
        let row = row.split("</tr>").next().unwrap();
        let cells = row.split("<td").skip(1);
        let text = |cell: &str| {
            cell.split_once('>')
                .unwrap()
                .1
                .split('<')
                .next()
                .unwrap()
                .to_owned()
        };
        cells.map(text).collect::<Vec<_>>()
    };
    let metrics = gateway.metrics();
    let url = backend.url();
    let counted = |key: String| metrics[&key];
    assert_eq!(
        counted(format!(
            "llmlb_requests_total{{backend=\"{url}\",code=\"200\"}}"
        )),
        7.0
    );
    let backend_row = row(&format!("data-url=\"{url}\""));
    assert_eq!(backend_row[..4], [url.as_str(), "up", "0", "7"]);
    assert_eq!(backend_row[5], "m");
    let out = format!("llmlb_tokens_total{{backend=\"{url}\",direction=\"out\",model=\"m\"}}");
    assert_eq!(counted(out), 15554.0);
    assert_eq!(
        row("data-model=\"m\"")[..5],
        ["m", "7", "–", "7,777", "15,554"]
    );
    assert!(
        shown.contains("<path class=\"line\""),
        "a chart of what has been: {shown}"
    );
}

#[test]
fn in_a_browser_the_page_asks_for_the_key_and_shows_nothing_without_it() {
    let backend = answering();
    let gateway = Gateway::with(&[backend.url()], &["--api-key", "k"]);
    let Some(shown) = browse(&format!("http://127.0.0.1:{}/llmlb", gateway.port)) else {
        println!("skipped: there is no Chromium here");
        return;
    };
    assert!(shown.contains("an API key is needed"), "{shown}");
    assert!(!shown.contains(&backend.url()), "{shown}");
    assert_eq!(gateway.get("/llmlb/state").status(), 401);
}
