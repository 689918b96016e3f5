//! A load balancer as its clients see it, however it is run.

use std::collections::HashMap;
use std::net::TcpStream;

use serde_json::Value;

use crate::wait_until;
use crate::wire::{Message, Wire, chat};

/// What serves at a port.
#[derive(Debug, Clone, Copy)]
pub struct Front {
    pub port: u16,
}

impl Front {
    pub fn connect(&self) -> Wire {
        Wire::connect(self.port)
    }

    pub fn get(&self, path: &str) -> Message {
        self.connect().ask("GET", path, "", b"")
    }

    pub fn chat(&self, model: &str) -> Message {
        self.connect()
            .ask("POST", "/v1/chat/completions", "", &chat(model))
    }

    pub fn health(&self) -> Value {
        self.get("/health").json()
    }

    /// Waits until its backends are in these states.
    pub fn wait_for_states(&self, states: &[&str]) {
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
    pub fn wait_for_in_flight(&self, backend: usize, count: u64) {
        wait_until(&format!("{count} in flight"), || {
            (self.health()["backends"][backend]["in_flight"] == count).then_some(())
        });
    }

    pub fn wait_until_port_refuses(&self) {
        wait_until("the port to refuse connections", || {
            TcpStream::connect(("127.0.0.1", self.port))
                .is_err()
                .then_some(())
        });
    }

    /// The samples of `/metrics`.
    pub fn metrics(&self) -> HashMap<String, f64> {
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
