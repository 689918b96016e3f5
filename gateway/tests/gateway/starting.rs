//! Backends that start, and names that lead to several addresses.

use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use llmlb_gateway::Options;

use crate::support::{Backend, Gateway, Next, Port, Wire, answer, plain, wait_until};

/// So seldom looked at that a test which waits for that fails.
fn seldom() -> Options {
    plain()
        .health_interval(Duration::from_secs(600))
        .health_rise(100)
}

fn named(port: Port, name: &'static str) -> Backend {
    Backend::start_at(port, &["m"], move |_, wire| {
        wire.send(answer("200 OK", "", name));
        Next::Read
    })
}

#[test]
fn one_that_has_just_started_serves_at_once() {
    let port = Port::reserve();
    let gateway = Gateway::with(&[port.url()], seldom());
    gateway.wait_for_states(&["down"]);
    let _backend = named(port, "started");
    gateway.wait_for_states(&["up"]);
    assert_eq!(gateway.chat("m").body, b"started");
}

#[test]
fn one_that_was_stopped_and_started_again_serves_at_once() {
    let first = Started::at("127.0.0.1:0");
    let address = first.address.clone();
    let gateway = Gateway::with(&[format!("http://{address}")], seldom());
    assert_eq!(gateway.chat("m").status(), 200);
    drop(first);
    wait_until("it to be down", || {
        gateway.chat("m");
        (gateway.health()["backends"][0]["state"] == "down").then_some(())
    });
    let _again = Started::at(&address);
    gateway.wait_for_states(&["up"]);
    assert_eq!(gateway.chat("m").status(), 200);
}

/// A server whose port can be listened on again as soon as it has ended.
struct Started {
    address: String,
    serving: Option<JoinHandle<()>>,
}

impl Started {
    fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        Self {
            address: listener.local_addr().unwrap().to_string(),
            serving: Some(thread::spawn(move || serve(&listener))),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Which asks nothing.
        drop(TcpStream::connect(&self.address));
        self.serving.take().unwrap().join().unwrap();
    }
}

/// Answers one request on each connection, until one comes that asks nothing.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut wire = Wire::new(stream.unwrap());
        if wire.message().is_none() {
            return;
        }
        let body = "{\"data\":[{\"id\":\"m\"}]}";
        let _ = wire.try_send(answer("200 OK", "Connection: close\r\n", body));
        wire.finish_sending();
        wire.is_at_end();
    }
}

#[test]
fn a_name_with_an_address_that_refuses_is_served_by_its_other_one() {
    // On many machines, localhost is ::1 first.
    let backend = Backend::named("here", &["m"]);
    let url = backend.url().replace("127.0.0.1", "localhost");
    let gateway = Gateway::before(&[url]);
    gateway.wait_for_states(&["up"]);
    for _ in 0..3 {
        assert_eq!(gateway.chat("m").body, b"here");
    }
}
