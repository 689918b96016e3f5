//! `llmlb serve`: the lock first, waited for or taken over, then a server under it. The server is
//! another room's: `built_in` or `supervise`.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llmlb_lock_core::{LeftOver, LockDir, LockError, ServerLock, StopOptions, StopOutcome};
#[cfg(unix)]
use tracing::error;
use tracing::{info, warn};

use crate::args::{FOR_EVER, ServeArgs};
use crate::built_in::Prepared;
#[cfg(target_os = "linux")]
use crate::cluster::Membership;
#[cfg(unix)]
use crate::detach::{self, Detached, Side};
use crate::exit::{self, Failure};
use crate::hangup::Hangups;
use crate::ready::Readiness;
use crate::signals::{Shutdown, die_of};
use crate::{built_in, check, log, output, supervise};
#[cfg(unix)]
use crate::{signals::survive_file_size_limit, succession::Succession};

/// How long what a killed server has left behind gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) fn run(args: ServeArgs) -> Result<u8, Failure> {
    // An empty variable where the command was meant to be must not become another server.
    if args.command.is_empty() && std::env::args_os().any(|arg| arg == "--") {
        return Err(Failure::new(exit::USAGE, "no command behind the --"));
    }
    #[cfg(not(target_os = "linux"))]
    if args.cluster.is_wanted() {
        let message = "--service is there on Linux alone: clusters need its boot clock and pidfd";
        return Err(Failure::new(exit::USAGE, message));
    }
    #[cfg(windows)]
    if args.detach {
        let message = "--detach is not there on Windows: run it as a service, or with start /b";
        return Err(Failure::new(exit::USAGE, message));
    }
    #[cfg(windows)]
    if args.supervision.restart == crate::args::Restart::OnFailure {
        let message = "--restart is not there on Windows: run it as a service that is";
        return Err(Failure::new(exit::USAGE, message));
    }
    if args.check {
        return check::run(args);
    }
    #[cfg(unix)]
    survive_file_size_limit();
    #[cfg(unix)]
    let detached = match args.detach {
        true => match detach::detach(args.log_file.as_deref())? {
            Side::Background(detached) => Some(detached),
            Side::Foreground(result) => return result,
        },
        false => None,
    };
    run_to_end(serve(
        args,
        #[cfg(unix)]
        detached,
    ))
}

/// Runs a server on this thread. A file that can't be read to its end keeps it from ending no more
/// than from stopping.
pub(crate) fn run_to_end(server: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(exit::FAILURE, format!("cannot start: {e}")))?;
    // After --detach, which forks.
    log::hold_nobody_up();
    let result = runtime.block_on(server);
    runtime.shutdown_background();
    result
}

