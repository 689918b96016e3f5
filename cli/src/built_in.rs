//! The built-in server: joins the load balancer to the lock, the arguments, the signals, and to the
//! servers before and after it on the same port.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use llmlb_gateway::{BackendSet, Gateway, Options, raise_descriptor_limit};
use llmlb_lock_core::{LockInfo, ServerLock};
use serde_json::{Map, Value};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::args::ServeArgs;
use crate::backends::{Follower, Sources};
use crate::certificates::Certificates;
use crate::config;
use crate::exit::{self, Failure};
use crate::guard::{announce_shutdown, feed_watchdog, notify_ready};
use crate::hangup::Hangups;
use crate::own_address;
use crate::ready::{Probe, Readiness};
use crate::signals::{Shutdown, die_of};
use crate::succession::{Course, Predecessor, Succession};

/// How much longer a predecessor may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// A load balancer that knows its backends and has yet to be given a port.
pub(crate) struct Prepared {
    gateway: Gateway,
    backends: Follower,
    certificates: Certificates,
}

impl Prepared {
    /// Looks at the backends, which takes a second at most. Or the signal that came first. It is to
    /// listen on these addresses.
    pub(crate) async fn new(
        args: &ServeArgs,
        listening: &[SocketAddr],
        shutdown: &mut Shutdown,
    ) -> Result<Result<Self, i32>, Failure> {
        raise_descriptor_limit();
        let options = options(args)?;
        let files = args.gateway.certificate_files();
        // Files may take their time, and a signal is not to wait for them.
        let opened = tokio::select! {
            opened = spawn_blocking(move || files.open()) => opened,
            signal = shutdown.recv() => return Ok(Err(signal)),
        };
        let opened = opened.map_err(|e| Failure::new(exit::FAILURE, e))?;
        let certificates = opened.map_err(|problem| Failure::new(exit::USAGE, problem))?;
        let gateway = Gateway::new(certificates.give(options)).map_err(failed)?;
        let sources = sources(args, listening);
        let listening = listening.to_vec();
        let look_around = async {
            // Files and names may take their time.
            let start = move || {
                let backends = Follower::start(sources)?;
                own_address::refuse(&backends.sets().borrow(), &listening)?;
                Ok::<_, String>(backends)
            };
            let backends = spawn_blocking(start).await;
            let backends = backends.map_err(|e| Failure::new(exit::FAILURE, e))?;
            let backends = backends.map_err(|e| Failure::new(exit::USAGE, e))?;
            gateway.follow(backends.sets()).await;
            Ok::<_, Failure>(backends)
        };
        let backends = tokio::select! {
            backends = look_around => backends?,
            signal = shutdown.recv() => return Ok(Err(signal)),
        };
        Ok(Ok(Self {
            gateway,
            backends,
            certificates,
        }))
    }
}

/// What [`Prepared::new`] looks at before it asks anybody: how many backends are named.
pub(crate) fn check(args: &ServeArgs, listening: SocketAddr) -> Result<usize, Failure> {
    let files = args.gateway.certificate_files();
    files
        .open()
        .map_err(|problem| Failure::new(exit::USAGE, problem))?;
    Gateway::new(options(args)?).map_err(failed)?;
    let usage = |problem: String| Failure::new(exit::USAGE, problem);
    let named = sources(args, &[listening]).named().map_err(usage)?;
    let count = named.len();
    let backends: BackendSet = named.into_iter().collect();
    own_address::refuse(&backends, &[listening]).map_err(usage)?;
    Ok(count)
}

fn options(args: &ServeArgs) -> Result<Options, Failure> {
    let options = args.gateway.options();
    options.map_err(|problem| Failure::new(exit::USAGE, problem))
}

/// Where its backends come from, of which none may be this server.
fn sources(args: &ServeArgs, listening: &[SocketAddr]) -> Sources {
    let config = args.config.as_deref().map(config::file);
    let cluster = args.cluster.cluster.as_deref();
    let mut sources = args.gateway.sources(config, cluster);
    sources.refuse_own(listening);
    sources
}

/// Serves on a port that was free, as what is prepared where it is already.
pub(crate) async fn run(
    lock: ServerLock,
    listener: TcpListener,
    prepared: Option<Prepared>,
    args: &ServeArgs,
    readiness: &Readiness,
    mut shutdown: Shutdown,
    mut hangups: Hangups,
) -> Result<u8, Failure> {
    // Those who connect wait meanwhile.
    let listening = [listener.local_addr().map_err(failed)?];
    let prepared = match prepared {
        Some(prepared) => Ok(prepared),
        None => {
            let preparing = Prepared::new(args, &listening, &mut shutdown);
            hangups.during(preparing).await?
        }
    };
    let Ok(prepared) = prepared else {
        announce_shutdown();
        lock.release()?;
        return Ok(exit::OK);
    };
    let info = lock.info().clone();
    let succession = Succession::first(lock, listener);
    serve(
        prepared, succession, &info, args, readiness, shutdown, hangups,
    )
    .await
}

