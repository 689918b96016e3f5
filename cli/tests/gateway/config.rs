//! One file for all that the command line says: what it may say, who wins, and what of it changes
//! while the balancer serves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;

use llmlb_tests::free_port;
use llmlb_tests::model_server::{Backend, Next};
use llmlb_tests::wire::answer;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{Gateway, chat, put, wait_until};

struct Config {
    _directory: TempDir,
    path: PathBuf,
}

impl Config {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("llmlb.toml");
        put(&path, text);
        Self {
            _directory: directory,
            path,
        }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// What is said of it, and the exit code.
    fn check(&self, args: &[&str]) -> (i32, String) {
        told(&Gateway::output(
            &[&["--config", self.path(), "--check"], args].concat(),
        ))
    }
}

fn told(output: &Output) -> (i32, String) {
    let text = [&*output.stdout, &*output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    (output.status.code().unwrap(), text)
}

fn table(backend: &Backend) -> String {
    format!("[[backend]]\nurl = \"{}\"\n", backend.url())
}

#[test]
fn a_file_says_what_the_command_line_can() {
    let (one, two) = (Backend::named("one", &[]), Backend::named("two", &[]));
    let config = Config::new(&format!(
        "api-key = \"open-sesame\"\nmax-requests = 7\naccess-log = true\n{}",
        table(&one)
    ));
    let gateway = Gateway::with(&[two.url()], &["--config", config.path()]);
    assert_eq!(gateway.chat("m").status(), 401);
    let key = "authorization: Bearer open-sesame\r\n";
    let health = gateway.connect().ask("GET", "/health", key, b"").json();
    assert_eq!(health["backends"].as_array().unwrap().len(), 2, "{health}");
    let mut client = gateway.connect();
    let answer = client.ask("POST", "/v1/chat/completions", key, &chat("m"));
    assert_eq!(answer.status(), 200);
    gateway.expect_log("\"status\":200");
}

#[test]
fn what_is_typed_or_in_the_environment_wins() {
    let config = Config::new("port = 65999\n");
    let (code, said) = config.check(&["--port", "8123"]);
    assert!(
        code == 0 && said.contains("port 8123, 0 backends"),
        "{said}"
    );
    let config = Config::new("port = 8124\ncommand = [\"no-such-program\"]\n");
    let (code, said) = config.check(&["--", "sh"]);
    assert!(code == 0 && said.contains("port 8124, sh under"), "{said}");
    let (code, said) = config.check(&[]);
    assert!(code == 127 && said.contains("no-such-program"), "{said}");
}

#[test]
fn models_have_other_names_in_a_list() {
    let backend = Backend::start(&["llama"], |request, wire| {
        wire.send(answer(
            "200 OK",
            "Content-Type: application/json\r\n",
            &String::from_utf8_lossy(&request.body),
        ));
        Next::Read
    });
    let config = Config::new(&format!(
        "model-alias = [\"gpt-4o=llama\", \"small = phi\"]\nmodel-fallback = [\"phi=x,llama\"]\n\
         default-model = \"llama\"\n{}",
        table(&backend)
    ));
    let gateway = Gateway::with(&[], &["--config", config.path()]);
    assert_eq!(gateway.chat("gpt-4o").json()["model"], "gpt-4o");
    assert_eq!(gateway.chat("small").json()["model"], "llama");
    let path = "/v1/completions";
    let told = gateway.connect().ask("POST", path, "", b"{}");
    assert_eq!(told.json()["model"], "llama");
    for (arguments, problem) in [
        (["--model-alias", "a"], "it has no = in it"),
        (
            ["--model-alias", "a=a"],
            "--model-alias: a is an alias of itself",
        ),
        (
            ["--model-fallback", "a=b,b"],
            "--model-fallback: b is named twice",
        ),
        (
            ["--default-model", ""],
            "--default-model: the name of a model is empty",
        ),
    ] {
        let (code, said) = Config::new("").check(&arguments);
        assert!(code == 2 && said.contains(problem), "{said}");
    }
}

#[test]
fn a_mistake_is_told_with_its_line_and_what_was_meant() {
    for (text, wanted) in [
        (
            "port = 1\nmax_requests = 64\n",
            "line 2: there is no 'max_requests': did you mean 'max-requests'?",
        ),
        (
            "\nmax-requests = 0\n",
            "line 2: invalid value '0' for '--max-requests <N>': not a number from 1 on",
        ),
        (
            "api-key = \"\"\n",
            "line 1: invalid value for '--api-key <KEY>'",
        ),
        (
            "access-log = \"yes\"\n",
            "line 1: access-log is true or false",
        ),
        (
            "[[backend]]\nurl = \"http://a\"\nwieght = 2\n",
            "line 3: unknown field `wieght`",
        ),
        ("port = \n", "line 1: "),
        ("check = true\n", "line 1: check is for the command line"),
        (
            "# both\nmax-requests = 5\ncommand = [\"sh\"]\n",
            "line 2: --max-requests is for the built-in server",
        ),
        (
            "command = [\"sh\"]\n\n[[backend]]\nurl = \"http://a\"\n",
            "line 3: [[backend]] is for the built-in server and does nothing for a COMMAND",
        ),
        (
            "port = 1\ncommand = []\n",
            "line 2: command names no program",
        ),
        (
            "command = \"sh\"\n",
            "line 1: command is a list of texts, such as [\"one\", \"two\"]",
        ),
        (
            "port = 1\nlog-file = \"log\"\n",
            "line 2: log-file needs detach",
        ),
        (
            "port = 1\nexclusive = true\nttl = 3\n",
            "line 2: exclusive needs service",
        ),
        (
            "\nbackends-of = \"x\"\n",
            "line 2: backends-of needs cluster",
        ),
        (
            "affinity = false\n",
            "line 1: affinity is \"prefix\", \"session\" or \"off\"",
        ),
        (
            "affinity = \"none\"\n",
            "line 1: invalid value 'none' for '--affinity <BY>': it is prefix, session or off",
        ),
        (
            "[[backend]]\nurl = \"http://a\"\nmax = 0\n",
            "line 3: max is a number from 1 on, not 0",
        ),
        (
            "[[backend]]\nweight = \"2\"\nurl = \"http://a\"\n",
            "line 2: weight is a number from 1 on, not \"2\"",
        ),
        (
            "port = 1\nbackend = [\"http://a\"]\n",
            "line 2: each backend is a table: [[backend]] with url = \"http://HOST:PORT\"",
        ),
    ] {
        let config = Config::new(text);
        let (code, said) = config.check(&[]);
        let wanted = format!("Error: {}: {wanted}", config.path());
        assert!(
            code == 2 && said.starts_with(&wanted),
            "{text}: {code} {said}"
        );
        // And it is no start.
        let (code, again) = told(&Gateway::refused(&["--config", config.path()]));
        assert!(code == 2 && again == said, "{again}");
    }
    let (code, said) = told(&Gateway::refused(&["--config", "/nowhere/llmlb.toml"]));
    assert!(code == 2 && said.contains("/nowhere/llmlb.toml"), "{said}");
}

#[test]
fn a_file_is_not_blamed_for_what_was_said_elsewhere() {
    let config = Config::new("port = 8000\nttl = 3\nservice = \"x\"\n");
    let typed = |args: &[&str]| told(&Gateway::output(args));
    let args = ["--config", config.path(), "--check", "--port", "abc"];
    let (code, said) = typed(&args);
    assert!(
        code == 2 && said.contains("'abc'") && !said.contains(config.path()),
        "{said}"
    );
    // In the environment, which is cleaned for a test.
    let mut command = std::process::Command::new("env");
    let program = env!("CARGO_BIN_EXE_llmlb");
    command.args(["LLMLB_PORT=abc", program, "serve", "--config"]);
    let (code, said) = told(&command.args([config.path(), "--check"]).output().unwrap());
    assert!(
        code == 2 && said.contains("'abc'") && !said.contains(config.path()),
        "{said}"
    );
    // What was typed lacks something: the file does not.
    let config = Config::new("port = 8000\nworkers = 1\n");
    let (code, said) = typed(&["--config", config.path(), "--check", "--exclusive"]);
    assert!(
        code == 2 && said.contains("--service") && !said.contains("line"),
        "{said}"
    );
    // And what it needs may be typed.
    let log = Config::new("log-file = \"/dev/null\"\n");
    let (code, said) = log.check(&["--detach"]);
    assert!(code == 0, "{said}");
}

#[test]
fn a_check_takes_no_port() {
    let config = Config::new("port = 1\n");
    let (code, said) = config.check(&[]);
    assert_eq!(
        (code, &*said),
        (0, "Nothing is wrong: port 1, 0 backends\n")
    );
}

/// Each of what a start looks at before it takes anything.
#[test]
fn a_check_refuses_what_a_start_would() {
    let backend = "[[backend]]\nurl = \"http://127.0.0.1:9\"\n";
    let port = free_port();
    let own = format!("[[backend]]\nurl = \"http://127.0.0.1:{port}\"\n");
    let log = "detach = true\nlog-file = \"/nowhere/log\"\n";
    let full = "detach = true\nlog-file = \"/dev/full/log\"\n";
    let mut cases = vec![
        (own, 2, "is this very server"),
        (
            format!("host = \"192.0.2.1\"\n{backend}"),
            1,
            "cannot listen on 192.0.2.1:",
        ),
        (
            format!("host = \"no-such-name.invalid\"\n{backend}"),
            1,
            "cannot listen on no-such-name.invalid:",
        ),
        (
            format!("{log}{backend}"),
            1,
            "cannot write to the log /nowhere/log: No such file",
        ),
        (
            format!("{full}{backend}"),
            1,
            "cannot write to the log /dev/full/log: Not a directory",
        ),
        (
            format!("{log}command = [\"sleep\", \"60\"]\n"),
            1,
            "cannot write to the log",
        ),
    ];
    if cfg!(target_os = "linux") {
        let nowhere = "etcd://127.0.0.1:9";
        for (text, said) in [
            ("service = \"x\"\n".to_owned(), "which etcd?"),
            (
                "exclusive = true\nservice = \"x\"\n".to_owned(),
                "which etcd?",
            ),
            (
                "backends-of = \"x\"\ncluster = \"foo://\"\n".to_owned(),
                "etcd://",
            ),
            (
                "service = \"x\"\ncluster = \"foo://\"\n".to_owned(),
                "etcd://",
            ),
            (
                format!("service = \"a/b\"\ncluster = \"{nowhere}\"\n"),
                "service name",
            ),
            (
                format!(
                    "service = \"x\"\ncluster = \"{nowhere}\"\nexclusive = true\nttl = 3\n\
                     command = [\"sleep\", \"60\"]\n"
                ),
                "not less than the TTL of 3 s",
            ),
            (
                format!(
                    "service = \"x\"\ncluster = \"{nowhere}\"\nexclusive = true\n\
                     drain-delay = 4\n"
                ),
                "--drain-delay 4s",
            ),
        ] {
            cases.push((text, 2, said));
        }
    }
    for (text, code, wanted) in cases {
        let config = Config::new(&format!("port = {port}\n{text}"));
        let (checked, told_of) = config.check(&[]);
        // Behind warnings of the log.
        let said = &told_of[told_of.find("Error: ").unwrap_or(0)..];
        assert!(
            checked == code && said.contains(wanted),
            "{text}: {checked} {told_of}"
        );
        let (started, again) = told(&Gateway::output(&["--config", config.path()]));
        assert!(
            started == code && again.ends_with(said),
            "{text}: {said} and {again}"
        );
    }
}

#[test]
fn a_check_knows_a_name_that_is_its_own() {
    let port = free_port();
    let url = format!("dns+http://localhost:{port}");
    let config = Config::new(&format!("port = {port}\n[[backend]]\nurl = \"{url}\"\n"));
    let (code, said) = config.check(&[]);
    assert!(code == 2 && said.contains("is this very server"), "{said}");
    let (code, said) = config.check(&["--port", "0"]);
    assert_eq!((code, &*said), (0, "Nothing is wrong: port 0, 1 backend\n"));
}

#[test]
fn a_check_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let config = Config::new(&format!("detach = true\nlog-file = {log:?}\n"));
    let (code, said) = config.check(&[]);
    assert!(code == 0 && !log.exists(), "{said}");
    std::fs::write(&log, "as it was").unwrap();
    let (code, said) = config.check(&[]);
    assert!(code == 0, "{said}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "as it was");
}

#[test]
fn changes_take_effect_or_are_told() {
    let (one, two) = (Backend::named("one", &[]), Backend::named("two", &[]));
    let config = Config::new(&format!("max-requests = 7\n{}", table(&one)));
    let gateway = Gateway::with(&[], &["--config", config.path()]);
    assert_eq!(gateway.chat("m").body, b"one");

    put(&config.path, &format!("max-requests = 8\n{}", table(&two)));
    gateway.signal(Signal::SIGHUP);
    let said = gateway.expect_log("says something else of max-requests");
    assert!(
        said.contains(config.path()) && said.contains("--replace"),
        "{said}"
    );
    wait_until("the other backend", || {
        (gateway.chat("m").body == b"two").then_some(())
    });

    // With another port, --replace would start a second server.
    put(
        &config.path,
        &format!("port = 1\nmax-requests = 8\n{}", table(&two)),
    );
    gateway.signal(Signal::SIGHUP);
    let said =
        gateway.expect_log("says something else of port: that takes llmlb stop, and a start");
    assert!(!said.contains("--replace"), "{said}");

    // A mistake changes nothing.
    put(&config.path, &format!("max-requests = 0\n{}", table(&one)));
    gateway.signal(Signal::SIGHUP);
    let said = gateway.expect_log("stay as they are");
    assert!(said.contains("line 1: invalid value '0'"), "{said}");
    assert_eq!(gateway.chat("m").body, b"two");
}

/// What docs/gateway.md shows.
#[test]
fn the_file_in_the_manual_is_right() {
    let manual = include_str!("../../../docs/gateway.md");
    let section = manual.split("## One file for all of it").nth(1).unwrap();
    let shown = section.split("```toml\n").nth(1).unwrap();
    let shown = shown.split("```").next().unwrap();
    // A variable that there is, and whose value could be a key.
    let config = Config::new(&shown.replace("GPU2_KEY", "CARGO_PKG_NAME"));
    let (code, said) = config.check(&[]);
    assert_eq!(
        (code, &*said),
        (0, "Nothing is wrong: port 8000, 2 backends\n")
    );
}

#[test]
fn a_key_that_others_can_read_is_told_of() {
    let config = Config::new("api-key = \"open-sesame\"\n");
    let mode = |mode| fs::set_permissions(&config.path, fs::Permissions::from_mode(mode)).unwrap();
    let path = config.path();
    let exposed = format!("{path} has api-key in it, and is not for you alone: chmod 600 {path}");
    mode(0o600);
    let (code, said) = config.check(&["--port", "1"]);
    assert!(code == 0 && !said.contains("WARN"), "{said}");
    let gateway = Gateway::with(&[], &["--config", path]);
    assert!(!gateway.log().join("\n").contains("chmod"));
    mode(0o640);
    let (code, said) = config.check(&["--port", "1"]);
    assert!(code == 0 && said.contains(&exposed), "{said}");
    gateway.signal(Signal::SIGHUP);
    gateway.expect_log(&exposed);
    let gateway = Gateway::with(&[], &["--config", path]);
    gateway.expect_log(&exposed);
    // Nor is it said where there is none.
    let (code, said) = Config::new("workers = 1\n").check(&["--port", "1"]);
    assert!(code == 0 && !said.contains("chmod"), "{said}");
}
