//! What a server does beside serving while it holds its lock.

use std::convert::Infallible;
use std::time::Duration;

use llmlb_lock_core::ServerLock;
#[cfg(target_os = "linux")]
use sd_notify::NotifyState;
use tracing::{info, warn};

/// How often a server looks whether its lock file is still there.
const VERIFY_STEP: Duration = Duration::from_secs(2);

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
    notify_stopping();
}

/// Tells systemd, where it asked (`Type=notify`), that the server serves.
pub(crate) fn notify_ready() {
    #[cfg(target_os = "linux")]
    notify(&[NotifyState::Ready]);
}

/// The same, with words for `systemctl status`.
pub(crate) fn notify_ready_as(#[cfg_attr(not(target_os = "linux"), expect(unused))] status: &str) {
    #[cfg(target_os = "linux")]
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd, where it asked, that the server takes its time, and that much more at least.
#[cfg_attr(not(target_os = "linux"), expect(unused_variables))]
pub(crate) fn notify_starting(status: &str, at_least: Duration) {
    #[cfg(target_os = "linux")]
    {
        let microseconds = u32::try_from(at_least.as_micros()).unwrap_or(u32::MAX);
        notify(&[
            NotifyState::Status(status),
            NotifyState::ExtendTimeoutUsec(microseconds),
        ]);
    }
}

/// Tells systemd, where it asked.
fn notify_stopping() {
    #[cfg(target_os = "linux")]
    notify(&[NotifyState::Stopping]);
}

/// Tells systemd for as long as `is_healthy`, where it asked for signs of life (`WatchdogSec=`).
#[cfg_attr(not(target_os = "linux"), expect(unused_variables))]
pub(crate) async fn feed_watchdog<F: Future<Output = bool>>(
    is_healthy: impl Fn() -> F,
) -> Infallible {
    #[cfg(target_os = "linux")]
    if let Some(patience) = sd_notify::watchdog_enabled() {
        // Looking and waiting together leave a third of it to a busy machine.
        let step = (patience / 3).max(Duration::from_millis(1));
        loop {
            if let Ok(true) = tokio::time::timeout(step, is_healthy()).await {
                notify(&[NotifyState::Watchdog]);
            }
            tokio::time::sleep(step).await;
        }
    }
    std::future::pending().await
}

#[cfg(target_os = "linux")]
fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        warn!("Cannot notify systemd: {e}");
    }
}
