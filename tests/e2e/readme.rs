//! What the README shows is what happens.

#[cfg(unix)]
use std::process::Command;

#[cfg(unix)]
use llmlb_tests::{Finished, llmlb_binary};
use llmlb_tests::{Running, Sandbox, free_port};

const README: &str = include_str!("../../README.md");
const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    README
        .split(&fence)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[cfg(unix)] // runs cargo, which under wine is none
#[test]
fn the_rust_program_is_the_example_and_runs() {
    assert_eq!(
        blocks("rust"),
        [include_str!("../../examples/rust/guard.rs")]
    );
    let sandbox = Sandbox::new();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "-p", "llmlb-lock-core"]);
    cargo.args(["--example", "guard", "--target-dir"]);
    cargo.arg(llmlb_binary().ancestors().nth(2).unwrap());
    cargo.env("LLMLB_LOCK_DIR", sandbox.path());
    let printed = Finished::of(cargo.output().unwrap()).expect(0);
    let path = sandbox.lock_file(8000);
    let expected = format!("guarding 8000 with {}\n", path.display());
    assert_eq!(printed.stdout, expected);
    assert!(!path.exists());
}

/// Those of the other languages are run where their own documents are tested.
#[test]
fn the_programs_are_those_of_the_languages_documents() {
    let shown = |language, document: &str| {
        let blocks = blocks(language);
        assert!(!blocks.is_empty(), "{language}");
        for block in blocks {
            let fenced = format!("```{language}\n{block}```");
            assert!(document.contains(&fenced), "{language}: {block}");
        }
    };
    shown("c", include_str!("../../ffi/README.md"));
    shown("go", include_str!("../../ffi/README.md"));
    shown("python", include_str!("../../python/README.md"));
    shown("rust", include_str!("../../core/README.md"));
}

/// Its documentation is compiled with its tests.
#[test]
fn the_clusters_program_is_that_of_its_documentation() {
    let (_, shown) = include_str!("../../cluster/README.md")
        .split_once("```rust\n")
        .unwrap();
    let documentation: String = include_str!("../../cluster/src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.trim_start_matches(' ')))
        .collect();
    let shown = shown.split("```").next().unwrap();
    let shown: String = shown
        .lines()
        .map(|l| format!("{}\n", l.trim_start()))
        .collect();
    assert!(documentation.contains(&shown), "{shown}");
}

#[cfg(unix)] // as shown on Unix, where the server takes the lock over
#[test]
fn the_session_of_its_picture_goes_as_shown() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let shown = blocks("console")[0];
    let (first, rest) = shown.split_once('\n').unwrap();
    let typed = blocks("sh")[0].trim_end().lines().last();
    assert_eq!(typed, first.strip_prefix("$ "), "the first screen");
    let first = first.strip_prefix("$ llmlb ").unwrap();
    let command = "vllm serve MODEL --host {host} --port {port}";
    assert_eq!(first, format!("serve --port 8000 -- {command}"));
    let _server = sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
    let pid = sandbox.named_pid(port);

    let mut happened = String::new();
    for line in rest.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let args = line.replace("8000", &port.to_string());
        let args = args.split(' ').skip(1).map(str::to_owned);
        let finished = sandbox.run(args);
        happened += &format!("$ {line}\n{}{}", finished.stdout, finished.stderr);
    }
    let info: Vec<&str> = happened.split("started: ").collect();
    let started = info[1].split('Z').next().unwrap().to_owned();
    let normal = |text: &str| {
        let words = text
            .replace(&port.to_string(), "8000")
            .replace(&pid.to_string(), "12345")
            .replace(&started, "2026-01-30T12:00:00");
        // The table is as wide as its numbers.
        let lines = words.lines().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.join(" ")
        });
        lines.collect::<Vec<_>>()
    };
    assert_eq!(normal(&happened), normal(rest));

    // As it has happened, the picture shows it.
    let picture = crate::picture::of(shown);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/session.svg");
    if std::env::var_os("LLMLB_WRITE_PICTURE").is_some() {
        std::fs::write(path, &picture).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == picture,
        "docs/session.svg is not of this session: make picture"
    );
}

#[test]
fn the_command_lines_do_what_their_comments_say() {
    let shown = blocks("sh")
        .into_iter()
        .find(|block| block.starts_with("llmlb serve"))
        .unwrap();
    let lines: Vec<&str> = shown
        .lines()
        .map(|line| line.split(" #").next().unwrap().trim())
        .collect();
    let sandbox = Sandbox::new();
    let port = free_port();
    let args = |line: &str| -> Vec<String> {
        let line = line
            .replace("8000", &port.to_string())
            .replace("COMMAND ARGS...", &format!("{GUINEA} {{port}} graceful=0"));
        line.split(' ').skip(1).map(str::to_owned).collect()
    };
    let mut next = lines.into_iter();
    let mut line = || args(next.next().unwrap());

    let start = |args: Vec<String>| Running::start(&mut sandbox.llmlb(args));
    let mut built_in = start(line());
    built_in.expect_log("listening on");
    drop(built_in);
    let mut guarded = start(line());
    guarded.expect_output("ready");
    let mut waiting = start(line());
    waiting.expect_log("Waiting");
    drop(guarded);
    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    waiting.expect_log("listening on");
    let mut replacing = start(line());
    replacing.expect_log("listening on");
    waiting.finish().expect(0);
    for _ in 0..2 {
        let status = sandbox.run(line()).expect(0);
        assert!(status.stdout.contains(&replacing.pid().to_string()));
    }
    sandbox.run(line()).expect(0);
    replacing.finish().expect(0);
    sandbox.run(line()).expect(0);
}
