//! `llmlb serve`: the lock first, waited for or taken over, then a server under it. The server is
//! another room's: `gateway` or `supervise`.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llmlb_gateway::Gateway;
use llmlb_lock_core::{LockDir, LockError, ServerLock, StopOptions, StopOutcome};
use tracing::{info, warn};

use crate::args::ServeArgs;
use crate::exit::{self, Failure};
use crate::signals::Shutdown;
use crate::{output, supervise};

/// How often a server looks whether its lock file is still there.
const VERIFY_STEP: Duration = Duration::from_secs(2);

pub(crate) fn run(args: ServeArgs) -> Result<u8, Failure> {
    // An empty variable where the command was meant to be must not become another server.
    if args.command.is_empty() && std::env::args_os().any(|arg| arg == "--") {
        return Err(Failure::new(exit::USAGE, "no command behind the --"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(exit::FAILURE, format!("cannot start: {e}")))?;
    runtime.block_on(serve(args))
}

async fn serve(args: ServeArgs) -> Result<u8, Failure> {
    let mut shutdown = Shutdown::listen()
        .map_err(|e| Failure::new(exit::FAILURE, format!("cannot listen for signals: {e}")))?;
    let locks = LockDir::default();
    // A free port is known only once it is bound; any other is bound under its lock.
    let free = match args.port {
        0 => Some(bind(&args.host, 0)?),
        _ => None,
    };
    let port = match &free {
        Some(listener) => local_port(listener)?,
        None => args.port,
    };
    let lock = match obtain(&locks, port, &args, &mut shutdown).await? {
        Obtained::Lock(lock) => lock,
        Obtained::Interrupted(signal) => return Ok(exit::signalled(signal)),
    };
    if !args.command.is_empty() {
        drop(free);
        return supervise::run(lock, &args, shutdown).await;
    }
    let listener = match free {
        Some(listener) => listener,
        None => bind(&args.host, port)?,
    };
    built_in(lock, listener, &args, shutdown).await
}

async fn built_in(
    lock: ServerLock,
    listener: TcpListener,
    args: &ServeArgs,
    mut shutdown: Shutdown,
) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot serve: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let options = args.gateway.options();
    if !address.ip().is_loopback() && options.api_key.is_none() {
        warn!(
            "{address} can be reached from other machines, and nobody is asked for a key: set \
             --api-key, or listen on 127.0.0.1"
        );
    }
    let gateway = Gateway::new(lock.info().clone(), options).map_err(failed)?;
    tokio::select! {
        () = gateway.look_around() => {}
        _ = shutdown.recv() => {
            announce_shutdown();
            lock.release()?;
            return Ok(exit::OK);
        }
    }
    let mut server = std::pin::pin!(gateway.serve(listener));
    info!("listening on {address}");
    if gateway.has_no_backends() {
        warn!("No model servers to pass requests on to: see --backend");
    }
    supervise::notify_ready();
    tokio::select! {
        never = watch(&lock) => match never {},
        result = &mut server => {
            result.map_err(failed)?;
            return Err(Failure::new(exit::FAILURE, "the server ended by itself"));
        }
        _ = shutdown.recv() => {}
    }
    announce_shutdown();
    gateway.drain();
    let mut code = exit::OK;
    let finished = tokio::select! {
        // The server first, in any case: it closes its port.
        biased;
        result = &mut server => {
            result.map_err(failed)?;
            true
        }
        () = tokio::time::sleep(args.drain_timeout) => {
            warn!("Requests still in flight after {:?} were cut off", args.drain_timeout);
            false
        }
        signal = shutdown.recv() => {
            warn!("Second signal, ending at once");
            code = exit::signalled(signal);
            false
        }
    };
    if !finished {
        gateway.cut();
        server.await.map_err(failed)?;
    }
    lock.release()?;
    Ok(code)
}

/// Warns, once, when the lock file is no longer ours.
pub(crate) async fn watch(lock: &ServerLock) -> Infallible {
    loop {
        tokio::time::sleep(VERIFY_STEP).await;
        if let Err(e) = lock.verify() {
            warn!("{e}");
            return std::future::pending().await;
        }
    }
}

pub(crate) fn announce_shutdown() {
    info!("Received shutdown signal, cleaning up...");
    supervise::notify_stopping();
}

/// The addresses that a host's name stands for, and how to write them.
fn resolve(host: &str, port: u16) -> Result<(Vec<SocketAddr>, String), Failure> {
    // IPv6 addresses are written in brackets beside a port, and may be here.
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let wanted = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    match (host, port).to_socket_addrs() {
        Ok(addresses) => Ok((addresses.collect(), wanted)),
        Err(e) => {
            let message = format!("cannot listen on {wanted}: {e}");
            Err(Failure::new(exit::FAILURE, message))
        }
    }
}

fn bind(host: &str, port: u16) -> Result<TcpListener, Failure> {
    let (addresses, wanted) = resolve(host, port)?;
    let listener = TcpListener::bind(&*addresses);
    listener.map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::AddrInUse => {
                "; something that holds no lock here uses it, such as a server without llmlb, with \
                 another LLMLB_LOCK_DIR, or whose lock file was removed: end that one, or choose \
                 another --port"
            }
            _ => "",
        };
        Failure::new(
            exit::FAILURE,
            format!("cannot listen on {wanted}: {e}{hint}"),
        )
    })
}

