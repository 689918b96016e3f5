//! Follows a server until it is ready, and while it is. Apart from supervising, which goes by the
//! server's process: this goes by what it does.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use crate::args::ServeArgs;
use crate::exit::{self, Failure};
use crate::guard::{feed_watchdog, notify_ready_as, notify_starting};
use crate::ready::{Probe, Readiness};

/// How often systemd is told to be patient, and for how long each time.
const EXTEND_STEP: Duration = Duration::from_secs(10);
const EXTENSION: Duration = Duration::from_secs(60);

/// It was not ready in time.
pub(super) struct TooLate {
    probe: Probe,
    patience: Duration,
}

impl TooLate {
    /// What is done about it; why llmlb fails is said at its end.
    pub(super) fn remark(&self) -> String {
        let awaited = self.probe.awaited();
        let patience = self.patience;
        format!("Waited {patience:?} for {awaited} in vain, ending the server")
    }

    pub(super) fn failure(&self) -> Failure {
        let message = format!(
            "the server on port {} was not ready within {:?}: waited for {}; give it more time with \
             --ready-timeout, or look at what it says",
            self.probe.port,
            self.patience,
            self.probe.awaited()
        );
        Failure::new(exit::FAILURE, message)
    }
}

/// How to see whether the server that this process has started is ready.
pub(super) fn probe(server: u32, port: u16, args: &ServeArgs) -> Probe {
    Probe {
        server,
        launcher: std::process::id(),
        port,
        host: args.host.clone(),
        url: args.supervision.ready_url.clone(),
    }
}

/// Tells all who have to know when the server is ready, after `on_ready`; completes only if it is not
/// in time.
pub(super) async fn follow(
    probe: Probe,
    readiness: &Readiness,
    args: &ServeArgs,
    on_ready: impl FnOnce(),
) -> TooLate {
    let started = Instant::now();
    let too_late = async {
        match args.supervision.ready_timeout {
            Some(patience) => {
                sleep(patience).await;
                patience
            }
            None => std::future::pending().await,
        }
    };
    let status = format!("waiting for {}", probe.awaited());
    let extend = async {
        loop {
            notify_starting(&status, EXTENSION);
            sleep(EXTEND_STEP).await;
        }
    };
    tokio::select! {
        () = probe.wait() => {}
        patience = too_late => return TooLate { probe, patience },
        () = extend => {}
    }
    let answering = match &probe.url {
        Some(url) => format!(" ({url} answers)"),
        None => String::new(),
    };
    let status = format!(
        "accepting connections after {:.1} s{answering}",
        started.elapsed().as_secs_f64()
    );
    on_ready();
    info!("{status}");
    notify_ready_as(&status);
    readiness.reached(probe.server);
    match feed_watchdog(|| probe.is_healthy()).await {}
}
