//! A gateway to test, backends to put behind it, and a client that sees every byte.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// How long anything may take on a loaded machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A message's head and body.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) first_line: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// All values of a header, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub(crate) fn status(&self) -> u16 {
        self.first_line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The `code` of an OpenAI error, with its form checked.
    pub(crate) fn error_code(&self) -> String {
        let error = &self.json()["error"];
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
        assert!(error.get("param").is_some(), "{error}");
        error["code"].as_str().unwrap().to_owned()
    }
}

/// One end of a connection.
pub(crate) struct Wire {
    reader: BufReader<TcpStream>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    pub(crate) fn connect(port: u16) -> Self {
        Self::new(TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    /// To send and to receive at the same time.
    pub(crate) fn split(self) -> (Self, Self) {
        let other = self.reader.get_ref().try_clone().unwrap();
        (Self::new(other), self)
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref())
    }

    pub(crate) fn finish_sending(&mut self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Write);
    }

    /// The head of a message, or none at the connection's end.
    pub(crate) fn head(&mut self) -> Option<Message> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) => return None,
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return None,
                result => result.unwrap(),
            };
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let mut lines = lines.into_iter();
        let first_line = lines.next().unwrap();
        let split = |line: String| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_owned(), value.trim().to_owned())
        };
        Some(Message {
            first_line,
            headers: lines.map(split).collect(),
            body: Vec::new(),
        })
    }

    /// The next chunk of a chunked body: empty at its proper end, none at an improper one.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        match self.reader.read_line(&mut size) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut data = vec![0; size + 2];
        self.reader.read_exact(&mut data).ok()?;
        data.truncate(size);
        Some(data)
    }

    /// A whole message, or none if it breaks off.
    pub(crate) fn message(&mut self) -> Option<Message> {
        let head = self.head()?;
        self.finish(head)
    }

    fn finish(&mut self, mut message: Message) -> Option<Message> {
        if let Some(length) = message.header("content-length") {
            message.body = vec![0; length.parse().unwrap()];
            self.reader.read_exact(&mut message.body).ok()?;
        } else if message.header("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk()?;
                if chunk.is_empty() {
                    break;
                }
                message.body.extend(chunk);
            }
        }
        Some(message)
    }

    /// A request; of one that says `X-Raw`, the handler reads the body.
    fn request(&mut self) -> Option<Message> {
        let head = self.head()?;
        if head.header("x-raw").is_some() {
            return Some(head);
        }
        self.finish(head)
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Message {
        self.send(request(method, path, headers, body));
        self.message().expect("an answer")
    }

    pub(crate) fn read_exact(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.reader.read_exact(&mut data).unwrap();
        data
    }

    /// Whether the other end has gone; waits for that, or a byte.
    pub(crate) fn is_at_end(&mut self) -> bool {
        match self.reader.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

pub(crate) fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: llm.test\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

pub(crate) const STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

pub(crate) fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

pub(crate) fn chat(model: &str) -> Vec<u8> {
    format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],"model":"{model}"}}"#).into_bytes()
}

/// What a backend does with a request. The connection goes on when it says so.
type Handler = dyn Fn(Message, &mut Wire) -> Next + Send + Sync;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Read,
    Close,
}

/// A port of its own that refuses connections until it is made to listen.
pub(crate) struct Port(Socket);

impl Port {
    pub(crate) fn reserve() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    fn listen(self) -> TcpListener {
        self.0.listen(128).unwrap();
        self.0.into()
    }
}

/// A model server that tells what it was asked.
pub(crate) struct Backend {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<Message>>>,
}

impl Backend {
    /// Answers health checks, lists these models (none: does not list any), and leaves all else to
    /// the handler.
    pub(crate) fn start(
        models: &[&str],
        handler: impl Fn(Message, &mut Wire) -> Next + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(Port::reserve(), models, handler)
    }

    pub(crate) fn start_at(
        port: Port,
        models: &[&str],
        handler: impl Fn(Message, &mut Wire) -> Next + Send + Sync + 'static,
    ) -> Self {
        let entry = |id: &&str| serde_json::json!({ "id": id, "object": "model" });
        let data: Vec<Value> = models.iter().map(entry).collect();
        let list = serde_json::json!({ "object": "list", "data": data }).to_string();
        let listing = if models.is_empty() {
            answer("404 Not Found", "", "")
        } else {
            answer("200 OK", "", &list)
        };
        Self::bare(port, move |request, wire| {
            if request.header("user-agent") != Some("llmlb") {
                return handler(request, wire);
            }
            let healthy = request.first_line.contains("/health");
            wire.send(if healthy {
                answer("200 OK", "", "{}")
            } else {
                listing.clone()
            });
            Next::Read
        })
    }

