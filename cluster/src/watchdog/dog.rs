//! The watchdog itself: waits for its guardian's end and for the deadline, and kills.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use llmlb_lock_core::Kin;
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Signal, kill_process_group, pidfd_send_signal};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::clock::BootTime;
use crate::sys;
use crate::watchdog::channel::{Channel, Message, ServerKin};

/// Between two kills of what is still there.
const AGAIN: Duration = Duration::from_millis(20);
/// How long it is tried where the system does not let processes be looked at.
const BLIND: Duration = Duration::from_secs(10);

/// What the hidden subcommand does: watches, until the guardian is gone and the server with it.
/// Call it first thing in `main`, with no other thread and nothing opened: it closes all
/// descriptors but the standard ones.
///
/// # Errors
///
/// What the system says: it can't watch, and its guardian notices.
pub fn run() -> io::Result<()> {
    sys::close_inherited();
    // What is meant for the guardian must not end its watchdog first. SIGKILL and SIGSTOP can.
    SigSet::all().thread_block()?;
    std::env::set_current_dir("/")?;
    // Each of these where it is allowed.
    let real_time = sys::real_time().is_ok();
    let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");

    let channel = Channel::from(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?);
    let mut dog = Dog {
        channel,
        timer: timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?,
        deadline: None,
        server: None,
        kin: None,
    };
    let result = dog.watch(real_time);
    // However that ended. A guardian that was killed meanwhile has left what it said.
    dog.kill(Duration::MAX)?;
    result
}

struct Dog {
    channel: Channel,
    /// Goes off at the deadline, also when that passes in suspend.
    timer: OwnedFd,
    deadline: Option<BootTime>,
    server: Option<Server>,
    /// What it has started, which may outlive it.
    kin: Option<Kin>,
}

/// The process that is watched.
struct Server {
    handle: OwnedFd,
    pid: Option<rustix::process::Pid>,
}

impl Dog {
    /// Until the guardian is gone.
    fn watch(&mut self, real_time: bool) -> io::Result<()> {
        self.answer(&Message::Ready(real_time))?;
        loop {
            self.wait()?;
            if !self.listen()? {
                return Ok(());
            }
            if self.server.as_ref().is_some_and(Server::has_ended) {
                self.server = None;
                let _ = self.channel.send(&Message::Ended(false), None);
            }
            // After all that was said until now.
            let is_over = self.deadline.is_some_and(|at| at.remaining().is_zero());
            if is_over && self.kill(Duration::MAX)? {
                let _ = self.channel.send(&Message::Fired, None);
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let mut fds = vec![
            PollFd::new(&self.channel, PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        if let Some(server) = &self.server {
            fds.push(PollFd::new(&server.handle, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        // So that it does not go off for ever where there is nothing to kill.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        Ok(())
    }

    /// Takes in all that was said. `false`: the guardian is gone.
    fn listen(&mut self) -> io::Result<bool> {
        loop {
            match self.channel.receive(false) {
                Ok(None) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                // One that says what nobody says is none.
                Err(_) => return Ok(false),
                Ok(Some((Message::Deadline(at), _))) => self.arm(at)?,
                Ok(Some((Message::Guard(kin), Some(handle)))) => self.guard(handle, kin),
                Ok(Some((Message::Kill, _))) => drop(self.kill(Duration::from_secs(1))?),
                Ok(Some(_)) => {}
            }
        }
    }

    fn arm(&mut self, at: BootTime) -> io::Result<()> {
        if self.deadline.replace(at) != Some(at)
            && let Some(kin) = &mut self.kin
        {
            kin.look();
        }
        let nanos = at.as_nanos().max(1);
        let value = Timespec {
            tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            // Below 1e9, whatever the type's name on this machine.
            tv_nsec: (nanos % 1_000_000_000) as _,
        };
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timer = Itimerspec {
            it_interval: none,
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &timer)?;
        self.answer(&Message::Armed(at))
    }

    fn guard(&mut self, handle: OwnedFd, kin: Option<ServerKin>) {
        let pid = pid_of(&handle);
        self.kin = match (kin, pid) {
            // Or it has ended already.
            (None, _) | (_, None) => None,
            (Some(kin), Some(pid)) => {
                let number = pid.as_raw_nonzero().get().unsigned_abs();
                match Kin::new(&kin.id, number, kin.told_by_descent) {
                    Ok(kin) => Some(kin),
                    // Not taken: the guardian notices, and does not start it.
                    Err(_) => return,
                }
            }
        };
        self.server = Some(Server { handle, pid });
        let _ = self.answer(&Message::Guarding);
    }

    /// A guardian that takes no answers is stopped, or gone, which is seen elsewhere.
    fn answer(&self, message: &Message) -> io::Result<()> {
        match self.channel.send(message, None) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// Kills, again and again, until all of it is gone or the time is up. Whether there was anybody.
    fn kill(&mut self, within: Duration) -> io::Result<bool> {
        let mut found = self.server.is_some();
        if !found && self.kin.is_none() {
            return Ok(false);
        }
        if let Some(kin) = &mut self.kin {
            // When the server has ended that can't be seen any more.
            kin.look();
        }
        let start = BootTime::now();
        while BootTime::now().since(start) < within {
            if let Some(server) = &self.server {
                server.kill();
            }
            let left = match self.kin.as_mut().map_or(Ok(0), Kin::kill) {
                Ok(left) => left,
                Err(_) => usize::from(BootTime::now().since(start) < BLIND),
            };
            found |= left > 0;
            let has_ended = match &self.server {
                Some(server) => server.wait(AGAIN)?,
                None => true,
            };
            if has_ended && left == 0 {
                self.kin = None;
                if self.server.take().is_some() {
                    let _ = self.channel.send(&Message::Ended(true), None);
                }
                return Ok(found);
            }
            if has_ended {
                thread::sleep(AGAIN);
            }
        }
        Ok(found)
    }
}

impl Server {
    fn kill(&self) {
        // Its group, while the handle shows that the number is still its own.
        if let Some(pid) = self.pid
            && !self.has_ended()
            && rustix::process::getpgid(Some(pid)) == Ok(pid)
        {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO).unwrap_or(false)
    }

    fn wait(&self, time: Duration) -> io::Result<bool> {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: time.subsec_nanos().into(),
        };
        match poll(
            &mut [PollFd::new(&self.handle.as_fd(), PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

/// The process of a handle, as this process numbers it.
fn pid_of(handle: &OwnedFd) -> Option<rustix::process::Pid> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd())).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    // -1 once it has ended, which rustix takes for a bug.
    let number: i32 = line.trim().parse().ok()?;
    (number > 0).then(|| rustix::process::Pid::from_raw(number))?
}
