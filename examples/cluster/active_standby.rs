//! A server of which one is active, and the others stand by, on any host:
//!
//!     active_standby ETCD_URL SERVICE HOST PORT
//!
//! Whoever asks it gets its fencing token. The server is this process: when the lease is lost it
//! ends at once, long before another may start, and if it can't, as it is stopped or hung, the
//! kernel kills it. `llmlb stop --cluster` ends it in good order.

#![cfg_attr(not(target_os = "linux"), allow(unused, reason = "clusters need it"))]

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, process, thread};

#[cfg(target_os = "linux")]
use llmlb_lock_cluster::{Cluster, ClusterError, ClusterUrl, Interrupt, Options, Record, Timing};

const LEASE_LOST: i32 = 6;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("clusters are there on Linux alone");
}

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [url, service, host, port] = &arguments[..] else {
        return Err("active_standby ETCD_URL SERVICE HOST PORT".into());
    };
    let cluster = Cluster::connect(&ClusterUrl::parse(url)?)?;
    let address = format!("127.0.0.1:{port}");
    let record = Record::new(service, host, port.parse()?).with_url(format!("http://{address}"));

    let timing = Timing::new(Duration::from_secs(3), Duration::from_millis(500))?;
    let options = Options::new(record, timing)
        .with_self_fencing()?
        .on_wait(|reason| println!("standby: {reason}"));
    let active = cluster.acquire_timeout(service, options, None)?;

    let listener = TcpListener::bind(&address)?;
    let ending = Arc::new(AtomicBool::new(false));
    let (token, ended) = (active.token(), Arc::clone(&ending));
    let server = thread::spawn(move || serve(&listener, token, &ended));
    let requests = cluster.stop_requests(active.record())?;
    let registration = cluster.register(active.record().clone())?;
    println!("active: token {token}");

    let stop = Interrupt::new();
    let stopper = stop.clone();
    thread::spawn(move || {
        // Also when it can't be heard any more: then it ends as well.
        let _ = requests.next(None, &Interrupt::new());
        stopper.interrupt();
    });
    match active.wait_lost_or(None, &stop) {
        Ok(Some(lost)) => {
            println!("lost: {lost}");
            process::exit(LEASE_LOST);
        }
        Ok(None) | Err(ClusterError::Interrupted) => {}
        Err(error) => return Err(error.into()),
    }

    // In this order: be found no more, have ended, and give the lease back.
    registration.withdraw();
    ending.store(true, Ordering::SeqCst);
    drop(std::net::TcpStream::connect(&address)); // to wake it
    server.join().map_err(|_| "the server has failed")??;
    active.release()?;
    println!("ended");
    Ok(())
}

fn serve(listener: &TcpListener, token: u64, ending: &AtomicBool) -> std::io::Result<()> {
    loop {
        let (mut client, _) = listener.accept()?;
        if ending.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut seen = Vec::new();
        let mut more = [0; 1024];
        while !seen.ends_with(b"\r\n\r\n") {
            match client.read(&mut more) {
                Ok(0) | Err(_) => break,
                Ok(n) => seen.extend_from_slice(&more[..n]),
            }
        }
        let body = format!("token {token}\n");
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        // Whoever has left has left.
        let _ = client.write_all((head + &body).as_bytes());
    }
}
