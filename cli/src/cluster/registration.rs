//! Lets a server be found while it is ready, and stops it where it is asked for from elsewhere.
//! Apart from serving, which waits for none of it: etcd that is away ends no server.

use std::future::pending;
use std::net::IpAddr;
use std::thread;

use hyper::Uri;
use llmlb_lock_cluster::{Interrupt, Record, Registration, Timing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::active::Token;
use super::connection::{Connection, failure};
use super::options::ClusterArgs;
use super::{guarded, models};
use crate::args::ServeArgs;
use crate::exit::{self, Failure};
use crate::ready::{Probe, Standing, Watch};

/// A server's place in its cluster.
pub(crate) struct Membership {
    pub(super) connection: Connection,
    pub(super) record: Record,
    ttl: std::time::Duration,
    /// Where it was told to listen.
    host: String,
    is_balancer: bool,
    listening_stop: Option<Interrupt>,
    /// Where at most one is active.
    pub(crate) timing: Option<Timing>,
    pub(super) token: Token,
}

impl Membership {
    /// Of the server on this port, if it is to have one. Asks nobody yet.
    fn new(args: &ServeArgs, port: u16) -> Result<Option<Self>, Failure> {
        let ClusterArgs { service, .. } = &args.cluster;
        let Some(service) = service else {
            return Ok(None);
        };
        let timing = match args.cluster.exclusive {
            true => Some(Timing::new(args.cluster.ttl, args.drain_timeout).map_err(failure)?),
            false => None,
        };
        let connection = Connection::open(args.cluster.cluster.as_deref())?;
        let record = record(service, args, port)?;
        Ok(Some(Self {
            connection,
            record,
            ttl: args.cluster.ttl,
            host: args.host.clone(),
            is_balancer: args.command.is_empty(),
            listening_stop: None,
            timing,
            token: Token::new(),
        }))
    }

    /// The same, and where the load balancer is to be exclusive it becomes a COMMAND.
    pub(crate) fn join(args: &mut ServeArgs, port: u16) -> Result<Option<Self>, Failure> {
        let membership = Self::new(args, port)?;
        if membership.as_ref().is_some_and(Self::is_exclusive) && args.command.is_empty() {
            guarded::prepare(args, port)?;
        }
        Ok(membership)
    }

    /// How to ask the server with this PID.
    fn probe(&self, server: u32) -> Probe {
        Probe {
            server,
            launcher: std::process::id(),
            port: self.record.port,
            host: self.host.clone(),
            url: None,
        }
    }

    /// Whether at most one server of its service is active.
    fn is_exclusive(&self) -> bool {
        self.timing.is_some()
    }

    /// Hears of requests to stop it, from now until this is dropped.
    pub(crate) fn hear_stops(&mut self) -> Result<(), Failure> {
        let requests = self.connection.cluster.stop_requests(&self.record);
        let requests = requests.map_err(failure)?;
        let interrupt = Interrupt::new();
        self.listening_stop = Some(interrupt.clone());
        thread::Builder::new()
            .name("llmlb-stops".into())
            .spawn(move || {
                let mut is_asked = false;
                while let Ok(Some(request)) = requests.next(None, &interrupt) {
                    info!("Stop asked for by {}", request.from);
                    // As if `kill` had been typed here: there is one way to end. Twice would be more
                    // than anybody who asks elsewhere has said.
                    if std::mem::replace(&mut is_asked, true) {
                        continue;
                    }
                    if let Err(e) = kill(Pid::this(), Signal::SIGTERM) {
                        warn!("Cannot carry it out: {e}");
                    }
                }
            })
            .map_err(|e| Failure::new(exit::FAILURE, format!("cannot start a thread: {e}")))?;
        Ok(())
    }

    /// Registers the server whenever it is ready, and withdraws it when it is no longer. Completes
    /// never.
    pub(crate) async fn follow(&self, mut readiness: Watch) {
        loop {
            let (pid, standing) = readiness.ready().await;
            let mut record = self.record.clone().with_pid(pid);
            if let Some(&token) = self.token.get() {
                record = record.with_token(token);
            }
            let registered = record.clone();
            let registration = self.connection.cluster.register_with_ttl(record, self.ttl);
            match registration {
                Ok(registration) => {
                    info!(
                        "Registering service {} at {}",
                        self.record.service, self.record.url
                    );
                    let known = Known(Some((registration, standing)));
                    let telling = async {
                        if let Some((registration, _)) = &known.0 {
                            let (probe, changes) = (self.probe(pid), self.is_balancer);
                            models::tell(registration, registered, &probe, changes).await;
                        }
                        pending::<()>().await;
                    };
                    tokio::select! {
                        () = readiness.lost() => {}
                        () = telling => {}
                    }
                    info!("Withdrawing service {}", self.record.service);
                    known.leave();
                    readiness.ended().await;
                    drop(known);
                }
                Err(e) => {
                    warn!("Cannot register service {}: {e}", self.record.service);
                    pending::<()>().await;
                }
            }
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(interrupt) = &self.listening_stop {
            interrupt.interrupt();
        }
    }
}

/// Withdrawing waits for etcd for a moment, beside what else is to be done.
struct Known(Option<(Registration, Standing)>);

impl Known {
    fn leave(&self) {
        if let Some((registration, _)) = &self.0 {
            registration.leave();
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Some((registration, standing)) = self.0.take() {
            spawn_blocking(move || {
                registration.withdraw();
                drop(standing);
            });
        }
    }
}

fn record(service: &str, args: &ServeArgs, port: u16) -> Result<Record, Failure> {
    let options = &args.cluster;
    let (host, url) = match &options.advertise {
        Some(url) => {
            let parsed: Uri = url.parse().unwrap_or_default();
            let host = parsed.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            (host.to_owned(), Some(url))
        }
        None => {
            let name = rustix::system::uname();
            (name.nodename().to_string_lossy().into_owned(), None)
        }
    };
    let alone =
        args.host == "localhost" || args.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if alone && url.is_none() {
        warn!(
            "The server is to listen on {}, where other hosts don't reach it: see --host and \
             --advertise",
            args.host
        );
    }
    let mut record = Record::new(service, host, port);
    if let Some(url) = url {
        record = record.with_url(url);
    } else if args.gateway.speaks_tls() {
        let url = record.url.replacen("http:", "https:", 1);
        record = record.with_url(url);
    }
    if let Some(slots) = options.slots {
        record = record.with_slots(slots);
    }
    record.validate().map_err(failure)?;
    Ok(record)
}
