//! The cluster for Python. What a user sees is in `llmlb_lock/cluster`.

mod call;
mod door;
mod errors;
mod exclusive;
mod handle;
mod records;
mod registration;
mod stop;
mod watch;

pub(crate) use call::Interrupt;
pub(crate) use door::Cluster;
pub(crate) use exclusive::Exclusive;
pub(crate) use registration::Registration;
pub(crate) use stop::{StopRequests, StopTicket};
pub(crate) use watch::Watch;