fn local_port(listener: &TcpListener) -> Result<u16, Failure> {
    let address = listener.local_addr();
    address
        .map(|address| address.port())
        .map_err(|e| Failure::new(exit::FAILURE, e))
}

enum Obtained {
    Lock(ServerLock),
    /// By this signal, while waiting.
    Interrupted(i32),
}

/// Takes the lock, as patiently or forcefully as the arguments say.
async fn obtain(
    locks: &LockDir,
    port: u16,
    args: &ServeArgs,
    shutdown: &mut Shutdown,
) -> Result<Obtained, Failure> {
    let refused = match locks.acquire(port) {
        Ok(lock) => return Ok(Obtained::Lock(lock)),
        Err(e) => e,
    };
    let holder = match &refused {
        LockError::AlreadyRunning { pid, .. } => format!("(PID: {pid})"),
        LockError::HeldByUnknown { .. } => "(PID unknown)".to_owned(),
        _ => return Err(refused.into()),
    };
    if args.replace {
        // A successor that can't start is no reason to end a server that runs.
        match args.command.first() {
            Some(program) => supervise::check_command(program)?,
            None => drop(resolve(&args.host, port)?),
        }
        let mut options = StopOptions::default();
        options.timeout = args.wait.unwrap_or(options.timeout);
        output::note(&format!(
            "Stopping server on port {port} {holder} to take its place..."
        ));
        let stop = {
            let locks = locks.clone();
            move |interrupted: &AtomicBool| {
                let interrupted = || interrupted.load(Ordering::Relaxed);
                locks.stop_interruptible(port, &options, interrupted)
            }
        };
        match interruptible(shutdown, stop).await? {
            Finished::Done(Ok(StopOutcome::TimedOut { info })) => {
                return Err(Failure::new(
                    exit::FAILURE,
                    format!(
                        "Server on port {port} (PID: {}) still runs\n\n\
                         To wait longer: --replace --wait SECS\n\
                         To kill it:     llmlb stop --port {port} --force",
                        info.pid
                    ),
                ));
            }
            Finished::Done(result) => result?,
            Finished::Interrupted(signal) => return Ok(Obtained::Interrupted(signal)),
        };
        // Whoever slipped in between is named by the refusal.
        return Ok(Obtained::Lock(locks.acquire(port)?));
    }
    let Some(patience) = args.wait else {
        return Err(refused.into());
    };
    output::note(&format!(
        "Waiting up to {patience:?} for server on port {port} {holder} to leave..."
    ));
    let locks = locks.clone();
    let wait = move |interrupted: &AtomicBool| {
        locks.acquire_interruptible(port, patience, || interrupted.load(Ordering::Relaxed))
    };
    match interruptible(shutdown, wait).await? {
        Finished::Done(result) => Ok(Obtained::Lock(result?)),
        Finished::Interrupted(signal) => Ok(Obtained::Interrupted(signal)),
    }
}

enum Finished<T> {
    Done(Result<T, LockError>),
    Interrupted(i32),
}

/// Runs a blocking wait until it is done or a signal asks this process to end.
async fn interruptible<T: Send + 'static>(
    shutdown: &mut Shutdown,
    wait: impl FnOnce(&AtomicBool) -> Result<T, LockError> + Send + 'static,
) -> Result<Finished<T>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&interrupted);
    let mut task = tokio::task::spawn_blocking(move || wait(&seen));
    let (result, signal) = tokio::select! {
        result = &mut task => (result, None),
        signal = shutdown.recv() => {
            interrupted.store(true, Ordering::Relaxed);
            (task.await, Some(signal))
        }
    };
    let result = result.map_err(|e| Failure::new(exit::FAILURE, e))?;
    Ok(match signal {
        Some(signal) => Finished::Interrupted(signal),
        None => Finished::Done(result),
    })
}
