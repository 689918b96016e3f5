//! What shells complete, by the scripts that `llmlb completions` prints: options, and the ports that
//! are guarded now.

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use llmlb_tests::{Finished, Sandbox, free_port, llmlb_binary};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

/// What each asks its script for: behind `stop`, behind an option for a port, and of an option.
const SHELLS: [(&str, &str, &str); 3] = [
    (
        "bash",
        "--norc",
        r#"source "$SCRIPT"
        complete -p llmlb >/dev/null || exit 1
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
            _clap_complete_llmlb llmlb "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}"; echo; }
        ask llmlb stop ''; ask llmlb status --port "$START"; ask llmlb serve --ready-u"#,
    ),
    (
        "zsh",
        "-f",
        r#"compdef() { :; }; _describe() { print -l -- ${${(P)3}%%:*}; }
        source "$SCRIPT"
        ask() { words=("$@"); CURRENT=$#; _clap_dynamic_completer_llmlb; print; }
        ask llmlb stop ''; ask llmlb status --port "$START"; ask llmlb serve --ready-u"#,
    ),
    (
        "fish",
        "--no-config",
        r#"source "$SCRIPT"
        function ask; complete -C "$argv" | string replace -r '\t.*' ''; echo; end
        ask 'llmlb stop '; ask "llmlb status --port $START"; ask 'llmlb serve --ready-u'"#,
    ),
];

#[test]
fn live_ports_are_offered() {
    let sandbox = Sandbox::new();
    let (port, stale) = (free_port(), free_port());
    let _server = sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
    sandbox.serve(stale).kill();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", llmlb_binary().parent().unwrap().display());
    let text = port.to_string();
    for (shell, bare, asks) in SHELLS {
        let script = sandbox.path().join(shell);
        let printed = sandbox.run(["completions", shell]).expect(0);
        fs::write(&script, &printed.stdout).unwrap();
        let mut command = Command::new(shell);
        command.args([bare, "-c", asks]).env("PATH", &path);
        command.env("LLMLB_LOCK_DIR", sandbox.path());
        command.env("SCRIPT", &script).env("START", &text[..3]);
        let asked = match command.output() {
            Err(e) if e.kind() == ErrorKind::NotFound && shell != "bash" => {
                eprintln!("{shell} is not installed, and was not asked");
                continue;
            }
            output => Finished::of(output.unwrap()).expect(0),
        };
        let answers: Vec<Vec<&str>> = asked
            .stdout
            .split("\n\n")
            .map(|answer| answer.lines().collect())
            .collect();
        assert_eq!(answers[0][0], text, "{shell}: {asked:?}");
        assert!(answers[0].contains(&"--all"), "{shell}: {asked:?}");
        assert!(
            !asked.stdout.contains(&stale.to_string()),
            "{shell}: {asked:?}"
        );
        assert_eq!(answers[1], [&*text], "{shell}: {asked:?}");
        assert_eq!(answers[2], ["--ready-url"], "{shell}: {asked:?}");
    }
}

#[test]
fn each_shell_has_a_script() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let printed = sandbox.run(["completions", shell]).expect(0);
        assert!(printed.stdout.contains("llmlb"), "{printed:?}");
    }
    let script = sandbox.run(["completions", "zsh"]).expect(0).stdout;
    // By that a shell finds it, and answers also when it has just read it.
    assert!(script.starts_with("#compdef llmlb\n"), "{script}");
    assert!(script.contains("funcstack"), "{script}");
}
