//! Rust's log, in Python's `logging` under `llmlb_lock`.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;
use pyo3_log::{Caching, Logger};

use crate::exit;

pub(crate) const NAME: &str = "llmlb_lock";

struct Bridge(Logger);

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with(NAME)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || exit::has_begun() {
            return;
        }
        let record = Record::builder()
            .args(*record.args())
            .level(record.level())
            .target(NAME)
            .file(record.file())
            .line(record.line())
            .build();
        #[cfg(target_os = "linux")]
        if !crate::log_queue::is_python_thread() {
            crate::log_queue::put(&record);
            return;
        }
        self.0.log(&record);
    }

    fn flush(&self) {}
}

/// Connects the log on first use: importing `logging` takes as long as all the rest of an import.
pub(crate) fn connect(py: Python<'_>) -> PyResult<()> {
    static CONNECTED: AtomicBool = AtomicBool::new(false);
    static ONCE: Once = Once::new();
    if CONNECTED.load(Ordering::Relaxed) {
        return Ok(());
    }
    // Levels are asked for each time: a cached one would outlive a change of configuration.
    let logger = Logger::new(py, Caching::Loggers)?.filter(LevelFilter::Debug);
    ONCE.call_once(|| {
        // Another logger can't be there: this module is the only user of its copy of `log`.
        if log::set_boxed_logger(Box::new(Bridge(logger))).is_ok() {
            log::set_max_level(LevelFilter::Debug);
        }
        CONNECTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}
