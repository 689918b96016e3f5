//! Backends from a file and from names: followed as they change, refused whole when they are wrong.

use std::fs;
use std::io::Write;
use std::path::Path;

use llmlb_tests::model_server::{Backend, Gate, Next, Port};
use llmlb_tests::wire::{STREAM, chat, chunk, request};
use nix::sys::signal::Signal;

use crate::support::{Gateway, put, wait_until};

fn urls(gateway: &Gateway) -> Vec<String> {
    let health = gateway.health();
    let backends = health["backends"].as_array().unwrap().iter();
    backends
        .map(|b| b["url"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_file_of_backends_is_followed() {
    let (first, second) = (Backend::named("first", &[]), Backend::named("second", &[]));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends");
    put(&path, &format!("# one\n{} weight=2\n", first.url()));
    let gateway = Gateway::with(&[], &["--backends-file", path.to_str().unwrap()]);
    assert_eq!(gateway.chat("m").body, b"first");
    assert_eq!(
        gateway.health()["backends"][0]["origin"],
        path.to_str().unwrap()
    );

    put(&path, &format!("{}\n", second.url()));
    wait_until("the new set", || {
        (urls(&gateway) == [second.url()]).then_some(())
    });
    wait_until("its backend", || {
        (gateway.chat("m").body == b"second").then_some(())
    });
}

#[test]
fn a_file_written_in_place_drops_nobody() {
    let backend = Backend::named("there", &[]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends");
    put(&path, &backend.url());
    let gateway = Gateway::with(&[], &["--backends-file", path.to_str().unwrap()]);
    // As `cat >` does, which is slow here: until the file was looked at.
    let mut file = fs::File::create(&path).unwrap();
    let said = gateway.expect_log("names no backends any more");
    assert!(
        said.contains(" WARN ") && said.contains(path.to_str().unwrap()),
        "{said}"
    );
    assert_eq!(gateway.chat("m").body, b"there");
    writeln!(file, "{} weight=2", backend.url()).unwrap();
    gateway.expect_log("names 1 backend");
    assert_eq!(gateway.chat("m").body, b"there");
    // One that stays empty means it.
    fs::File::create(&path).unwrap();
    gateway.expect_log("names 0 backends");
    wait_until("nobody", || urls(&gateway).is_empty().then_some(()));
}

#[test]
fn a_removed_backend_finishes_what_it_has() {
    let gate = Gate::default();
    let held = gate.clone();
    let streaming = Backend::start(&[], move |_, wire| {
        wire.send(STREAM);
        wire.send(chunk("begun"));
        held.pass();
        wire.send(chunk("done"));
        wire.send("0\r\n\r\n");
        Next::Read
    });
    let other = Backend::named("other", &[]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends.toml");
    put(
        &path,
        &format!("[[backend]]\nurl = \"{}\"\n", streaming.url()),
    );
    let gateway = Gateway::with(&[], &["--backends-file", path.to_str().unwrap()]);
    let mut client = gateway.connect();
    client.send(request("POST", "/v1/chat/completions", "", &chat("m")));
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.chunk().unwrap(), b"begun");
    put(&path, &format!("[[backend]]\nurl = \"{}\"\n", other.url()));
    gateway.signal(Signal::SIGHUP);
    wait_until("the first to drain", || {
        (gateway.health()["backends"][1]["state"] == "draining").then_some(())
    });
    gate.open();
    assert_eq!(client.chunk().unwrap(), b"done");
    assert_eq!(client.chunk().unwrap(), b"");
    wait_until("the first to be gone", || {
        (urls(&gateway) == [other.url()]).then_some(())
    });
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_with_its_line() {
    let backend = Backend::named("fine", &[]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends");
    put(&path, &backend.url());
    let gateway = Gateway::with(&[], &["--backends-file", path.to_str().unwrap()]);
    put(&path, "http://127.0.0.1:9 max=1\nhttp://b wieght=2\n");
    gateway.signal(Signal::SIGHUP);
    let said = gateway.expect_log("stay as they are");
    assert!(said.contains("line 2: 'wieght' is none of"), "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    assert_eq!(gateway.chat("m").body, b"fine");
    fs::remove_file(&path).unwrap();
    gateway.expect_log("No such file");
    assert_eq!(gateway.chat("m").body, b"fine");
    // And when it is right again, it counts.
    put(&path, &format!("# back\n{} max=3\n", backend.url()));
    gateway.expect_log("names 1 backend");
}

#[test]
fn a_bad_file_is_no_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends");
    put(&path, "http://a\nnonsense\n");
    let refused = Gateway::refused(&["--backends-file", path.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("line 2: 'nonsense'"), "{said}");
}

#[test]
fn a_name_stands_for_a_backend_an_address() {
    let backend = Backend::named("found", &[]);
    let port = backend.url().rsplit(':').next().unwrap().to_owned();
    let url = format!("dns+http://localhost:{port}");
    let gateway = Gateway::with(&[url], &[]);
    let found = format!("http://127.0.0.1:{port}");
    assert!(urls(&gateway).contains(&found), "{:?}", urls(&gateway));
    assert_eq!(gateway.chat("m").body, b"found");
    let origin = gateway.health()["backends"][0]["origin"].clone();
    assert_eq!(origin, format!("dns+http://localhost:{port}"));
}

#[test]
fn a_hangup_without_anything_to_read_ends_nothing() {
    let gateway = Gateway::with(&[Port::reserve().url()], &[]);
    gateway.signal(Signal::SIGHUP);
    gateway.expect_log("no file to read again");
    assert_eq!(gateway.health()["status"], "ok");
}

/// What docs/gateway.md shows.
#[test]
fn the_files_in_the_manual_are_understood() {
    let manual = include_str!("../../../docs/gateway.md");
    let section = manual.split("## Backends that come and go").nth(1).unwrap();
    for (language, name) in [("text", "backends"), ("toml", "backends.toml")] {
        let shown = section.split(&format!("```{language}\n")).nth(1).unwrap();
        let shown = shown.split("```").next().unwrap();
        // Names that answer everywhere.
        let shown = shown.replace("models.internal", "localhost");
        let shown = shown
            .replace("gpu1", "127.0.0.1")
            .replace("gpu2", "127.0.0.2");
        // A variable that there is, and whose value could be a key.
        let shown = shown.replace("GPU2_KEY", "CARGO_PKG_NAME");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        put(&path, &shown);
        let gateway = Gateway::with(&[], &["--backends-file", path.to_str().unwrap()]);
        let found = urls(&gateway);
        for url in ["http://127.0.0.1:8000", "http://127.0.0.2:8000"] {
            assert!(found.iter().any(|known| known == url), "{name}: {found:?}");
        }
    }
}

#[test]
fn a_name_without_an_address_is_told_as_one_to_come() {
    let gateway = Gateway::with(&["dns+http://nosuch.invalid:8000".to_owned()], &[]);
    gateway.expect_log("http://nosuch.invalid:8000 has no address yet and is asked for again");
    gateway.expect_log("No model servers to pass requests on to yet:");
    let told = gateway.chat("m");
    assert_eq!(told.status(), 503);
    let said = told.json()["error"]["message"].to_string();
    assert!(said.contains("no backends yet"), "{said}");
    let log = gateway.log().join("\n");
    assert!(
        !log.contains("stay as they are") && !log.contains("--backend"),
        "{log}"
    );
}

#[test]
fn one_that_is_named_twice_is_one_or_a_mistake() {
    let backend = Backend::named("twice", &[]);
    let url = backend.url();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends");
    let toml = directory.path().join("backends.toml");
    let check = |path: &Path| {
        let path = path.to_str().unwrap();
        let args = ["--backends-file", path, "--backend", &url, "--check"];
        let output = Gateway::refused(&args);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let wanted = "another weight, max or key-env on line";
    put(&path, &format!("{url} max=3\n\n{url} max=4\n"));
    put(
        &toml,
        &format!("[[backend]]\nurl = \"{url}\"\nmax = 3\n[[backend]]\nurl = \"{url}\"\n"),
    );
    for (path, line, first) in [(&path, 3, 1), (&toml, 5, 2)] {
        let (code, said) = check(path);
        let wanted = format!("line {line}: {url} has {wanted} {first}");
        assert!(code == Some(2) && said.contains(&wanted), "{said}");
    }
    // The same thing twice is one backend, be it that the command line has it, too.
    put(&path, &format!("{url}\n{url}/v1\n"));
    let (code, said) = check(&path);
    assert!(code == Some(0) && said.contains("1 backend\n"), "{said}");
    assert!(!said.contains("WARN"), "{said}");
    // Of two sources the first counts, and that is said.
    put(&path, &format!("{url} max=3\n"));
    let (code, said) = check(&path);
    assert!(code == Some(0) && said.contains("1 backend\n"), "{said}");
    let remark = said.contains("than the command line, which counts");
    assert!(remark && said.contains(" WARN "), "{said}");
}

#[test]
fn its_own_address_in_a_file_is_a_mistake_at_any_time() {
    let backend = Backend::named("fine", &[]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends");
    put(&path, &backend.url());
    let gateway = Gateway::with(&[], &["--backends-file", path.to_str().unwrap()]);
    let own = format!("http://127.0.0.1:{}", gateway.port);
    put(&path, &format!("{}\n{own}\n", backend.url()));
    gateway.signal(Signal::SIGHUP);
    let said = gateway.expect_log("stay as they are");
    let wanted = format!("line 2: the backend {own} is this very server");
    assert!(said.contains(&wanted), "{said}");
    assert_eq!(urls(&gateway), [backend.url()]);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let backend = Backend::named("marked", &[]);
    let directory = tempfile::tempdir().unwrap();
    let url = backend.url();
    let table = format!("[[backend]]\nurl = \"{url}\"\n");
    for (option, name, text) in [
        ("--backends-file", "backends", &url),
        ("--backends-file", "backends.toml", &table),
        ("--config", "llmlb.toml", &table),
    ] {
        let path = directory.path().join(name);
        put(&path, &format!("\u{feff}{text}"));
        let gateway = Gateway::with(&[], &[option, path.to_str().unwrap()]);
        assert_eq!(urls(&gateway), [backend.url()]);
    }
}
