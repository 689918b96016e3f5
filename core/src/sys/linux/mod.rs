//! What Linux tells of processes, and of who holds a lock.

mod handle;
mod holders;
mod process;

pub(crate) use handle::ProcessHandle;
pub(crate) use holders::{
    holders, holds, is_straggler, leads_group, owned_alike, stragglers, taker,
};
pub(crate) use process::process;
