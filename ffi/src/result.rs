//! The result that every function returns, its numbers and their texts: apart from failures, which
//! carry one.

use std::ffi::{CStr, c_char};

/// What a function has to say. Numbers are never changed or used again; new ones may come, so
/// treat those you do not know as failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum llmlb_result_t {
    /// It worked.
    LLMLB_OK = 0,
    /// A pointer was NULL that may not be.
    LLMLB_NULL_ARGUMENT = 1,
    /// An argument has a value that makes no sense, or the handle was released before.
    LLMLB_INVALID_ARGUMENT = 2,
    /// A path is not valid UTF-8.
    LLMLB_INVALID_UTF8 = 3,
    /// The caller's buffer is too small; the needed size was written.
    LLMLB_BUFFER_TOO_SMALL = 4,
    /// A bug in the library. It was contained, but do not use the handles involved again.
    LLMLB_PANIC = 5,
    /// The program was compiled with the header of an incompatible version.
    LLMLB_ABI_MISMATCH = 6,
    /// A failure that has no number in this version.
    LLMLB_OTHER = 7,
    /// Another server holds the port; the holder's details were written.
    LLMLB_ALREADY_RUNNING = 16,
    /// The lock could not be taken.
    LLMLB_ACQUIRE_FAILED = 17,
    /// The lock file could not be removed, or another process has the lock still, as a forked
    /// child, and keeps the port guarded. This one holds it no more.
    LLMLB_RELEASE_FAILED = 18,
    /// The lock file is not what this library writes. Only reading says so: acquiring recovers a
    /// corrupt file that nobody holds.
    LLMLB_CORRUPTED = 19,
    /// The lock directory could not be created or opened.
    LLMLB_DIRECTORY_CREATION_FAILED = 20,
    /// The lock is held, but its file does not name a live process.
    LLMLB_HELD_BY_UNKNOWN = 21,
    /// Port 0 names no port.
    LLMLB_INVALID_PORT = 22,
    /// The lock file was removed or replaced while the lock was held: another server can start.
    LLMLB_LOST = 23,
    /// There is no such running process.
    LLMLB_NO_SUCH_PROCESS = 24,
    /// Only the process that acquired or adopted a lock may hand it over.
    LLMLB_NOT_OWNER = 25,
    /// The lock could not be made inheritable, or its file not rewritten for a new holder.
    LLMLB_HAND_OVER_FAILED = 26,
    /// A lock file or the lock directory could not be read.
    LLMLB_READ_FAILED = 27,
    /// The process that the file names cannot be shown to hold the lock: it was not signalled.
    LLMLB_NOT_HOLDER = 28,
    /// The process could not be signalled or waited for.
    LLMLB_STOP_FAILED = 29,
    /// The caller's `interrupted` callback ended a wait.
    LLMLB_INTERRUPTED = 30,
    /// Stop requests cannot be listened for. Windows only.
    LLMLB_STOP_EVENT_FAILED = 31,
}

use llmlb_result_t::*;

/// A short text for a result, in English, such as "Lock file is corrupted". Never NULL, also for
/// numbers this version does not know; valid for ever. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_result_string(result: u32) -> *const c_char {
    text(result).as_ptr()
}

fn text(result: u32) -> &'static CStr {
    /// Finds the variant without making one of a number that may be none.
    macro_rules! texts {
        ($($variant:ident => $text:literal,)*) => {
            match result {
                $(n if n == $variant as u32 => $text,)*
                _ => c"Unknown result",
            }
        };
    }
    texts! {
        LLMLB_OK => c"Success",
        LLMLB_NULL_ARGUMENT => c"A required pointer is NULL",
        LLMLB_INVALID_ARGUMENT => c"Invalid argument",
        LLMLB_INVALID_UTF8 => c"Path is not valid UTF-8",
        LLMLB_BUFFER_TOO_SMALL => c"Buffer is too small",
        LLMLB_PANIC => c"Internal error",
        LLMLB_ABI_MISMATCH => c"Header and library do not match",
        LLMLB_OTHER => c"Unclassified failure",
        LLMLB_ALREADY_RUNNING => c"Server already running on this port",
        LLMLB_ACQUIRE_FAILED => c"Failed to acquire lock",
        LLMLB_RELEASE_FAILED => c"Failed to release lock",
        LLMLB_CORRUPTED => c"Lock file is corrupted",
        LLMLB_DIRECTORY_CREATION_FAILED => c"Failed to create lock directory",
        LLMLB_HELD_BY_UNKNOWN => c"Port is locked by an unknown process",
        LLMLB_INVALID_PORT => c"Invalid port",
        LLMLB_LOST => c"Lock file was removed or replaced",
        LLMLB_NO_SUCH_PROCESS => c"No such process",
        LLMLB_NOT_OWNER => c"Lock belongs to another process",
        LLMLB_HAND_OVER_FAILED => c"Failed to hand the lock over",
        LLMLB_READ_FAILED => c"Failed to read lock",
        LLMLB_NOT_HOLDER => c"Named process does not hold the lock",
        LLMLB_STOP_FAILED => c"Failed to stop server",
        LLMLB_INTERRUPTED => c"Interrupted while waiting",
        LLMLB_STOP_EVENT_FAILED => c"Failed to listen for stop requests",
    }
}

/// What the sources say, for tests that no variant is forgotten.
#[cfg(test)]
pub(crate) fn variants(source: &str, name: &str) -> Vec<syn::Variant> {
    let file = syn::parse_file(source).unwrap();
    let found = file.items.into_iter().find_map(|item| match item {
        syn::Item::Enum(item) if item.ident == name => Some(item.variants),
        _ => None,
    });
    found.unwrap().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_explicit_and_frozen() {
        let results = variants(include_str!("result.rs"), "llmlb_result_t");
        let mut frozen = String::new();
        for variant in &results {
            let Some((
                _,
                syn::Expr::Lit(syn::ExprLit {
                    lit: syn::Lit::Int(n),
                    ..
                }),
            )) = &variant.discriminant
            else {
                panic!("{} has no explicit number", variant.ident);
            };
            frozen += &format!(
                "{}={n} ",
                variant.ident.to_string().trim_start_matches("LLMLB_")
            );
        }
        // Only ever append to this line.
        assert_eq!(
            frozen.trim_end(),
            "OK=0 NULL_ARGUMENT=1 INVALID_ARGUMENT=2 INVALID_UTF8=3 BUFFER_TOO_SMALL=4 PANIC=5 \
             ABI_MISMATCH=6 OTHER=7 ALREADY_RUNNING=16 ACQUIRE_FAILED=17 RELEASE_FAILED=18 \
             CORRUPTED=19 DIRECTORY_CREATION_FAILED=20 HELD_BY_UNKNOWN=21 INVALID_PORT=22 \
             LOST=23 NO_SUCH_PROCESS=24 NOT_OWNER=25 HAND_OVER_FAILED=26 READ_FAILED=27 \
             NOT_HOLDER=28 STOP_FAILED=29 INTERRUPTED=30 STOP_EVENT_FAILED=31"
        );
        // And each has a text of its own.
        let texts: BTreeSet<&CStr> = (0..64).map(text).collect();
        assert_eq!(texts.len(), results.len() + 1);
    }
}
