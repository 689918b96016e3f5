//! Where there are no clusters, nobody is active in one.

use std::convert::Infallible;
use std::process::Command;
use std::time::Duration;

use crate::exit::Failure;

pub(crate) struct Active(Infallible);

#[cfg_attr(not(unix), allow(dead_code, reason = "there is none"))]
impl Active {
    pub(crate) fn launcher(&self) -> Command {
        match self.0 {}
    }

    #[cfg(unix)]
    pub(crate) fn watchdog(&self) -> Option<u32> {
        match self.0 {}
    }

    #[cfg(unix)]
    pub(crate) fn spawn(
        &self,
        _: &mut Command,
        _: &llmlb_lock_core::Offspring,
    ) -> Result<std::io::Result<std::process::Child>, Failure> {
        match self.0 {}
    }

    pub(crate) async fn lost(&self) -> Duration {
        match self.0 {}
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        match self.0 {}
    }

    pub(crate) async fn release(self, _: bool) {
        match self.0 {}
    }
}

/// No load balancer is guarded by another process.
#[cfg(unix)]
pub(crate) enum Hearing {}

#[cfg(unix)]
impl Hearing {
    pub(crate) async fn next(&mut self) -> (usize, usize) {
        match *self {}
    }
}
