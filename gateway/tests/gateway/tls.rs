//! The same with TLS: to clients, and to backends.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use llmlb_gateway::{BackendTls, ServerTls};
use llmlb_tests::certificates::{Authority, Identity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::{Backend, Gate, Gateway, Next, STREAM, Wire, chat, chunk, once, wait_until};

fn store(authority: &Authority) -> Arc<RootCertStore> {
    let certificate = CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap();
    let mut store = RootCertStore::empty();
    store.add(certificate).unwrap();
    Arc::new(store)
}

/// For one that trusts this authority, and shows this.
fn backends(authority: &Authority, own: Option<&Identity>) -> BackendTls {
    let trusting = BackendTls::new()
        .trusting(authority.pem.as_bytes())
        .unwrap();
    match own {
        Some((certificate, key)) => trusting
            .showing(certificate.as_bytes(), key.as_bytes())
            .unwrap(),
        None => trusting,
    }
}

fn der((certificate, key): &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    (
        vec![certificate],
        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    )
}

/// For a server that shows this.
fn server((certificate, key): &Identity) -> ServerTls {
    ServerTls::new(certificate.as_bytes(), key.as_bytes()).unwrap()
}

fn in_a_thread<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(work());
    });
}

/// A client that takes whoever is at this port for `localhost`, if this authority says so. What the
/// server shows is put down.
fn client(authority: &Authority, port: u16) -> (Wire, Arc<Mutex<Vec<Vec<u8>>>>) {
    let near = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let wire = Wire::connect(near.local_addr().unwrap().port());
    let (end, _) = near.accept().unwrap();
    let roots = store(authority);
    let shown = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&shown);
    in_a_thread(move || async move {
        end.set_nonblocking(true).unwrap();
        let mut end = TcpStream::from_std(end).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
        let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let Ok(mut far) = connector.connect(name, far).await else {
            return;
        };
        let certificates = far.get_ref().1.peer_certificates().unwrap();
        seen.lock().unwrap().push(certificates[0].to_vec());
        let _ = copy_bidirectional(&mut end, &mut far).await;
    });
    (wire, shown)
}

/// Speaks TLS in front of a backend. Tells which names were asked for, nothing where none was.
fn before(backend: &Backend, config: ServerConfig) -> (String, Arc<Mutex<Vec<Option<String>>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let names = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&names);
    let plain = backend.url().replace("http://", "");
    in_a_thread(move || async move {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, asked, plain) = (acceptor.clone(), Arc::clone(&asked), plain.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                asked.lock().unwrap().push(name);
                let mut far = TcpStream::connect(plain).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut far).await;
            });
        }
    });
    (format!("https://localhost:{port}"), names)
}

fn shows(identity: &Identity) -> ServerConfig {
    let (chain, key) = der(identity);
    let config = ServerConfig::builder().with_no_client_auth();
    config.with_single_cert(chain, key).unwrap()
}

#[test]
fn clients_are_served_as_without() {
    let backend = Backend::start(&["m"], |request, wire| {
        if request.body == b"stream" {
            wire.send(STREAM);
            wire.send(chunk("first"));
            wire.send(chunk("last"));
            wire.send("0\r\n\r\n");
        } else {
            let scheme = request.header("x-forwarded-proto").unwrap().to_owned();
            wire.send(crate::support::answer("200 OK", "", &scheme));
        }
        Next::Read
    });
    let authority = Authority::new();
    let tls = server(&authority.certify(&["localhost"]));
    let gateway = Gateway::with(&[backend.url()], once().tls(Some(tls)));
    let (mut wire, _) = client(&authority, gateway.port);
    for pause in [0, 0, 300, 300] {
        // Longer than it takes to be quiet.
        thread::sleep(Duration::from_millis(pause));
        let told = wire.ask("POST", "/v1/x", "", b"x");
        assert_eq!((told.status(), &*told.body), (200, &b"https"[..]));
    }
    let request = crate::support::request("POST", "/v1/x", "", b"stream");
    // Cut anywhere, as records are.
    for piece in request.chunks(7) {
        wire.send(piece);
    }
    let told = wire.message().unwrap();
    assert_eq!(told.body, b"firstlast");
    // Big ones, both ways.
    let big = vec![b'x'; 3 << 20];
    assert_eq!(wire.ask("POST", "/v1/x", "", &big).status(), 200);
    assert_eq!(backend.requests().last().unwrap().body.len(), big.len());
    // Who does not speak it is no client; nor is one that others vouch for taken for the server.
    let mut plain = gateway.connect();
    plain.send(crate::support::request("GET", "/health", "", b""));
    plain.finish_sending();
    let mut answered = Vec::new();
    while !plain.is_at_end() {
        answered.extend(plain.read_exact(1));
    }
    assert!(!answered.starts_with(b"HTTP"), "{answered:?}");
    let (mut stranger, _) = client(&Authority::new(), gateway.port);
    stranger.send(crate::support::request("GET", "/health", "", b""));
    assert!(stranger.message().is_none());
    // The end is told, and so is that of who only waits.
    gateway.drain();
    assert!(wire.is_at_end());
}

