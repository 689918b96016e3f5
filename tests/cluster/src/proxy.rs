//! A TCP proxy before one node of etcd that delays, holds back, cuts and doubles what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What it does wrong; may be changed at any time.
#[derive(Default)]
pub struct Faults {
    /// Refuses connections, and has cut those there were.
    cut: AtomicBool,
    /// Takes everything and passes nothing on, until it is unset: then all of it, late.
    pub hold: AtomicBool,
    /// Milliseconds that requests are late.
    pub delay_requests: AtomicU64,
    /// Milliseconds that answers are late.
    pub delay_answers: AtomicU64,
    /// Every answer comes twice.
    pub double_answers: AtomicBool,
    /// Requests are passed on, and the connection is closed when the answer comes.
    pub cut_answers: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

pub struct Proxy {
    pub port: u16,
    pub faults: Arc<Faults>,
}

impl Proxy {
    pub fn start(node: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let faults = Arc::new(Faults::default());
        let shared = Arc::clone(&faults);
        let node = SocketAddr::from(([127, 0, 0, 1], node));
        thread::spawn(move || accept(&listener, node, &shared));
        Self { port, faults }
    }
}

impl Faults {
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
        if cut {
            self.close_all();
        }
    }

    pub fn heal(&self) {
        self.cut(false);
        self.hold.store(false, Ordering::SeqCst);
        self.delay_requests.store(0, Ordering::SeqCst);
        self.delay_answers.store(0, Ordering::SeqCst);
        self.double_answers.store(false, Ordering::SeqCst);
        self.cut_answers.store(false, Ordering::SeqCst);
    }

    pub fn close_all(&self) {
        for stream in self.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.faults.ended.store(true, Ordering::SeqCst);
        self.faults.cut(true);
        // So that the accept ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn accept(listener: &TcpListener, node: SocketAddr, faults: &Arc<Faults>) {
    for client in listener.incoming() {
        if faults.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if faults.cut.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(server) = TcpStream::connect_timeout(&node, Duration::from_secs(2)) else {
            continue;
        };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        {
            let mut open = faults.open.lock().expect("no panic");
            open.retain(|stream| stream.peer_addr().is_ok());
            open.extend([clone(&client), clone(&server)]);
        }
        let (to, from) = (clone(&server), clone(&client));
        let shared = Arc::clone(faults);
        thread::spawn(move || pump(from, to, &shared, true));
        let shared = Arc::clone(faults);
        thread::spawn(move || pump(server, client, &shared, false));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, faults: &Faults, requests: bool) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        if !requests && faults.cut_answers.load(Ordering::SeqCst) {
            break;
        }
        let delay = if requests {
            &faults.delay_requests
        } else {
            &faults.delay_answers
        };
        thread::sleep(Duration::from_millis(delay.load(Ordering::SeqCst)));
        while faults.hold.load(Ordering::SeqCst) && !faults.ended.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        let twice = !requests && faults.double_answers.load(Ordering::SeqCst);
        for _ in 0..=usize::from(twice) {
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
