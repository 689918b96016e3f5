//! What one backend of three costs that fails, measured where its servers can be had: on Unix.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(unix)]
mod measure;

fn main() {
    #[cfg(unix)]
    measure::main();
}