#[test]
fn another_certificate_is_shown_from_the_next_connection_on() {
    let authority = Authority::new();
    let (first, second) = (
        authority.certify(&["localhost"]),
        authority.certify(&["localhost"]),
    );
    let tls = server(&first);
    let backend = Backend::named("b", &["m"]);
    let gateway = Gateway::with(&[backend.url()], once().tls(Some(tls.clone())));
    let shown = |identity: &Identity| {
        let (mut wire, shown) = client(&authority, gateway.port);
        assert_eq!(wire.ask("GET", "/health", "", b"").status(), 200);
        assert_eq!(*shown.lock().unwrap(), [der(identity).0[0].to_vec()]);
        wire
    };
    let mut before = shown(&first);
    let problem = tls.replace(first.0.as_bytes(), second.1.as_bytes());
    assert_eq!(
        problem.unwrap_err().to_string(),
        "the key is not the certificate's"
    );
    for (certificate, key) in [("", &*first.1), (&*first.0, ""), ("-----BEGIN", &*first.1)] {
        assert!(tls.replace(certificate.as_bytes(), key.as_bytes()).is_err());
    }
    shown(&first);
    tls.replace(second.0.as_bytes(), second.1.as_bytes())
        .unwrap();
    shown(&second);
    assert_eq!(before.ask("GET", "/health", "", b"").status(), 200);
}

#[test]
fn backends_are_asked_by_their_name() {
    let authority = Authority::new();
    let backend = Backend::named("b", &["m"]);
    let (url, names) = before(&backend, shows(&authority.certify(&["localhost"])));
    let options = once().backend_tls(backends(&authority, None));
    let gateway = Gateway::with(std::slice::from_ref(&url), options);
    let mut wire = gateway.connect();
    for _ in 0..3 {
        let told = wire.ask("POST", "/v1/chat/completions", "", &chat("m"));
        assert_eq!((told.status(), &*told.body), (200, &b"b"[..]));
    }
    let host = url.strip_prefix("https://").unwrap();
    assert_eq!(backend.requests()[0].header("host"), Some(host));
    let names = names.lock().unwrap();
    assert!(
        names
            .iter()
            .all(|name| name.as_deref() == Some("localhost"))
    );
    // Four looks, and a connection that is used again.
    assert!(names.len() <= 5, "{names:?}");
}

#[test]
fn a_backend_that_is_not_whom_it_says_is_sent_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let backend = Backend::named("b", &["m"]);
    let right = authority.certify(&["localhost"]);
    for (identity, roots) in [
        (authority.certify(&["other.example"]), &authority),
        (right.clone(), &other),
    ] {
        let (url, _) = before(&backend, shows(&identity));
        let gateway = Gateway::with(&[url], once().backend_tls(backends(roots, None)));
        let told = gateway.chat("m");
        assert!([502, 503].contains(&told.status()), "{}", told.status());
        let health = gateway.health();
        let problem = health["backends"][0]["problem"].as_str().unwrap();
        assert!(problem.contains("certificate"), "{problem}");
    }
    // Nor one that does not speak it.
    let url = backend.url().replace("http://", "https://");
    let gateway = Gateway::with(&[url], once().backend_tls(backends(&authority, None)));
    assert!([502, 503].contains(&gateway.chat("m").status()));
    assert!(backend.requests().is_empty());
}

#[test]
fn a_backend_that_asks_is_shown_a_certificate() {
    let authority = Authority::new();
    let backend = Backend::named("b", &["m"]);
    let asking = || {
        let verifier = WebPkiClientVerifier::builder(store(&authority))
            .build()
            .unwrap();
        let (chain, key) = der(&authority.certify(&["localhost"]));
        let config = ServerConfig::builder().with_client_cert_verifier(verifier);
        config.with_single_cert(chain, key).unwrap()
    };
    let own = authority.certify(&["gateway"]);
    let stranger = Authority::new().certify(&["gateway"]);
    for (shown, status) in [(Some(&own), 200), (None, 503), (Some(&stranger), 503)] {
        let (url, _) = before(&backend, asking());
        let gateway = Gateway::with(&[url], once().backend_tls(backends(&authority, shown)));
        let told = gateway.chat("m").status();
        assert!(told == status || (status == 503 && told == 502), "{told}");
    }
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_greeting_that_stalls_keeps_nobody_waiting() {
    let authority = Authority::new();
    let tls = server(&authority.certify(&["localhost"]));
    let backend = Backend::named("b", &["m"]);
    let mut gateway = Gateway::with(&[backend.url()], once().tls(Some(tls)));
    let mut stalled: Vec<Wire> = (0..20).map(|_| gateway.connect()).collect();
    for wire in &mut stalled {
        wire.send([22, 3, 1]);
    }
    let (mut wire, _) = client(&authority, gateway.port);
    assert_eq!(wire.ask("GET", "/health", "", b"").status(), 200);
    gateway.drain();
    wait_until("those that stall to be let go", || {
        stalled.iter_mut().all(Wire::is_at_end).then_some(())
    });
    gateway.wait();
}

#[test]
fn who_says_that_it_leaves_and_stays_connected_has_left() {
    let gate = Gate::default();
    let waits = gate.clone();
    let backend = Backend::start(&["m"], move |_, _| {
        waits.pass();
        Next::Close
    });
    let authority = Authority::new();
    let tls = server(&authority.certify(&["localhost"]));
    let gateway = Gateway::with(&[backend.url()], once().tls(Some(tls)));
    let config = ClientConfig::builder().with_root_certificates(store(&authority));
    let config = Arc::new(config.with_no_client_auth());
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(config, name).unwrap();
    let socket = std::net::TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    let mut stream = StreamOwned::new(client, socket);
    let request = crate::support::request("POST", "/v1/chat/completions", "", &chat("m"));
    stream.write_all(&request).unwrap();
    let (mut looks, _) = self::client(&authority, gateway.port);
    let mut wait_for = |expected: u64| {
        wait_until("so many requests in flight", || {
            let health = looks.ask("GET", "/health", "", b"");
            let health: serde_json::Value = serde_json::from_slice(&health.body).unwrap();
            (health["backends"][0]["in_flight"] == expected).then_some(())
        });
    };
    wait_for(1);
    // As some do: the socket is closed only when the other side has said so, too.
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    wait_for(0);
    gate.open();
}
