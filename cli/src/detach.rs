//! A server in the background: in a session of its own, without standard input, its output in a file
//! that is opened anew at SIGHUP. Apart from serving, which does not know where it runs.
//!
//! The caller waits in the foreground for one word through a pipe. Until the lock is had, the server
//! speaks to the caller's own terminal: who is refused reads why, and the log of the one that serves
//! is left alone.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use llmlb_lock_core::{LockDir, LockInfo, ServerLock, ServerState};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    AccessFlags, ForkResult, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, faccessat, fork,
    setsid,
};
use tokio::time::sleep;
use tracing::warn;

use crate::exit::{self, Failure};
use crate::log;
use crate::output;
use crate::ready::Watch;
use crate::signals::{Stream, asks_to_end};

/// How much of its log is shown of a server that has failed.
const SHOWN_LINES: usize = 20;
const SHOWN_BYTES: u64 = 16 * 1024;

/// What the server says to the one who waits.
const LOG: &str = "log ";
const READY: &str = "ready ";
const SLOW: &str = "slow ";

/// How long the caller waits in silence.
const SILENCE: Duration = Duration::from_secs(5);

/// The two that one process becomes.
pub(crate) enum Side {
    /// The caller's process, with its exit code, when the server serves or has failed.
    Foreground(Result<u8, Failure>),
    Background(Detached),
}

/// The server's side.
pub(crate) struct Detached {
    report: PipeWriter,
    wanted: Option<PathBuf>,
    path: PathBuf,
}

/// Splits the process in two. There must be no other thread.
pub(crate) fn detach(log_file: Option<&Path>) -> Result<Side, Failure> {
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot detach: {e}"));
    // Relative to where the caller is, and to be found in its message from anywhere.
    let wanted = log_file.map(std::path::absolute).transpose();
    let wanted = wanted.map_err(failed)?;
    let (reader, report) = io::pipe().map_err(failed)?;
    let nothing = File::open("/dev/null").map_err(failed)?;
    // SAFETY: no other thread can hold a lock that the child would wait for.
    match unsafe { fork() }.map_err(|e| failed(e.into()))? {
        ForkResult::Parent { child } => {
            drop(report);
            Ok(Side::Foreground(wait(reader, child)))
        }
        ForkResult::Child => {
            drop(reader);
            setsid().map_err(|e| failed(e.into()))?;
            dup2_stdin(nothing).map_err(|e| failed(e.into()))?;
            let path = PathBuf::new();
            Ok(Side::Background(Detached {
                report,
                wanted,
                path,
            }))
        }
    }
}

impl Detached {
    /// From here on all output goes to the log: by default beside the lock, which is held.
    pub(crate) fn open_log(&mut self, lock: &ServerLock) -> Result<(), Failure> {
        self.path = self
            .wanted
            .take()
            .unwrap_or_else(|| default_log(lock.path()));
        let log = redirect(&self.path).map_err(|e| unusable(&self.path, &e))?;
        let end = log.metadata().map_or(0, |log| log.len());
        let port = lock.info().port;
        self.tell(&format!("{LOG}{port} {end} {}\n", self.path.display()));
        Ok(())
    }

    /// Tells the caller when the server is ready, once what is `awaited` until then, and opens the
    /// log anew at each SIGHUP. Completes never.
    pub(crate) async fn attend(
        mut self,
        mut ready: Watch,
        info: LockInfo,
        awaited: String,
    ) -> Result<u8, Failure> {
        let failed = |e: io::Error| Failure::new(exit::FAILURE, e);
        let mut hangups = Stream::listen_anyway(Signal::SIGHUP).map_err(failed)?;
        let (mut told, mut is_slow) = (false, false);
        let mut silence = pin!(sleep(SILENCE));
        loop {
            tokio::select! {
                _ = ready.ready(), if !told => {
                    told = true;
                    self.tell(&format!("{READY}{}\n", info.port));
                }
                () = &mut silence, if !told && !is_slow => {
                    is_slow = true;
                    self.tell(&format!("{SLOW}{awaited}\n"));
                }
                () = hangups.recv() => {
                    if let Err(e) = redirect(&self.path) {
                        warn!("Cannot open the log {} anew: {e}", self.path.display());
                    }
                }
            }
        }
    }

    fn tell(&mut self, word: &str) {
        // A caller that is gone does not want to know.
        let _ = self.report.write_all(word.as_bytes());
    }
}

fn default_log(lock: &Path) -> PathBuf {
    lock.with_extension("log")
}

/// Whether a log can be written to the file that is named, else beside the lock, without making one.
pub(crate) fn check_log(named: Option<&Path>, locks: &LockDir, port: u16) -> Result<(), Failure> {
    match named {
        Some(path) => try_log(path),
        // The start creates the directory, and finds the port that 0 stands for.
        None if port == 0 || !locks.path().exists() => Ok(()),
        None => try_log(&default_log(&locks.lock_path(port))),
    }
}

