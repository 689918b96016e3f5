//! What a server does beside serving while it holds its lock.

use std::convert::Infallible;
use std::time::Duration;

use llmlb_lock_core::ServerLock;
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

/// Tells systemd, where it asked (`Type=notify`).
pub(crate) fn notify_ready() {
    #[cfg(target_os = "linux")]
    notify(sd_notify::NotifyState::Ready);
}

/// Tells systemd, where it asked.
fn notify_stopping() {
    #[cfg(target_os = "linux")]
    notify(sd_notify::NotifyState::Stopping);
}

#[cfg(target_os = "linux")]
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        warn!("Cannot notify systemd: {e}");
    }
}
