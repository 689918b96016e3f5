//! The program in a cluster under what it meets there: logins, certificates, an etcd that says
//! nothing, and the options of `serve` that it was not made for alone.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use llmlb_cluster_tests::etcd::{Etcd, base64};
use llmlb_cluster_tests::tls::{certificates, client_certificates};
use llmlb_cluster_tests::{children, eventually, guinea, is_running, scratch, within};
use llmlb_lock_cluster::{Cluster, ClusterUrl, Interrupt, Record};
use llmlb_tests::front::Front;
use llmlb_tests::model_server::Backend;
use llmlb_tests::{Finished, Running, Sandbox, free_port, signal_pid};
use nix::sys::signal::Signal;

/// `llmlb serve` of a guinea pig on this port, as service chat.
fn serve(sandbox: &Sandbox, url: &str, port: u16, options: &[&str]) -> Command {
    let text = port.to_string();
    let mut command = sandbox.llmlb(["serve", "--port", &text, "--cluster", url]);
    command.args(["--service", "chat"]).args(options);
    command.arg("--").arg(guinea()).args(["listen", &text]);
    command
}

const EXCLUSIVE: [&str; 5] = ["--exclusive", "--ttl", "3", "--drain-timeout", "0.5"];

/// Its PID and its token.
fn serving(server: &mut Running) -> (u32, Option<u64>) {
    let words = server.expect_output("serving ");
    let mut words = words.split(' ').skip(1);
    let pid = words.next().unwrap().parse().unwrap();
    (pid, words.next().and_then(|token| token.parse().ok()))
}

fn registered(cluster: &Cluster) -> Vec<Record> {
    let listing = cluster.servers(Some("chat"), &Interrupt::new()).unwrap();
    let servers = listing.servers.into_iter();
    let servers = servers.filter(|server| server.registered);
    servers.map(|server| server.record).collect()
}

fn expect_registered(cluster: &Cluster, pid: u32) {
    eventually("it is registered", || {
        registered(cluster).iter().any(|record| record.pid == pid)
    });
}

