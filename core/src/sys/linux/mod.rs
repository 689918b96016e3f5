//! What Linux tells of processes, and of who holds a lock.

mod cgroup;
mod descent;
mod environment;
mod flocks;
mod generation;
mod handle;
mod holders;
mod identity;
mod marked;
mod process;
mod stuck;
mod watch;

pub(crate) use descent::{Entrance, Family, descendants, descends, is_led_by, led_by};
pub(crate) use environment::command_line;
pub(crate) use flocks::Flocks;
pub(crate) use generation::generation;
pub(crate) use handle::ProcessHandle;
pub(crate) use holders::{
    holders, holds, is_straggler, leads_group, owned_alike, stragglers, taker,
};
pub(crate) use identity::{forked_identity, identity, own_identity};
pub(crate) use marked::{Marked, server_id, server_id_of};
pub(crate) use process::{is_anothers, process, process_started_at};
pub(crate) use watch::Watch;
