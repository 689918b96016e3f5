//! Guards a port until its standard input is closed: `hold PORT`.

use std::io::{Read, Write};

use llmlb_lock_core::ServerLock;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).ok_or("usage: hold PORT")?.parse()?;
    let lock = match ServerLock::acquire(port) {
        Ok(lock) => lock,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    };
    println!("{}", lock.info().pid);
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    lock.release()?;
    Ok(())
}