    /// Leaves everything to the handler.
    pub(crate) fn bare(
        port: Port,
        handler: impl Fn(Message, &mut Wire) -> Next + Send + Sync + 'static,
    ) -> Self {
        let listener = port.listen();
        let address = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let accepting = {
            let (stopped, seen) = (Arc::clone(&stopped), Arc::clone(&seen));
            thread::spawn(move || {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    let (handler, seen) = (Arc::clone(&handler), Arc::clone(&seen));
                    let stream = stream.unwrap();
                    thread::spawn(move || {
                        let mut wire = Wire::new(stream);
                        while let Some(request) = wire.request() {
                            seen.lock().unwrap().push(request.clone());
                            if handler(request, &mut wire) == Next::Close {
                                break;
                            }
                        }
                    });
                }
            })
        };
        Self {
            address,
            stopped,
            accepting: Some(accepting),
            seen,
        }
    }

    /// Answers everything with its name.
    pub(crate) fn named(name: &'static str, models: &[&str]) -> Self {
        Self::start(models, move |_, wire| {
            wire.send(answer("200 OK", "", name));
            Next::Read
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far, without the gateway's own.
    pub(crate) fn requests(&self) -> Vec<Message> {
        let seen = self.seen.lock().unwrap();
        let own = |m: &&Message| m.header("user-agent") != Some("llmlb");
        seen.iter().filter(own).cloned().collect()
    }

    /// Refuses connections from now on.
    pub(crate) fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            self.stopped.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.address);
            accepting.join().unwrap();
        }
    }
}

/// A gate that a backend waits at until the test opens it.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    /// Lets one more through.
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    pub(crate) fn pass(&self) {
        let passes = self.0.0.lock().unwrap();
        let (mut passes, late) = self
            .0
            .1
            .wait_timeout_while(passes, PATIENCE, |passes| *passes == 0)
            .unwrap();
        assert!(!late.timed_out(), "waited in vain at a gate");
        *passes -= 1;
    }
}

/// `llmlb serve`, ended with the test.
pub(crate) struct Gateway {
    pub(crate) port: u16,
    child: Child,
    locks: TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    /// In front of these backends, whose health it looks at often.
    pub(crate) fn before(backends: &[String]) -> Self {
        Self::with(backends, &["--health-interval", "0.05"])
    }

    pub(crate) fn with(backends: &[String], args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmlb"));
        command.arg("serve");
        Self::spawn(command, backends, args)
    }

    pub(crate) fn logging(level: &str, backends: &[String]) -> Self {
        let mut command = Command::new("env");
        command.arg(format!("LLMLB_LOG={level}"));
        command.args([env!("CARGO_BIN_EXE_llmlb"), "serve"]);
        Self::spawn(command, backends, &[])
    }

    /// With this many file descriptors.
    pub(crate) fn limited(descriptors: usize, backends: &[String], args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {descriptors} && exec \"$0\" serve \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_llmlb")]);
        Self::spawn(command, backends, args)
    }

    fn spawn(mut command: Command, backends: &[String], args: &[&str]) -> Self {
        let locks = tempfile::tempdir().unwrap();
        command.args(["--port", "0"]).args(args);
        for url in backends {
            command.args(["--backend", url]);
        }
        clean(&mut command, &locks);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    log.lock().unwrap().push(line);
                }
            });
        }
        let mut gateway = Self {
            port: 0,
            child,
            locks,
            log,
        };
        let line = gateway.expect_log("listening on ");
        gateway.port = line.rsplit(':').next().unwrap().parse().unwrap();
        gateway
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn expect_log(&self, text: &str) -> String {
        wait_until(text, || {
            self.log().into_iter().find(|line| line.contains(text))
        })
    }

    pub(crate) fn connect(&self) -> Wire {
        Wire::connect(self.port)
    }

    pub(crate) fn get(&self, path: &str) -> Message {
        self.connect().ask("GET", path, "", b"")
    }

    pub(crate) fn chat(&self, model: &str) -> Message {
        self.connect()
            .ask("POST", "/v1/chat/completions", "", &chat(model))
    }

    pub(crate) fn health(&self) -> Value {
        self.get("/health").json()
    }

    /// Waits until its backends are in these states.
    pub(crate) fn wait_for_states(&self, states: &[&str]) {
        wait_until(&format!("backends to be {states:?}"), || {
            let health = self.health();
            let backends = health["backends"].as_array().unwrap();
            let now: Vec<_> = backends
                .iter()
                .map(|b| b["state"].as_str().unwrap())
                .collect();
            (now == states).then_some(())
        });
    }

    /// Waits until this many requests are in flight at a backend.
    pub(crate) fn wait_for_in_flight(&self, backend: usize, count: u64) {
        wait_until(&format!("{count} in flight"), || {
            (self.health()["backends"][backend]["in_flight"] == count).then_some(())
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        kill(pid, signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_until("the gateway to end", || self.child.try_wait().unwrap())
    }

    /// `llmlb stop` for it.
    pub(crate) fn stop_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmlb"));
        command
            .args(["stop", "--port", &self.port.to_string()])
            .args(args);
        clean(&mut command, &self.locks);
        command
    }

    pub(crate) fn lock_exists(&self) -> bool {
        let name = format!("serve_{}.lock", self.port);
        self.locks.path().join(name).exists()
    }

    pub(crate) fn wait_until_port_refuses(&self) {
        wait_until("the port to refuse connections", || {
            TcpStream::connect(("127.0.0.1", self.port))
                .is_err()
                .then_some(())
        });
    }

    /// The samples of `/metrics`.
    pub(crate) fn metrics(&self) -> HashMap<String, f64> {
        let answer = self.get("/metrics");
        assert_eq!(answer.status(), 200);
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        let text = String::from_utf8(answer.body).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let split = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        };
        samples.map(split).collect()
    }
}

fn clean(command: &mut Command, locks: &TempDir) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LLMLB_") {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET");
    command
        .env("LLMLB_LOCK_DIR", locks.path())
        .stdin(Stdio::null());
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("The gateway said:\n{}", self.log().join("\n"));
        }
    }
}