/// Serves on a port that another process guards for this one, as `info` says.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for clusters"))]
pub(crate) async fn run_guarded(
    info: &LockInfo,
    listener: TcpListener,
    args: &ServeArgs,
    mut shutdown: Shutdown,
    mut hangups: Hangups,
) -> Result<u8, Failure> {
    let listening = [listener.local_addr().map_err(failed)?];
    let prepared = hangups.during(Prepared::new(args, &listening, &mut shutdown));
    let Ok(prepared) = prepared.await? else {
        return Ok(exit::OK);
    };
    let succession = Succession::guarded(listener);
    serve(
        prepared,
        succession,
        info,
        args,
        &Readiness::new(),
        shutdown,
        hangups,
    )
    .await
}

/// Serves until a signal says to end, or a successor has taken over.
pub(crate) async fn serve(
    prepared: Prepared,
    mut succession: Succession,
    info: &LockInfo,
    args: &ServeArgs,
    readiness: &Readiness,
    mut shutdown: Shutdown,
    mut hangups: Hangups,
) -> Result<u8, Failure> {
    let gateway = &prepared.gateway;
    let listener = succession.listener().map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() && !args.gateway.asks_for_key() {
        warn!(
            "{address} can be reached from other machines, and nobody is asked for a key: set \
             --api-key, or listen on 127.0.0.1"
        );
    }
    gateway.describe(description(info));
    let mut reloads = std::pin::pin!(async {
        loop {
            hangups.recv().await;
            let reads = [prepared.backends.reload(), prepared.certificates.reload()];
            if reads == [false; 2] {
                info!("There is no file to read again: see --config and --backends-file");
            }
        }
    });
    let mut server = std::pin::pin!(gateway.serve(listener));
    info!("listening on {address}");
    if prepared.backends.sets().borrow().is_empty() {
        let why = if prepared.backends.is_expecting() {
            "to yet: what was given stands for none so far"
        } else {
            "to: see --backend"
        };
        warn!("No model servers to pass requests on {why}");
    }
    notify_ready();
    let own = std::process::id();
    readiness.reached(own);
    let probe = Probe {
        server: own,
        launcher: own,
        port: address.port(),
        host: address.ip().to_string(),
        url: None,
    };
    let course = tokio::select! {
        result = &mut server => {
            result.map_err(failed)?;
            return Err(Failure::new(exit::FAILURE, "the server ended by itself"));
        }
        course = succession.reign(gateway, &mut shutdown) => course,
        () = &mut reloads => return Err(Failure::new(exit::FAILURE, "no more signals")),
        never = feed_watchdog(|| probe.is_healthy()) => match never {},
        never = prepared.certificates.follow() => match never {},
    };
    readiness.lost();
    let mut served = false;
    let mut _standing = None;
    let (lock, mut predecessor) = match course {
        Course::Shutdown => {
            announce_shutdown();
            gateway.leave_soon();
            let delay = args.gateway.drain_delay();
            if !delay.is_zero() {
                tokio::select! {
                    () = sleep(delay) => {}
                    _ = shutdown.recv() => {}
                    _ = &mut server => served = true,
                }
            }
            let (lock, predecessor) = succession.end();
            (lock, predecessor)
        }
        Course::Succeeded(mut successor) => {
            info!("A successor serves; ending with the last request that came here");
            let mut predecessor = succession.retire(gateway);
            let ended = async {
                let _ = (&mut server).await;
                served = true;
                gone(&mut predecessor).await;
            };
            tokio::select! {
                () = ended => {
                    readiness.untold().await;
                    return Ok(exit::OK);
                }
                _ = shutdown.recv() => {}
                _ = successor.fate() => {}
            }
            // It waits for the end of this process, not of this conversation.
            _standing = Some(successor);
            (None, predecessor)
        }
    };
    if let Some(predecessor) = &predecessor {
        predecessor.dismiss().await;
    }
    gateway.drain();
    let until = Instant::now() + args.drain_timeout;
    let mut forced = None;
    let finished = tokio::select! {
        // The server first, in any case: it closes its port.
        biased;
        result = &mut server, if !served => {
            result.map_err(failed)?;
            true
        }
        () = std::future::ready(()), if served => true,
        () = sleep_until(until) => {
            warn!("Requests still in flight after {:?} were cut off", args.drain_timeout);
            false
        }
        signal = shutdown.recv() => {
            warn!("Second signal, ending at once");
            forced = Some(signal);
            false
        }
    };
    if !finished {
        gateway.cut();
        server.await.map_err(failed)?;
    }
    // It has had the same time.
    let _ = timeout_at(until + GRACE, gone(&mut predecessor)).await;
    readiness.untold().await;
    if let Some(lock) = lock {
        lock.release()?;
    }
    Ok(forced.map_or(exit::OK, die_of))
}

async fn gone(predecessor: &mut Option<Predecessor>) {
    if let Some(predecessor) = predecessor {
        predecessor.gone().await;
    }
}

fn failed(e: io::Error) -> Failure {
    Failure::new(exit::FAILURE, format!("cannot serve: {e}"))
}

/// `/health` says what the lock file does.
fn description(info: &LockInfo) -> Vec<(String, Value)> {
    let fields = match serde_json::to_value(info) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let told = ["pid", "started_at", "port"];
    told.into_iter()
        .filter_map(|name| Some((name.to_owned(), fields.get(name)?.clone())))
        .collect()
}