fn try_log(path: &Path) -> Result<(), Failure> {
    let looked = match open(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A path without a directory is in the present one.
            let directory = path.parent().filter(|parent| *parent != Path::new(""));
            let directory = directory.unwrap_or(Path::new("."));
            faccessat(
                AT_FDCWD,
                directory,
                AccessFlags::W_OK | AccessFlags::X_OK,
                AtFlags::AT_EACCESS,
            )
            .map_err(io::Error::from)
        }
        opened => opened.map(drop),
    };
    looked.map_err(|e| unusable(path, &e))
}

fn unusable(path: &Path, e: &io::Error) -> Failure {
    let path = path.display();
    let hint = "name another file with --log-file";
    Failure::new(
        exit::FAILURE,
        format!("cannot write to the log {path}: {e}; {hint}"),
    )
}

/// Opens the file for standard output and standard error.
fn redirect(path: &Path) -> io::Result<File> {
    let log = open(path, true)?;
    // What has been said is for who has read it so far.
    log::flush();
    dup2_stdout(log.as_fd())?;
    dup2_stderr(log.as_fd())?;
    Ok(log)
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(create).mode(0o600);
    // A FIFO without a reader would wait, and what is planted in a directory for all is left alone.
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
    let log = options.open(path)?;
    let metadata = log.metadata()?;
    let kind = metadata.file_type();
    if kind.is_file() && metadata.uid() != Uid::effective().as_raw() && !Uid::effective().is_root()
        || kind.is_fifo()
        || kind.is_socket()
    {
        return Err(io::Error::other("it is no file of this user's"));
    }
    Ok(log)
}

/// The caller's side: until the server serves, or has ended.
fn wait(reader: PipeReader, child: Pid) -> Result<u8, Failure> {
    let mut log: Option<Log> = None;
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        if let Some(told) = line.strip_prefix(LOG) {
            log = Log::parse(told);
        } else if let (Some(awaited), Some(log)) = (line.strip_prefix(SLOW), &log) {
            let path = log.path.display();
            output::note(&format!("Still waiting for {awaited}; the log is {path}"));
        } else if let Some(port) = line.strip_prefix(READY) {
            let path = log.map(|log| log.path).unwrap_or_default();
            let message = format!(
                "Serving on port {port} in the background (PID: {child}), its log is {}",
                path.display()
            );
            // The exit code tells whether there is a server: there is, and this is where it is.
            if let Err(failure) = output::line(&message) {
                output::note(&format!("Warning: {}\n{message}", failure.message));
            }
            return Ok(exit::OK);
        }
    }
    let ended = waitpid(child, None);
    let code = match ended {
        Ok(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(exit::FAILURE),
        Ok(WaitStatus::Signaled(_, signal, _)) => exit::signalled(signal as i32),
        _ => exit::FAILURE,
    };
    // What went before the log has been said to the caller.
    let Some(Log { port, start, path }) = log else {
        return Ok(code);
    };
    // By other signals it ends after its server, and somebody else may have the port by now.
    if let Ok(WaitStatus::Signaled(_, signal, _)) = ended
        && !asks_to_end(signal)
        && let Some(server) = left_alone(port)
    {
        let message = format!(
            "llmlb (PID: {child}) was ended by {signal} before its server was ready; that still \
             runs (PID: {server})\n\nTo stop it: llmlb stop --port {port}"
        );
        return Err(Failure::new(code, message));
    }
    // Whoever asked for a server has none.
    let code = if code == exit::OK {
        exit::FAILURE
    } else {
        code
    };
    let end = last_lines(&path, start).unwrap_or_else(|e| format!("(it can't be read: {e})"));
    let path = path.display();
    Err(Failure::new(
        code,
        format!("the server ended before it was ready; the end of its log {path}:\n{end}"),
    ))
}

/// What the server says of its log.
struct Log {
    port: u16,
    /// How long it was before.
    start: u64,
    path: PathBuf,
}

impl Log {
    fn parse(told: &str) -> Option<Self> {
        let (port, rest) = told.split_once(' ')?;
        let (start, path) = rest.split_once(' ')?;
        Some(Self {
            port: port.parse().ok()?,
            start: start.parse().ok()?,
            path: path.into(),
        })
    }
}

/// The server whose llmlb was killed.
fn left_alone(port: u16) -> Option<u32> {
    let server = LockDir::default().server(port).ok()??;
    (server.state == ServerState::Running).then_some(server.info?.pid)
}

/// Of what was written since the log was that long.
fn last_lines(path: &Path, start: u64) -> io::Result<String> {
    let mut log = File::open(path)?;
    let from = log.metadata()?.len().saturating_sub(SHOWN_BYTES).max(start);
    log.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    log.take(SHOWN_BYTES).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"))
}
