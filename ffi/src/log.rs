//! Core's log messages as calls of a function of the program's: apart, as the only state here that
//! all threads share.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::fmt::{self, Write};
use std::sync::{Once, PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::failure::Failure;
use crate::panic::boundary;
use crate::result::llmlb_result_t;

/// How serious a log message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum llmlb_log_level_t {
    /// Something failed that no function reports.
    LLMLB_LOG_ERROR = 1,
    /// Something was put right, such as a stale lock file.
    LLMLB_LOG_WARN = 2,
    /// For users.
    LLMLB_LOG_INFO = 3,
    /// For developers: locks acquired, released, servers asked to stop.
    LLMLB_LOG_DEBUG = 4,
    /// Everything.
    LLMLB_LOG_TRACE = 5,
}

/// Gets a log message: UTF-8 text without a newline at its end, valid during the call, and the
/// `user_data` of `llmlb_set_log_callback`. It runs on the thread that logs, so on any; it must
/// not throw or longjmp. What library functions log that it calls is dropped.
pub type llmlb_log_callback_t = Option<
    unsafe extern "C" fn(level: llmlb_log_level_t, message: *const c_char, user_data: *mut c_void),
>;

#[derive(Clone, Copy)]
struct Callback {
    function: unsafe extern "C" fn(llmlb_log_level_t, *const c_char, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the header says that it is called on any thread.
unsafe impl Send for Callback {}
// SAFETY: as above.
unsafe impl Sync for Callback {}

static CALLBACK: RwLock<Option<Callback>> = RwLock::new(None);

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Sends what the library logs to `callback`; NULL, which is how it starts, logs nothing.
///
/// It replaces the callback before, which is not running any more when this returns: its
/// `user_data` can then be freed. `LLMLB_INVALID_ARGUMENT` inside the callback itself. May be
/// called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_set_log_callback(
    callback: llmlb_log_callback_t,
    user_data: *mut c_void,
) -> llmlb_result_t {
    static INSTALLED: Once = Once::new();
    boundary(|| {
        if IN_CALLBACK.get() {
            return Err(Failure::invalid(
                "the log callback cannot be changed from inside itself",
            ));
        }
        *CALLBACK.write().unwrap_or_else(PoisonError::into_inner) =
            callback.map(|function| Callback {
                function,
                user_data,
            });
        // The dispatcher is the library's own copy: nobody else can have set it.
        INSTALLED.call_once(|| drop(tracing::subscriber::set_global_default(Forward)));
        Ok(())
    })
}

/// Forwards events; the library has no spans.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        if IN_CALLBACK.get() {
            return;
        }
        // Held while the callback runs, so that one being replaced is waited for.
        let callback = CALLBACK.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Callback {
            function,
            user_data,
        }) = *callback
        else {
            return;
        };
        let level = match *event.metadata().level() {
            Level::ERROR => llmlb_log_level_t::LLMLB_LOG_ERROR,
            Level::WARN => llmlb_log_level_t::LLMLB_LOG_WARN,
            Level::INFO => llmlb_log_level_t::LLMLB_LOG_INFO,
            Level::DEBUG => llmlb_log_level_t::LLMLB_LOG_DEBUG,
            Level::TRACE => llmlb_log_level_t::LLMLB_LOG_TRACE,
        };
        let mut text = Text(String::new());
        event.record(&mut text);
        let Ok(message) = CString::new(text.0.replace('\0', "")) else {
            return;
        };
        IN_CALLBACK.set(true);
        // SAFETY: whoever set it vouched for it.
        unsafe { function(level, message.as_ptr(), user_data) };
        IN_CALLBACK.set(false);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
