//! A small process that kills the server when its guardian is dead or its time is over, however
//! stopped the guardian is.
//!
//! ```text
//! guardian (llmlb) ──socket── watchdog         tied by a socket: either notices the other's end
//!     └── gate, which becomes the server       tied by a handle (pidfd), and all it starts
//! ```
//!
//! 1. [`Watchdog::start`], before the server, and before anything is acquired.
//! 2. [`Watchdog::gate`]: the server is started through a gate, a process that waits, and becomes
//!    the server only when the watchdog has a handle of it. Whoever dies on the way, no server runs
//!    unwatched.
//! 3. Each renewal tells the watchdog the new deadline; each is answered, so that a watchdog that
//!    is stopped is noticed.
//!
//! The deadline is a message, not shared memory: what the guardian has written the watchdog finds
//! in the socket though the guardian was stopped since; and no page is shared with a process that
//! may be broken.
//!
//! A program runs both as hidden subcommands of itself, before it does anything else:
//! [`run`] and [`pass_gate`].

mod channel;
mod dog;
mod gate;
mod guardian;

pub use channel::ServerKin;
pub use dog::run;
pub use gate::{Gate, pass_gate};
pub use guardian::Watchdog;
