//! How many backends of a load balancer under a guard are up, told to the guard, who tells `status`:
//! through a pipe that the load balancer inherits. Apart from both, who know nothing of pipes.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{FileType, OFlags, fcntl_setfl, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;

/// The number of the pipe's descriptor.
const VARIABLE: &str = "LLMLB_GUARD_FD";

/// The guard's side.
pub(crate) struct Hearing(Lines<BufReader<pipe::Receiver>>);

impl Hearing {
    /// Of the load balancer that `command` starts.
    pub(crate) fn prepare(command: &mut Command) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let receiver = pipe::Receiver::from_owned_fd(reader.into())?;
        command.env(VARIABLE, writer.as_raw_fd().to_string());
        // SAFETY: one system call, which is safe after a fork.
        unsafe { command.pre_exec(move || inherit(&writer)) };
        Ok(Self(BufReader::new(receiver).lines()))
    }

    /// How many are up, of how many. May be cancelled; completes never once nobody tells any more.
    pub(crate) async fn next(&mut self) -> (usize, usize) {
        while let Ok(Some(line)) = self.0.next_line().await {
            let numbers = line.split_once(' ');
            let numbers = numbers.map(|(up, all)| (up.parse(), all.parse()));
            if let Some((Ok(up), Ok(all))) = numbers {
                return (up, all);
            }
        }
        std::future::pending().await
    }
}

fn inherit(writer: &PipeWriter) -> io::Result<()> {
    Ok(fcntl_setfd(writer, FdFlags::empty())?)
}

/// The load balancer's side.
pub(crate) struct Telling {
    pipe: File,
    told: Option<(usize, usize)>,
}

impl Telling {
    /// Where this process has inherited the pipe.
    pub(crate) fn inherited() -> Option<Self> {
        let number: RawFd = std::env::var(VARIABLE).ok()?.parse().ok()?;
        if number <= 2 {
            return None;
        }
        // SAFETY: its guard has left this descriptor to this process, which takes it once; what is
        // no pipe is given back unharmed.
        let pipe = unsafe { OwnedFd::from_raw_fd(number) };
        let is_pipe =
            fstat(&pipe).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if !is_pipe {
            std::mem::forget(pipe);
            return None;
        }
        fcntl_setfd(&pipe, FdFlags::CLOEXEC).ok()?;
        fcntl_setfl(&pipe, OFlags::NONBLOCK).ok()?;
        let pipe = File::from(pipe);
        Some(Self { pipe, told: None })
    }

    /// Tells it if it is news. A guard that is gone, or does not read, holds nobody up.
    pub(crate) fn backends(&mut self, up: usize, all: usize) {
        if self.told != Some((up, all)) && writeln!(self.pipe, "{up} {all}").is_ok() {
            self.told = Some((up, all));
        }
    }
}
