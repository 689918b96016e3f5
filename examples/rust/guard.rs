//! Guards port 8000 for as long as it runs.

use llmlb_lock_core::{LockError, ServerLock};

fn main() -> Result<(), LockError> {
    let lock = ServerLock::acquire(8000)?; // or the error that names the holder
    println!(
        "guarding {} with {}",
        lock.info().port,
        lock.path().display()
    );
    lock.release() // dropping it does the same
}
