//! The end of this process in time, by a timer of the kernel, which also ends what is stopped, hung or
//! has slept with its machine. Apart from the watchdog, which ends another process and its family.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use crate::clock::BootTime;
use crate::sys::ProcessTimer;

/// Kills this process at a time that may be put off, until it is defused or dropped.
pub(crate) struct Fuse(Mutex<Option<ProcessTimer>>);

impl Fuse {
    pub(crate) fn new() -> io::Result<Self> {
        if std::process::id() == 1 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel does not kill the first process of a container in this way; \
                 give it an init (docker run --init)",
            ));
        }
        let kill = SigEvent::new(SigevNotify::SigevSignal {
            signal: Signal::SIGKILL,
            si_value: 0,
        });
        let timer = Timer::new(ClockId::CLOCK_BOOTTIME, kill)?;
        Ok(Self(Mutex::new(Some(ProcessTimer(timer)))))
    }

    pub(crate) fn set(&self, at: BootTime) -> io::Result<()> {
        let mut timer = self.timer();
        let Some(ProcessTimer(timer)) = &mut *timer else {
            return Ok(());
        };
        // Zero would be never.
        let at = Duration::from_nanos(at.as_nanos().max(1));
        let at = Expiration::OneShot(TimeSpec::from_duration(at));
        Ok(timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }

    /// For good.
    pub(crate) fn defuse(&self) {
        self.timer().take();
    }

    fn timer(&self) -> MutexGuard<'_, Option<ProcessTimer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That it kills is seen from outside: see `python/tests/test_cluster_fencing.py`.
    #[test]
    fn it_can_be_put_off_and_defused() {
        let fuse = Fuse::new().unwrap();
        let short = Duration::from_millis(200);
        fuse.set(BootTime::now() + short).unwrap();
        fuse.set(BootTime::now() + Duration::from_secs(3600))
            .unwrap();
        std::thread::sleep(short * 2);
        fuse.set(BootTime::now() + short).unwrap();
        fuse.defuse();
        fuse.set(BootTime::now()).unwrap();
        std::thread::sleep(short * 2);
    }
}
