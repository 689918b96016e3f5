//! Being the one active server of a service: refused or waited for, kept, given back. Apart from
//! being found, which ends no server.

use std::cell::OnceCell;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use llmlb_lock_cluster::watchdog::{self, ServerKin, Watchdog};
use llmlb_lock_cluster::{ClusterError, Exclusive, Interrupt, Lost, Options, Timing};
use llmlb_lock_core::{Offspring, SERVER_ID_ENV};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use super::connection::{PASSWORD_ENV, failure};
use super::registration::Membership;
use crate::args::{FOR_EVER, ServeArgs};
use crate::exit::{self, Failure};
use crate::output;
use crate::signals::Shutdown;

/// This very program, also when its file was replaced since.
pub(super) const OWN: &str = "/proc/self/exe";
const WATCHDOG: &str = "@watchdog";
const GATE: &str = "@gate";
const TOKEN_ENV: &str = "LLMLB_FENCING_TOKEN";

/// What the program does as one of its own hidden subcommands, with its exit code.
pub(crate) fn hidden_subcommand() -> Option<Result<u8, Failure>> {
    let mut args = std::env::args_os().skip(1);
    let name = args.next()?;
    if name == WATCHDOG {
        let result = watchdog::run();
        return Some(match result {
            Ok(()) => Ok(exit::OK),
            Err(e) => Err(Failure::new(exit::FAILURE, format!("the watchdog: {e}"))),
        });
    }
    if name != GATE {
        return None;
    }
    // Started by llmlb's main thread. Should the watchdog be killed with it, this is what is left;
    // alone it would not do, as it is the server's to undo, and no matter of time. Without a cgroup
    // it would hide from the watchdog who descends from the server, which is dead before it looks.
    if has_cgroup()
        && let Err(e) = set_parent_process_death_signal(Some(Signal::KILL))
    {
        let message = format!("cannot be tied to llmlb: {e}");
        return Some(Err(Failure::new(exit::FAILURE, message)));
    }
    let program = args.next()?;
    let mut command = Command::new(&program);
    if program == OWN {
        command.arg0("llmlb");
    }
    let error = watchdog::pass_gate(command.args(args));
    Some(Err(crate::supervise::cannot_run(&program, &error)))
}

/// Whether what this process is to start has a cgroup of its own, which bears the server's ID.
fn has_cgroup() -> bool {
    let id = std::env::var(SERVER_ID_ENV).unwrap_or_default();
    let groups = std::fs::read_to_string("/proc/self/cgroup");
    !id.is_empty() && groups.is_ok_and(|groups| groups.contains(&id))
}

/// The service is ours.
pub(crate) struct Active {
    exclusive: Arc<Exclusive>,
    lost: watch::Receiver<Option<Lost>>,
    interrupt: Interrupt,
    waiter: Option<JoinHandle<()>>,
    /// Those who tell etcd of the server.
    tellers: Mutex<Vec<JoinHandle<()>>>,
}

impl Membership {
    /// Makes this server the active one, as patiently as the arguments say; or the signal that came
    /// first.
    pub(crate) async fn acquire(
        &self,
        args: &ServeArgs,
        timing: Timing,
        shutdown: &mut Shutdown,
    ) -> Result<Result<Active, i32>, Failure> {
        let interrupt = Interrupt::new();
        let connection = self.connection.clone();
        let record = self.record.clone();
        let (wait, delay) = (args.wait, args.cluster.lock_delay);
        let ended = interrupt.clone();
        let mut acquiring = spawn_blocking(move || {
            let service = record.service.clone();
            // Who waits at a terminal is to know soon whether etcd is there at all.
            connection.ask(|cluster, over| cluster.servers(Some(&service), over))?;
            let mut watchdog = own(WATCHDOG);
            // It never asks etcd for anything.
            watchdog.env_remove(PASSWORD_ENV);
            let watchdog = Watchdog::start(watchdog).map_err(failure)?;
            if !watchdog.is_real_time() {
                info!("The watchdog has no real-time priority: it may be late on a busy machine");
            }
            let options = Options::new(record, timing)
                .with_watchdog(watchdog)
                .with_lock_delay(delay)
                .with_interrupt(&ended)
                .on_wait(|why| output::note(&format!("Waiting: {why}")));
            let cluster = &connection.cluster;
            let result = match wait {
                None => cluster.acquire(&service, options),
                Some(FOR_EVER) => cluster.acquire_timeout(&service, options, None),
                Some(wait) => cluster.acquire_timeout(&service, options, Some(wait)),
            };
            result.map_err(|e| match e {
                ClusterError::AlreadyActive { .. } => {
                    if let Some(wait) = wait {
                        output::note(&format!("Waited {wait:?} in vain"));
                    }
                    let url = connection.typed();
                    let stop = format!("llmlb stop --cluster {url} --service {service}");
                    Failure::new(exit::FAILURE, format!("{e}\n\nTo stop: {stop}"))
                }
                e => failure(e),
            })
        });
        let exclusive = tokio::select! {
            result = &mut acquiring => result.map_err(|e| Failure::new(exit::FAILURE, e))??,
            signal = shutdown.recv() => {
                interrupt.interrupt();
                // What was won meanwhile is given back.
                let _ = acquiring.await;
                return Ok(Err(signal));
            }
        };
        info!(
            "Active as service {} (token {})",
            self.record.service,
            exclusive.token()
        );
        let _ = self.token.set(exclusive.token());
        Active::new(exclusive).map(Ok)
    }
}