async fn serve(
    #[cfg_attr(not(target_os = "linux"), expect(unused_mut))] mut args: ServeArgs,
    #[cfg(unix)] mut detached: Option<Detached>,
) -> Result<u8, Failure> {
    let deaf = |e| Failure::new(exit::FAILURE, format!("cannot listen for signals: {e}"));
    let mut shutdown = Shutdown::listen().map_err(deaf)?;
    let mut hangups = Hangups::listen().map_err(deaf)?;
    let locks = LockDir::default();
    let readiness = Readiness::new();
    // A free port is known only once it is bound; any other is bound under its lock.
    let free = match args.port {
        0 => Some(bind(&args.host, 0)?),
        _ => None,
    };
    let port = match &free {
        Some(listener) => local_port(listener)?,
        None => args.port,
    };
    #[cfg(target_os = "linux")]
    let mut membership = Membership::join(&mut args, port)?;
    let obtaining = async {
        let obtained = obtain(&locks, port, &args, &mut shutdown).await?;
        clear_left_overs(obtained, &mut shutdown).await
    };
    let obtained = hangups.during(obtaining).await?;
    #[cfg(unix)]
    if let (Some(detached), Some(lock)) = (&mut detached, obtained.lock()) {
        detached.open_log(lock)?;
    }
    #[cfg(unix)]
    let attended = match (detached, obtained.lock()) {
        (Some(detached), Some(lock)) => {
            let awaited = supervise::awaited(port, &args);
            Some(detached.attend(readiness.watch(), lock.info().clone(), awaited))
        }
        _ => None,
    };
    #[cfg(target_os = "linux")]
    if let Some(membership) = &mut membership {
        membership.hear_stops()?;
    }
    #[cfg(target_os = "linux")]
    let (watch, membership) = (readiness.watch(), membership.as_ref());
    #[cfg(target_os = "linux")]
    let registering = async {
        match membership {
            Some(membership) => membership.follow(watch).await,
            None => std::future::pending().await,
        }
    };
    #[cfg(not(target_os = "linux"))]
    let registering = std::future::pending::<()>();
    let serving = async {
        let (lock, prepared) = match obtained {
            Obtained::Lock(lock, prepared) => (lock, prepared),
            #[cfg(unix)]
            Obtained::Succession(prepared, succession) => {
                let info = succession.lock().map(|lock| lock.info().clone());
                let info =
                    info.ok_or_else(|| Failure::new(exit::FAILURE, "no lock came with it"))?;
                let (prepared, succession) = (*prepared, *succession);
                return built_in::serve(
                    prepared, succession, &info, &args, &readiness, shutdown, hangups,
                )
                .await;
            }
            Obtained::Interrupted(signal) => return Ok(die_of(signal)),
        };
        if !args.command.is_empty() {
            drop(free);
            #[cfg(target_os = "linux")]
            let active = match membership.map(|membership| (membership, membership.timing)) {
                Some((membership, Some(timing))) => {
                    supervise::check_command(&args.command[0])?;
                    let acquiring = membership.acquire(&args, timing, &mut shutdown);
                    match hangups.during(acquiring).await? {
                        Ok(active) => Some(active),
                        Err(signal) => {
                            lock.release()?;
                            return Ok(die_of(signal));
                        }
                    }
                }
                _ => None,
            };
            #[cfg(not(target_os = "linux"))]
            let active = None;
            return supervise::run(lock, &args, &readiness, active, shutdown, hangups).await;
        }
        let listener = match free {
            Some(listener) => listener,
            None => bind(&args.host, port)?,
        };
        let prepared = prepared.map(|prepared| *prepared);
        built_in::run(
            lock, listener, prepared, &args, &readiness, shutdown, hangups,
        )
        .await
    };
    let serving = async {
        tokio::select! {
            result = serving => result,
            () = registering => Err(Failure::new(exit::FAILURE, "the registration ended")),
        }
    };
    #[cfg(unix)]
    if let Some(attended) = attended {
        let result = tokio::select! {
            result = serving => result,
            failed = attended => failed,
        };
        // Nobody has typed this: why it failed is one more line of the log.
        return result.or_else(|failure| {
            error!("{}", failure.message);
            Ok(failure.code)
        });
    }
    serving.await
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

pub(crate) fn bind(host: &str, port: u16) -> Result<TcpListener, Failure> {
    let (addresses, wanted) = resolve(host, port)?;
    listen(&addresses, &wanted)
}

/// What it would listen on, tried at a port that nobody wants.
pub(crate) fn try_host(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let (mut addresses, wanted) = resolve(host, port)?;
    addresses.iter_mut().for_each(|address| address.set_port(0));
    let tried = listen(&addresses, &wanted)?.local_addr();
    let mut address = tried.map_err(|e| Failure::new(exit::FAILURE, e))?;
    if port != 0 {
        address.set_port(port);
    }
    Ok(address)
}

fn listen(addresses: &[SocketAddr], wanted: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(addresses).map_err(|e| {
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
    /// With what is to serve under it, where that had to be ready before another was ended.
    Lock(ServerLock, Option<Box<Prepared>>),
    /// With the port, from the server that was there.
    #[cfg(unix)]
    Succession(Box<Prepared>, Box<Succession>),
    /// By this signal, while waiting.
    Interrupted(i32),
}

#[cfg(unix)]
impl Obtained {
    fn lock(&self) -> Option<&ServerLock> {
        match self {
            Self::Lock(lock, _) => Some(lock),
            Self::Succession(_, succession) => succession.lock(),
            Self::Interrupted(_) => None,
        }
    }
}

/// Takes the lock, as patiently or forcefully as the arguments say.
async fn obtain(
    locks: &LockDir,
    port: u16,
    args: &ServeArgs,
    shutdown: &mut Shutdown,
) -> Result<Obtained, Failure> {
    let mut refused = match locks.acquire(port) {
        Ok(lock) => return Ok(Obtained::Lock(lock, None)),
        Err(e) => e,
    };
    if matches!(refused, LockError::HeldByUnknown { .. }) {
        match end_left_overs(locks, port, shutdown).await? {
            Finished::Done(ended) => {
                if ended? {
                    match locks.acquire(port) {
                        Ok(lock) => return Ok(Obtained::Lock(lock, None)),
                        Err(e) => refused = e,
                    }
                }
            }
            Finished::Interrupted(signal) => return Ok(Obtained::Interrupted(signal)),
        }
    }
    let holder = match &refused {
        LockError::AlreadyRunning { pid, .. } => format!("(PID: {pid})"),
        LockError::HeldByUnknown { .. } => "(PID unknown)".to_owned(),
        _ => return Err(refused.into()),
    };
    if args.replace {
        // A successor that can't start is no reason to end a server that runs.
        #[cfg_attr(not(unix), expect(unused_mut))]
        let mut prepared = match prepare(locks, port, args, shutdown).await? {
            Ok(prepared) => prepared,
            Err(signal) => return Ok(Obtained::Interrupted(signal)),
        };
        #[cfg(unix)]
        if prepared.is_some()
            && let Some(succession) = succeed(locks, port, args).await?
            && let Some(prepared) = prepared.take()
        {
            return Ok(Obtained::Succession(prepared, Box::new(succession)));
        }
        let mut options = StopOptions::default();
        options.timeout = args.wait.unwrap_or(options.timeout);
        info!("Stopping server on port {port} {holder} to take its place...");
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
        return Ok(Obtained::Lock(locks.acquire(port)?, prepared));
    }
    let Some(patience) = args.wait else {
        return Err(refused.into());
    };
    let limit = match patience {
        FOR_EVER => "for ever".to_owned(),
        patience => format!("up to {patience:?}"),
    };
    info!("Waiting {limit} for server on port {port} {holder} to leave...");
    let locks = locks.clone();
    let wait = move |interrupted: &AtomicBool| {
        locks.acquire_interruptible(port, patience, || interrupted.load(Ordering::Relaxed))
    };
    match interruptible(shutdown, wait).await? {
        Finished::Done(Ok(lock)) => Ok(Obtained::Lock(lock, None)),
        Finished::Done(Err(e)) => {
            warn!("Waited {patience:?} in vain");
            Err(e.into())
        }
        Finished::Interrupted(signal) => Ok(Obtained::Interrupted(signal)),
    }
}

/// A lock that another has may be one that this process can only see.
#[cfg(unix)]
fn check_lock(path: &std::path::Path) -> Result<(), Failure> {
    use nix::errno::Errno;
    use nix::fcntl::{AT_FDCWD, AtFlags};
    use nix::unistd::{AccessFlags, faccessat};
    match faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS) {
        Err(e @ Errno::EROFS) => {
            let path = path.display();
            let e = io::Error::from(e);
            let message = format!("cannot take the present server's place: {path}: {e}");
            Err(Failure::new(exit::FAILURE, message))
        }
        _ => Ok(()),
    }
}

/// Looks at what `--check` looks at, and has the load balancer ready if this is to be one. Or the
/// signal that came first.
async fn prepare(
    #[cfg_attr(not(unix), expect(unused))] locks: &LockDir,
    port: u16,
    args: &ServeArgs,
    shutdown: &mut Shutdown,
) -> Result<Result<Option<Box<Prepared>>, i32>, Failure> {
    #[cfg(unix)]
    check_lock(&locks.lock_path(port))?;
    #[cfg(unix)]
    if args.detach {
        detach::check_log(args.log_file.as_deref(), locks, port)?;
    }
    if let Some(program) = args.command.first() {
        supervise::check_command(program)?;
        if supervise::is_typed(args) {
            return Ok(Ok(None));
        }
    }
    try_host(&args.host, port)?;
    let (listening, _) = resolve(&args.host, port)?;
    let prepared = Prepared::new(args, &listening, shutdown).await?;
    // A guarded one gets ready by itself.
    Ok(prepared.map(|prepared| args.command.is_empty().then(|| Box::new(prepared))))
}

/// Nothing is started beside what a killed server has left on this port.
async fn clear_left_overs(
    obtained: Obtained,
    shutdown: &mut Shutdown,
) -> Result<Obtained, Failure> {
    let Obtained::Lock(lock, prepared) = obtained else {
        return Ok(obtained);
    };
    let port = lock.info().port;
    let clear = |_: &AtomicBool| lock.end_left_overs(GRACE).map(|ended| (lock, ended));
    match interruptible(shutdown, clear).await? {
        Finished::Done(result) => {
            let (lock, ended) = result?;
            tell_ended(port, &ended);
            Ok(Obtained::Lock(lock, prepared))
        }
        Finished::Interrupted(signal) => Ok(Obtained::Interrupted(signal)),
    }
}

/// Whether a lock without a live server was held by what that had left behind, and is no more.
async fn end_left_overs(
    locks: &LockDir,
    port: u16,
    shutdown: &mut Shutdown,
) -> Result<Finished<bool>, Failure> {
    let locks = locks.clone();
    let end = move |_: &AtomicBool| locks.end_left_overs(port, GRACE);
    Ok(match interruptible(shutdown, end).await? {
        Finished::Done(result) => Finished::Done(result.map(|ended| {
            tell_ended(port, &ended);
            !ended.is_empty()
        })),
        Finished::Interrupted(signal) => Finished::Interrupted(signal),
    })
}

/// Who was ended before a server could start.
fn tell_ended(port: u16, ended: &[LeftOver]) {
    if !ended.is_empty() {
        let processes = output::processes(ended);
        warn!("Ended {processes}, left behind by a killed server on port {port}");
    }
}

/// Takes the port over from a built-in server, if there is one.
#[cfg(unix)]
async fn succeed(
    locks: &LockDir,
    port: u16,
    args: &ServeArgs,
) -> Result<Option<Succession>, Failure> {
    if !Succession::is_possible(locks, port) {
        return Ok(None);
    }
    let (wanted, _) = resolve(&args.host, port)?;
    Ok(Succession::succeed(locks, port, &wanted, args.wait).await)
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
