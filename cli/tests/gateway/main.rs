//! `llmlb serve` as a load balancer, before servers that do exactly what a test needs.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(unix)]

mod access;
mod config;
mod draining;
mod failing;
mod limits;
mod operating;
mod sources;
mod support;
mod tls;
