//! Real etcd, one node or several, on loopback, with its data below `target`.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use llmlb_lock_cluster::{Cluster, ClusterUrl, Interrupt};

/// An etcd of one or more nodes.
pub struct Etcd {
    pub nodes: Vec<Node>,
    dir: TempDir,
}

pub struct Node {
    pub port: u16,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

/// `LLMLB_ETCD`, or what `make etcd` has put below `target`, or the one on the PATH.
pub fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("LLMLB_ETCD") {
        return named.into();
    }
    let fetched = crate::bin_dir().join("../etcd/etcd");
    if fetched.exists() {
        return fetched;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|file| file.exists())
        .expect("these tests need etcd: run `make etcd`, or set LLMLB_ETCD")
}

/// Without waiting for the disk, where it can do without: what is killed leaves its writes to the
/// kernel, and disks of busy machines take seconds.
fn no_fsync() -> Option<String> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let help = Command::new(binary()).arg("--help").output();
        let help = help.expect("etcd can be run");
        let text = [help.stdout, help.stderr].concat();
        String::from_utf8_lossy(&text).contains("--unsafe-no-fsync")
    });
    known.then(|| "--unsafe-no-fsync".to_owned())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
        .port()
}

impl Etcd {
    /// With these further arguments.
    pub fn start_with(count: usize, extra: &[String]) -> Self {
        Self::start_on(count, extra, |_| ())
    }

    /// With what `prepare` does to it before its nodes are started.
    pub fn start_on(count: usize, extra: &[String], prepare: impl Fn(&Self)) -> Self {
        // Another may take a port that was free: then once more.
        for _ in 0..5 {
            let mut etcd = Self::prepare(count, extra);
            prepare(&etcd);
            for node in &mut etcd.nodes {
                node.start();
            }
            if etcd.is_up() {
                return etcd;
            }
        }
        panic!("etcd does not start")
    }

    pub fn start(count: usize) -> Self {
        Self::start_with(count, &[])
    }

    fn prepare(count: usize, extra: &[String]) -> Self {
        let dir = crate::scratch();
        let tls = extra.iter().any(|arg| arg.starts_with("--cert-file"));
        let scheme = if tls { "https" } else { "http" };
        let ports: Vec<_> = (0..count).map(|_| (free_port(), free_port())).collect();
        let members: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(i, (_, peer))| format!("n{i}=http://127.0.0.1:{peer}"))
            .collect();
        let nodes = ports
            .iter()
            .enumerate()
            .map(|(i, (client, peer))| {
                let args = [
                    ("--name", format!("n{i}")),
                    (
                        "--data-dir",
                        dir.path().join(format!("n{i}")).display().to_string(),
                    ),
                    (
                        "--listen-client-urls",
                        format!("{scheme}://127.0.0.1:{client}"),
                    ),
                    (
                        "--advertise-client-urls",
                        format!("{scheme}://127.0.0.1:{client}"),
                    ),
                    ("--listen-peer-urls", format!("http://127.0.0.1:{peer}")),
                    (
                        "--initial-advertise-peer-urls",
                        format!("http://127.0.0.1:{peer}"),
                    ),
                    ("--initial-cluster", members.join(",")),
                    ("--heartbeat-interval", "50".into()),
                    ("--election-timeout", "500".into()),
                ];
                Node {
                    port: *client,
                    args: args
                        .into_iter()
                        .flat_map(|(name, value)| [name.to_owned(), value])
                        .chain(extra.iter().cloned())
                        .chain(no_fsync())
                        .collect(),
                    log: dir.path().join(format!("n{i}.log")),
                    child: None,
                }
            })
            .collect();
        Self { nodes, dir }
    }

    /// A majority answers; tests of TLS and login look by their own means.
    fn is_up(&mut self) -> bool {
        for _ in 0..1200 {
            if self.nodes.iter_mut().any(Node::has_ended) {
                return false;
            }
            let reachable = |node: &Node| TcpStream::connect(("127.0.0.1", node.port)).is_ok();
            if self.nodes.iter().all(reachable) && self.agrees() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        false
    }

    fn agrees(&self) -> bool {
        if self.nodes[0]
            .args
            .iter()
            .any(|arg| arg.starts_with("--cert-file"))
        {
            return true;
        }
        let check = self.cluster("up").check(&Interrupt::new());
        check.is_ok_and(|check| check.quorum.is_ok())
    }

    pub fn url(&self, prefix: &str) -> ClusterUrl {
        let hosts: Vec<_> = self
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        ClusterUrl::parse(&format!("etcd://{}/{prefix}", hosts.join(","))).expect("a good URL")
    }

    pub fn cluster(&self, prefix: &str) -> Cluster {
        Cluster::connect(&self.url(prefix)).expect("no certificates")
    }

    /// A request that llmlb would not make, of the first node that answers.
    pub fn call(&self, path: &str, body: &str) -> String {
        self.try_call(path, body).expect("a node answers")
    }

    /// The same where nodes may be ending.
    pub fn try_call(&self, path: &str, body: &str) -> std::io::Result<String> {
        let mut answers = self.nodes.iter();
        let mut ask = || Some(ask(answers.next()?.port, &format!("POST /v3/{path}"), body));
        let mut last = ask().expect("it has a node");
        while let (true, Some(next)) = (last.is_err(), ask()) {
            last = next;
        }
        last
    }

    /// Another of its pages.
    pub fn get(&self, path: &str) -> String {
        ask(self.nodes[0].port, &format!("GET {path}"), "").expect("it answers")
    }

    /// A file below its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn ask(port: u16, how: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "{how} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(answer),
        false => Err(std::io::Error::other(answer)),
    }
}

pub fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    text.as_bytes()
        .chunks(3)
        .flat_map(|chunk| {
            let bits = (0..3).fold(0u32, |n, i| {
                (n << 8) | u32::from(*chunk.get(i).unwrap_or(&0))
            });
            (0..4).map(move |i| {
                if i <= chunk.len() {
                    char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63])
                } else {
                    '='
                }
            })
        })
        .collect()
}

impl Node {
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log can be written");
        let child = Command::new(crate::guinea())
            .arg("die-with-parent")
            .arg(binary())
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("cluster-guinea is built with the tests");
        self.child = Some(child);
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
        }
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let pid = i32::try_from(child.id()).expect("a PID");
            kill(Pid::from_raw(pid), signal).expect("it is ours");
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_none_or(|child| child.try_wait().expect("it is ours").is_some())
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(Path::new(&self.log)) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<_> = log.lines().rev().take(5).collect();
            eprintln!("etcd on port {}: {last:#?}", self.port);
        }
        self.kill();
    }
}