fn add_user(etcd: &Etcd, user: &str, password: &str) {
    let range = format!(
        r#"{{"name":"{user}","perm":{{"permType":"READWRITE","key":"{}","range_end":"{}"}}}}"#,
        base64("/login/"),
        base64("/login0"),
    );
    for (path, body) in [
        (
            "auth/user/add",
            r#"{"name":"root","password":"r"}"#.to_owned(),
        ),
        (
            "auth/user/add",
            format!(r#"{{"name":"{user}","password":"{password}"}}"#),
        ),
        ("auth/role/add", r#"{"name":"root"}"#.into()),
        ("auth/role/add", format!(r#"{{"name":"{user}"}}"#)),
        ("auth/role/grant", range),
        ("auth/user/grant", r#"{"user":"root","role":"root"}"#.into()),
        (
            "auth/user/grant",
            format!(r#"{{"user":"{user}","role":"{user}"}}"#),
        ),
        ("auth/enable", "{}".into()),
    ] {
        etcd.call(path, &body);
    }
}

#[test]
fn who_logs_in_is_served_and_the_password_is_seen_by_nobody() {
    let etcd = Etcd::start(1);
    add_user(&etcd, "llmlb", "s3cret");
    let url = etcd.url("login").to_string();
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("password");
    std::fs::write(&file, "s3cret\n").unwrap();
    let by_file = |command: &mut Command| {
        command.env("LLMLB_CLUSTER_USER", "llmlb");
        command.env("LLMLB_CLUSTER_PASSWORD_FILE", &file);
    };
    let by_word = |command: &mut Command, word: &str| {
        command.env("LLMLB_CLUSTER_USER", "llmlb");
        command.env("LLMLB_CLUSTER_PASSWORD", word);
    };
    let mut command = serve(&sandbox, &url, free_port(), &EXCLUSIVE);
    by_word(&mut command, "s3cret");
    let mut server = Running::start(&mut command);
    let (pid, token) = serving(&mut server);
    assert!(token.is_some());
    let known = ClusterUrl::parse(&url)
        .unwrap()
        .with_user("llmlb", "s3cret");
    expect_registered(&Cluster::connect(&known).unwrap(), pid);
    for pid in [server.pid(), pid] {
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!words.contains("s3cret"), "{words}");
    }
    // The server, and the watchdog.
    let all = children(server.pid());
    assert!(all.contains(&pid) && all.len() == 2, "{all:?}");
    for pid in all {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(
            !String::from_utf8_lossy(&environ).contains("s3cret"),
            "{pid}"
        );
    }

    let run = |args: &[&str], login: &dyn Fn(&mut Command)| {
        let mut command = sandbox.llmlb(args);
        login(&mut command);
        Finished::of(command.output().unwrap())
    };
    let status = ["status", "--cluster", &url];
    for nobody in [
        &(|_: &mut Command| ()) as &dyn Fn(&mut Command),
        &|command| {
            by_word(command, "wr0ng");
        },
    ] {
        let refused = run(&status, nobody).expect(1);
        assert!(refused.stderr.contains("password"), "{refused:?}");
        assert!(!refused.stderr.contains("wr0ng"), "{refused:?}");
    }
    let shown = run(&status, &by_file).expect(0).stdout;
    assert!(shown.contains(&pid.to_string()), "{shown}");
    let check = run(&["cluster", "check", "--cluster", &url], &by_file).expect(0);
    assert!(check.stdout.contains("rights"), "{check:?}");
    let stop = [
        "stop",
        "--cluster",
        &url,
        "--service",
        "chat",
        "--timeout",
        "60",
    ];
    run(&stop, &by_file).expect(0);
    assert!(!is_running(pid));
}

#[test]
fn with_tls_and_a_client_certificate_all_commands_work_and_hints_can_be_typed() {
    let (dir, sandbox) = (scratch(), Sandbox::new());
    let [ca, cert, key] = certificates(dir.path(), "etcd");
    let etcd = Etcd::start_with(1, &client_certificates(&ca, &cert, &key));
    let (ca, cert, key) = (ca.display(), cert.display(), key.display());
    let bare = format!("etcds://127.0.0.1:{}/tls", etcd.nodes[0].port);
    let url = format!("{bare}?ca={ca}&cert={cert}&key={key}");
    eventually("etcd is up", || {
        sandbox.run(["status", "--cluster", &url]).code == Some(0)
    });
    sandbox.run(["status", "--cluster", &bare]).expect(1);
    let mut server = Running::start(&mut serve(&sandbox, &url, free_port(), &EXCLUSIVE));
    let (pid, _) = serving(&mut server);
    let refused = Running::start(&mut serve(&sandbox, &url, free_port(), &EXCLUSIVE));
    let refused = refused.finish().expect(1).stderr;
    let hint = refused
        .lines()
        .find_map(|line| line.strip_prefix("To stop: "));
    // As it is typed into a shell, where & would be more than a letter.
    let mut typed = Command::new("sh");
    typed
        .args(["-c", hint.unwrap()])
        .env("PATH", path_with_llmlb());
    let stopped = Finished::of(typed.output().unwrap()).expect(0);
    assert!(
        stopped.stdout.contains("Server stopped successfully"),
        "{stopped:?}"
    );
    assert!(!is_running(pid));
    sandbox
        .run(["cluster", "check", "--cluster", &url])
        .expect(0);
}

fn path_with_llmlb() -> String {
    let llmlb = llmlb_tests::llmlb_binary()
        .parent()
        .unwrap()
        .display()
        .to_string();
    format!("{llmlb}:{}", std::env::var("PATH").unwrap())
}

#[test]
fn an_etcd_that_takes_connections_and_says_nothing_is_named_within_ten_seconds() {
    let silent = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = silent
        .each_ref()
        .map(|silent| silent.local_addr().unwrap().to_string());
    let url = format!("etcd://{}", addresses.join(","));
    let sandbox = Sandbox::new();
    let mut exclusive = serve(&sandbox, &url, free_port(), &EXCLUSIVE);
    let begun = Instant::now();
    let all = [
        Running::start(&mut exclusive),
        Running::start(&mut sandbox.llmlb(["status", "--cluster", &url])),
        Running::start(&mut sandbox.llmlb(["stop", "--cluster", &url, "--service", "chat"])),
        Running::start(&mut sandbox.llmlb(["cluster", "check", "--cluster", &url])),
    ];
    let ended = all.map(|one| one.finish().expect(1));
    // Half as long again as each of them may take, for a machine under load.
    assert!(begun.elapsed() < Duration::from_secs(15), "{ended:?}");
    for address in &addresses {
        for refused in &ended {
            let said = refused.stdout.clone() + &refused.stderr;
            assert!(said.contains(address), "{refused:?}");
        }
        let line = format!("wrong etcd {address}: ");
        assert!(ended[3].stdout.contains(&line), "{:?}", ended[3]);
    }
    assert_eq!(ended[3].stdout.lines().count(), 6, "{:?}", ended[3]);
    drop(silent);
}

/// All of it dies at once: llmlb, its watchdog and its server.
fn kill_all(server: &mut Running, pid: u32) {
    let children = children(server.pid());
    assert!(children.len() == 2 && children.contains(&pid));
    signal_pid(server.pid(), Signal::SIGSTOP);
    for child in children {
        signal_pid(child, Signal::SIGKILL);
    }
    server.kill();
}

#[test]
fn a_standby_takes_over_within_the_ttl_and_with_a_lock_delay_that_much_later() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    let url = etcd.url("takeover").to_string();
    let standby = |more: &[&str]| {
        let options = [&EXCLUSIVE[..], &["--wait"], more].concat();
        let mut standby = Running::start(&mut serve(&sandbox, &url, free_port(), &options));
        standby.expect_log("Waiting: Service chat is active");
        standby
    };
    let mut active = Running::start(&mut serve(&sandbox, &url, free_port(), &EXCLUSIVE));
    let (mut pid, mut token) = serving(&mut active);
    within(Duration::from_secs(4), || {
        let mut next = standby(&[]);
        let begun = Instant::now();
        kill_all(&mut active, pid);
        let (next_pid, next_token) = serving(&mut next);
        let took = begun.elapsed();
        assert!(next_token > token);
        // The TTL counts from the last beat, which is up to a third of it old.
        assert!(took > Duration::from_secs(2), "{took:?}");
        (active, pid, token) = (next, next_pid, next_token);
        took
    });

    let mut third = standby(&["--lock-delay", "3"]);
    let begun = Instant::now();
    kill_all(&mut active, pid);
    let (third_pid, _) = serving(&mut third);
    let delayed = begun.elapsed();
    assert!(delayed > Duration::from_secs(5), "{delayed:?}");
    assert!(delayed < Duration::from_secs(10), "{delayed:?}");

    // Where it ended in good order, there is nothing to wait for.
    let mut fourth = standby(&["--lock-delay", "600"]);
    third.ask_to_end();
    serving(&mut fourth);
    assert!(!is_running(third_pid));
}

#[test]
fn in_the_background_it_returns_when_it_serves_and_is_stopped_from_elsewhere() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    let (url, cluster) = (etcd.url("detach").to_string(), etcd.cluster("detach"));
    let port = free_port();
    for options in [&[][..], &EXCLUSIVE] {
        let options = [options, &["--detach"]].concat();
        let started = serve(&sandbox, &url, port, &options).output().unwrap();
        Finished::of(started).expect(0);
        let pid = sandbox.named_pid(port);
        expect_registered(&cluster, pid);
        if options.contains(&"--exclusive") {
            // Why it is refused is said where it was typed.
            let second = serve(&sandbox, &url, free_port(), &options)
                .output()
                .unwrap();
            let refused = Finished::of(second).expect(1).stderr;
            assert!(
                refused.contains("ERROR Service chat is active on"),
                "{refused}"
            );
        }
        let stop = [
            "stop",
            "--cluster",
            &url,
            "--service",
            "chat",
            "--timeout",
            "60",
        ];
        sandbox.run(stop).expect(0);
        assert!(!is_running(pid));
        eventually("the port is free", || !sandbox.lock_file(port).exists());
    }
}

#[test]
fn a_server_that_is_started_again_is_registered_again_under_the_same_token() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    for (prefix, options) in [("found", &[][..]), ("exclusive", &EXCLUSIVE)] {
        let (url, cluster) = (etcd.url(prefix).to_string(), etcd.cluster(prefix));
        let options = [options, &["--restart", "on-failure"]].concat();
        let mut llmlb = Running::start(&mut serve(&sandbox, &url, free_port(), &options));
        let (pid, token) = serving(&mut llmlb);
        expect_registered(&cluster, pid);
        signal_pid(pid, Signal::SIGKILL);
        let (again, same) = serving(&mut llmlb);
        assert_eq!(token, same);
        expect_registered(&cluster, again);
        assert_eq!(registered(&cluster).len(), 1);
        // The watchdog has the new one.
        llmlb.kill();
        if options.contains(&"--exclusive") {
            eventually("it is gone", || !is_running(again));
        }
    }
}

#[test]
fn who_replaces_a_server_is_registered_in_its_place() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    let (url, cluster) = (etcd.url("replace").to_string(), etcd.cluster("replace"));
    let port = free_port();
    let mut first = Running::start(&mut serve(&sandbox, &url, port, &[]));
    let (pid, _) = serving(&mut first);
    expect_registered(&cluster, pid);
    let mut second = Running::start(&mut serve(&sandbox, &url, port, &["--replace"]));
    let (pid, _) = serving(&mut second);
    first.wait();
    expect_registered(&cluster, pid);
    assert_eq!(registered(&cluster).len(), 1);

    // The active one of a service is replaced by an active one.
    let third = [&["--replace"], &EXCLUSIVE[..]].concat();
    let mut active = Running::start(&mut serve(&sandbox, &url, port, &third));
    let (pid, token) = serving(&mut active);
    second.wait();
    expect_registered(&cluster, pid);
    let fourth = [&third[..], &["--wait", "60"]].concat();
    let mut fourth = Running::start(&mut serve(&sandbox, &url, port, &fourth));
    let (pid, later) = serving(&mut fourth);
    assert!(later > token);
    expect_registered(&cluster, pid);

    // A load balancer takes over without closing the port, and the record follows.
    let port = free_port();
    let text = port.to_string();
    let balancer = |more: &[&str]| {
        let args = [
            "serve",
            "--port",
            &text,
            "--cluster",
            &url,
            "--service",
            "chat",
        ];
        let mut running = Running::start(sandbox.llmlb(args).args(more));
        running.expect_log("listening on");
        running
    };
    let mut old = balancer(&[]);
    expect_registered(&cluster, old.pid());
    let new = balancer(&["--replace"]);
    old.wait();
    expect_registered(&cluster, new.pid());
    assert_eq!(registered(&cluster).len(), 2);
}

#[test]
fn one_file_says_all_of_an_exclusive_balancer() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    let (one, two) = (Backend::named("one", &["m"]), Backend::named("two", &["m"]));
    let (port, path) = (free_port(), sandbox.path().join("llmlb.toml"));
    let url = etcd.url("file").to_string();
    let put = |ttl: u32, backend: &Backend| {
        let text = format!(
            "port = {port}\ncluster = \"{url}\"\nservice = \"front\"\nexclusive = true\n\
             ttl = {ttl}\ndrain-timeout = 0.5\nadvertise = \"http://gpu1:1\"\n\
             [[backend]]\nurl = \"{}\"\n",
            backend.url()
        );
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    put(1, &one);
    let said = [path.to_str().unwrap(), "--check"];
    let check = |code| {
        sandbox
            .run([&["serve", "--config"], &said[..]].concat())
            .expect(code)
    };
    let refused = check(2);
    assert!(refused.stderr.contains("TTL of 1 s"), "{refused:?}");
    put(3, &one);
    let fine = format!("Nothing is wrong: port {port}, 1 backend\n");
    assert_eq!(check(0).stdout, fine);

    let config = ["serve", "--config", said[0]];
    let mut balancer = Running::start(&mut sandbox.llmlb(config));
    balancer.expect_log("listening on");
    let front = Front { port };
    assert_eq!(front.chat("m").body, b"one");
    // It asks nobody, so it does not matter who is active.
    assert_eq!(check(0).stdout, fine);
    let refused = sandbox.run([&config[..], &["--port", "0"]].concat());
    let refused = refused.expect(1).stderr;
    let words = "Error: Service front is active on gpu1:";
    assert!(refused.contains(words), "{refused}");

    // What is read again is so in the load balancer, which is a child.
    put(4, &two);
    balancer.signal(Signal::SIGHUP);
    balancer.expect_log("says something else of ttl: that takes llmlb serve --replace");
    eventually("the other backend", || front.chat("m").body == b"two");
    let stop = ["stop", "--cluster", &url, "--service", "front"];
    sandbox
        .run([&stop[..], &["--timeout", "60"]].concat())
        .expect(0);
    balancer.finish().expect(0);
}
