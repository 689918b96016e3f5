//! Who forked: a page of memory that the kernel wipes in every forked child. A PID can't tell, as a
//! child in a nested PID namespace may have its parent's.
#![allow(unsafe_code)]

use std::process;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// What is known of this process alone. 0 is nothing yet.
#[derive(Default)]
pub(super) struct OwnPage {
    generation: AtomicU64,
    pub(super) pid_ns: AtomicU64,
    pub(super) start_ticks: AtomicU64,
}

static PAGE: AtomicPtr<OwnPage> = AtomicPtr::new(ptr::null_mut());
/// Kernels before 4.14 wipe nothing.
static UNSUPPORTED: AtomicBool = AtomicBool::new(false);
/// The last generation there was. A child has its parent's, and counts on from there.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A number that no ancestor of this process has had. A vfork, whose child runs in its parent's
/// memory, is none.
pub(crate) fn generation() -> u64 {
    let Some(page) = own_page() else {
        return u64::from(process::id());
    };
    match page.generation.load(Ordering::Acquire) {
        0 => {
            let next = LAST.fetch_add(1, Ordering::AcqRel) + 1;
            let set =
                page.generation
                    .compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire);
            set.map_or_else(|other_thread| other_thread, |_| next)
        }
        known => known,
    }
}

/// The page of this process; `None` where the kernel has no such thing.
pub(super) fn own_page() -> Option<&'static OwnPage> {
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        if UNSUPPORTED.load(Ordering::Relaxed) {
            return None;
        }
        let Some(new) = map() else {
            UNSUPPORTED.store(true, Ordering::Relaxed);
            return None;
        };
        page = new;
        let set = PAGE.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
        if let Err(first) = set {
            // SAFETY: mapped just now with this size, and nobody else has seen it.
            let _ = unsafe { rustix::mm::munmap(new.cast(), size()) };
            page = first;
        }
    }
    // SAFETY: mapped by `map`, never unmapped once it is in `PAGE`, aligned as every page is, and
    // made of atomics, for which all zero is a value.
    Some(unsafe { &*page })
}

fn size() -> usize {
    size_of::<OwnPage>().next_multiple_of(rustix::param::page_size())
}

fn map() -> Option<*mut OwnPage> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, wherever the kernel has room, touches nothing that is in use.
    let page =
        unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), size(), access, MapFlags::PRIVATE) };
    let page = page.ok()?;
    // SAFETY: the whole mapping, made just now, which nobody else has seen.
    let wiped = unsafe { rustix::mm::madvise(page, size(), Advice::LinuxWipeOnFork) };
    if wiped.is_err() {
        // SAFETY: as above.
        let _ = unsafe { rustix::mm::munmap(page, size()) };
        return None;
    }
    Some(page.cast())
}
