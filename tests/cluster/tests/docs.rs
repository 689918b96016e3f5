//! What docs/cluster.md shows is so.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use llmlb_cluster_tests::etcd::Etcd;
use llmlb_cluster_tests::{eventually, guinea};
use llmlb_lock_cluster::{Record, Timing};
use llmlb_tests::{Finished, Running, Sandbox, free_port, llmlb_binary};

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cluster.md");
    std::fs::read_to_string(page).unwrap()
}

fn block<'a>(page: &'a str, language: &str) -> &'a str {
    let rest = page.split_once(&format!("```{language}\n")).unwrap().1;
    rest.split_once("\n```").unwrap().0
}

/// The crate's own example is compiled; the page shows a part of it.
#[test]
fn the_example_is_the_one_that_is_compiled() {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cluster/src/lib.rs");
    let lib = std::fs::read_to_string(lib).unwrap();
    let page = page();
    for line in block(&page, "rust").lines().filter(|line| !line.is_empty()) {
        assert!(lib.contains(&format!("//! {line}\n")), "{line}");
    }
}

#[test]
fn the_record_has_the_fields_that_are_told() {
    let page = page();
    let shown: serde_json::Value = serde_json::from_str(block(&page, "json")).unwrap();
    let full = Record::new("chat", "gpu1", 8000)
        .with_token(1)
        .with_models(["m"])
        .with_slots(1);
    let full = serde_json::to_value(&full).unwrap();
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(names(&shown), names(&full));
    for name in names(&full) {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}

#[test]
fn the_table_of_times_is_right() {
    let page = page();
    let rows = page
        .lines()
        .skip_while(|line| !line.contains("longest drain"));
    let mut seen = 0;
    for row in rows.skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<f64> = row
            .split('|')
            .filter_map(|cell| cell.trim().strip_suffix(" s")?.parse().ok())
            .collect();
        let secs = Duration::from_secs_f64;
        let [ttl, renew, request, kill, _, drain] = cells[..] else {
            panic!("{row}");
        };
        let timing = Timing::new(secs(ttl), secs(drain)).unwrap();
        assert_eq!(timing.renew(), secs(renew), "{row}");
        assert_eq!(timing.request(), secs(request), "{row}");
        assert_eq!(timing.kill(), secs(kill), "{row}");
        assert!(Timing::new(secs(ttl), secs(drain + 0.1)).is_err(), "{row}");
        seen += 1;
    }
    assert_eq!(seen, 3);
}

/// The commands of the page, as an operator types them: with programs of these names, on loopback.
struct Typist {
    sandbox: Sandbox,
    url: String,
    ports: BTreeMap<&'static str, u16>,
}

impl Typist {
    fn new(etcd: &Etcd) -> Self {
        let sandbox = Sandbox::new();
        let own = guinea();
        let own = own.display();
        let write = |name: &str, text: String| {
            let path = sandbox.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        };
        let vllm = "[ \"$1 $2 $3\" = 'serve MODEL --port' ] && exec";
        write(
            "vllm",
            format!("#!/bin/sh\n{vllm} {own} model \"$4\" MODEL\n"),
        );
        write(
            "server",
            format!("#!/bin/sh\nexec {own} listen \"$PORT\"\n"),
        );
        let hosts = etcd
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port));
        Self {
            url: format!("etcd://{}", hosts.collect::<Vec<_>>().join(",")),
            sandbox,
            ports: ["8000", "8001"].map(|port| (port, free_port())).into(),
        }
    }

    fn command(&self, line: &str) -> Command {
        let name = nix::sys::utsname::uname().unwrap();
        let name = name.nodename().to_str().unwrap();
        let mut line = line
            .replace("etcd://h1:2379,h2:2379,h3:2379", &self.url)
            .replace("--host 0.0.0.0", "--host 127.0.0.1")
            .replace("--host gpu1", &format!("--host {name}"));
        for (shown, port) in &self.ports {
            line = line.replace(&format!("--port {shown}"), &format!("--port {port}"));
        }
        let mut command = Command::new("sh");
        let bin = llmlb_binary().parent().unwrap().display().to_string();
        let (own, path) = (self.sandbox.path(), std::env::var("PATH").unwrap());
        command
            .args(["-c", &line])
            .current_dir(own)
            .env("PATH", format!("{}:{bin}:{path}", own.display()))
            .env("LLMLB_LOCK_DIR", own);
        command
    }

    /// Serves, in place of the shell.
    fn serve(&self, export: &str, line: &str) -> Running {
        Running::start(&mut self.command(&format!("{export}\nexec {line}")))
    }

    fn run(&self, line: &str) -> Finished {
        Finished::of(self.command(line).output().unwrap())
    }
}

#[test]
fn the_commands_do_what_the_page_says() {
    let page = page();
    let blocks: Vec<_> = page.split("\n```sh\n").skip(1).collect();
    let blocks: Vec<Vec<&str>> = blocks
        .iter()
        .map(|block| block.split_once("\n```").unwrap().0.lines().collect())
        .collect();
    let [serve, grant, ask, balance] = &blocks[..] else {
        panic!("{blocks:#?}");
    };
    let etcd = Etcd::start(3);
    let typist = Typist::new(&etcd);
    let [export, chat, index] = serve[..] else {
        panic!("{serve:?}");
    };
    let chat = typist.serve(export, chat);
    let mut active = typist.serve(export, index);
    active.expect_output("serving ");
    let [status, stop] = ask[..] else {
        panic!("{ask:?}");
    };
    // The page has the URL with its prefix once, and without afterwards.
    let of_prefix = |line: &str| line.replace("h3:2379", "h3:2379/llm");
    let status = of_prefix(status);
    eventually("both are listed", || {
        let shown = typist.run(&status).expect(0).stdout;
        shown.contains("Running  MODEL\n") && shown.matches("Running").count() == 2
    });

    // A standby, as it says --wait; on another port, since that one is taken.
    let other = Typist {
        ports: [("8001", free_port())].into(),
        url: typist.url.clone(),
        sandbox: Sandbox::new(),
    };
    std::fs::copy(
        typist.sandbox.path().join("server"),
        other.sandbox.path().join("server"),
    )
    .unwrap();
    let mut standby = other.serve(export, index);
    standby.expect_log("Waiting: Service index is active on ");
    active.ask_to_end();
    standby.expect_output("serving ");

    let balancer = Typist {
        ports: [("8000", free_port())].into(),
        url: typist.url.clone(),
        sandbox: Sandbox::new(),
    };
    let [balance] = balance[..] else {
        panic!("{balance:?}");
    };
    let mut running = balancer.serve("", &of_prefix(balance));
    running.expect_log("listening on");
    let front = llmlb_tests::front::Front {
        port: balancer.ports["8000"],
    };
    eventually("it has found the server", || {
        front.health()["backends"][0]["state"] == "up"
    });

    typist.run(&of_prefix(stop)).expect(0);
    let ended = chat.finish();
    assert!(ended.stderr.contains("Stop asked for by "), "{ended:?}");
    let check = "llmlb cluster check --cluster etcd://h1:2379,h2:2379,h3:2379/llm";
    assert!(page.contains("`llmlb cluster check --cluster URL`"));
    typist.run(check).expect(0);

    let [grant] = grant[..] else {
        panic!("{grant:?}");
    };
    if typist.run("command -v etcdctl").code != Some(0) {
        println!("skipped: there is no etcdctl for {grant}");
        return;
    }
    let endpoints = format!(
        "export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={}",
        &typist.url["etcd://".len()..]
    );
    typist
        .run(&format!("{endpoints}; etcdctl role add llmlb && {grant}"))
        .expect(0);
}
