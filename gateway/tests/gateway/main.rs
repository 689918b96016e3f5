//! The load balancer through its public face, before servers that do exactly what a test needs.
//!
//! What needs the program around it (the lock, signals, logs, file descriptors of its own) is
//! tested with the program.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(unix)]

mod asking;
mod choosing;
mod deadlines;
mod ejecting;
mod embedding;
mod failing;
mod following;
mod hanging;
mod live;
mod loops;
mod naming;
mod ollama;
mod passing;
mod preflights;
mod protocol;
mod queueing;
mod repeating;
mod seen;
mod starting;
mod staying;
mod support;
mod tls;
mod uploads;
mod workers;
