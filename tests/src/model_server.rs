//! Model servers that do exactly what a test needs.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::PATIENCE;
use crate::wire::{Message, Wire, answer};

/// What a backend does with a request. The connection goes on when it says so.
type Handler = dyn Fn(Message, &mut Wire) -> Next + Send + Sync;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Read,
    Close,
}

/// A port of its own that refuses connections until it is made to listen.
pub struct Port(Socket);

impl Port {
    pub fn reserve() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).unwrap();
        Self(socket)
    }

    /// The same, where several come one after the other, in tests on Unix.
    #[cfg(unix)]
    pub fn reserve_for_several() -> Self {
        Self::shared(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// For one of them.
    #[cfg(unix)]
    pub fn again(&self) -> Self {
        Self::shared(self.address())
    }

    #[cfg(unix)]
    fn shared(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    fn listen(self) -> TcpListener {
        self.0.listen(128).unwrap();
        self.0.into()
    }
}

/// A model server that tells what it was asked.
pub struct Backend {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
}

impl Backend {
    /// Answers health checks, lists these models (none: does not list any), and leaves all else to
    /// the handler.
    pub fn start(
        models: &[&str],
        handler: impl Fn(Message, &mut Wire) -> Next + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(Port::reserve(), models, handler)
    }

    pub fn start_at(
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
    pub fn bare(
        port: Port,
        handler: impl Fn(Message, &mut Wire) -> Next + Send + Sync + 'static,
    ) -> Self {
        let listener = port.listen();
        let address = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let handler: Arc<Handler> = Arc::new(handler);
        let accepting = {
            let (stopped, seen) = (Arc::clone(&stopped), Arc::clone(&seen));
            let connections = Arc::clone(&connections);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    let (handler, seen) = (Arc::clone(&handler), Arc::clone(&seen));
                    let stream = stream.unwrap();
                    connections.fetch_add(1, Ordering::SeqCst);
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
            connections,
        }
    }

    /// How many connections it was given so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Answers everything with its name.
    pub fn named(name: &'static str, models: &[&str]) -> Self {
        Self::start(models, move |_, wire| {
            wire.send(answer("200 OK", "", name));
            Next::Read
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far, without the gateway's own.
    pub fn requests(&self) -> Vec<Message> {
        let seen = self.seen.lock().unwrap();
        let own = |m: &&Message| m.header("user-agent") != Some("llmlb");
        seen.iter().filter(own).cloned().collect()
    }

    /// Refuses connections from now on.
    pub fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            self.stopped.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.address);
            accepting.join().unwrap();
        }
    }
}

/// A gate that a backend waits at until the test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    /// Lets one more through.
    pub fn open(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
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