pub(super) type Token = OnceCell<u64>;

impl Active {
    fn new(exclusive: Exclusive) -> Result<Self, Failure> {
        let exclusive = Arc::new(exclusive);
        let (tell, lost) = watch::channel(None);
        let interrupt = Interrupt::new();
        let (watched, until) = (Arc::clone(&exclusive), interrupt.clone());
        let waiter = thread::Builder::new()
            .name("llmlb-lease".into())
            .spawn(move || {
                if let Ok(Some(lost)) = watched.wait_lost_or(None, &until) {
                    tell.send_replace(Some(lost));
                }
            })
            .map_err(|e| Failure::new(exit::FAILURE, format!("cannot start a thread: {e}")))?;
        Ok(Self {
            exclusive,
            lost,
            interrupt,
            waiter: Some(waiter),
            tellers: Mutex::default(),
        })
    }

    /// Becomes the server when the watchdog has it.
    pub(crate) fn launcher(&self) -> Command {
        let mut command = own(GATE);
        command.env(TOKEN_ENV, self.exclusive.token().to_string());
        command
    }

    /// A child of ours that is no server's.
    pub(crate) fn watchdog(&self) -> Option<u32> {
        self.exclusive.watchdog().and_then(Watchdog::pid)
    }

    /// Starts a [`launcher`](Self::launcher); inside, that it could not be.
    pub(crate) fn spawn(
        &self,
        command: &mut Command,
        offspring: &Offspring,
    ) -> Result<io::Result<Child>, Failure> {
        let watchdog = self.exclusive.watchdog();
        let watchdog =
            watchdog.ok_or_else(|| Failure::new(exit::FAILURE, "the watchdog is gone"))?;
        let stdin = io::stdin().as_fd().try_clone_to_owned().ok();
        let gate = watchdog.gate(command, stdin).map_err(failure)?;
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => return Ok(Err(e)),
        };
        let kin = ServerKin {
            id: offspring.id().as_str().to_owned(),
            told_by_descent: offspring.is_told_by_descent(),
        };
        if let Err(e) = gate.open(child.id(), Some(kin)) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failure(e));
        }
        self.tell(child.id());
        Ok(Ok(child))
    }

    /// Who is refused is to be told of the server, not of us. Nobody waits for that.
    fn tell(&self, server: u32) {
        let exclusive = Arc::clone(&self.exclusive);
        let tell = move || {
            let record = exclusive.record().clone().with_pid(server);
            if let Err(e) = exclusive.update(record) {
                debug!("The record of the active server was not updated: {e}");
            }
        };
        let thread = thread::Builder::new().name("llmlb-tell".to_owned());
        match thread.spawn(tell) {
            Ok(teller) => self.lock_tellers().push(teller),
            Err(e) => debug!("The record of the active server was not updated: {e}"),
        }
    }

    fn lock_tellers(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.tellers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when the server has to end, with the time that it has before it is killed.
    pub(crate) async fn lost(&self) -> Duration {
        let mut lost = self.lost.clone();
        let why = match lost.wait_for(Option::is_some).await {
            Ok(lost) => lost.clone(),
            Err(_) => None,
        };
        match why {
            Some(why) => {
                warn!("The lease of the service is lost: {why}; ending the server");
                self.exclusive.kill_at().remaining()
            }
            None => std::future::pending().await,
        }
    }

    /// Whether another server may be active by now, or soon.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let lost = self.exclusive.wait_lost(Some(Duration::ZERO)).ok()??;
        let record = self.exclusive.record();
        let message = format!(
            "The lease of service {} (token {}) was lost: {lost}; its server was ended",
            record.service,
            self.exclusive.token()
        );
        Some(Failure::new(exit::LEASE_LOST, message))
    }

    /// Gives it back, if the server has ended; else it ends by itself.
    pub(crate) async fn release(mut self, has_ended: bool) {
        self.interrupt.interrupt();
        let given = spawn_blocking(move || {
            let tellers = std::mem::take(&mut *self.lock_tellers());
            for thread in self.waiter.take().into_iter().chain(tellers) {
                let _ = thread.join();
            }
            match Arc::into_inner(self.exclusive) {
                Some(exclusive) if has_ended => exclusive.release(),
                // Its end would be taken for the server's.
                other => {
                    std::mem::forget(other);
                    Ok(())
                }
            }
        });
        if let Ok(Err(e)) = given.await {
            warn!("{e}");
        }
    }
}

/// This program, as one of its hidden subcommands.
fn own(subcommand: &str) -> Command {
    let mut command = Command::new(OWN);
    command.arg0("llmlb").arg(subcommand);
    command
}
