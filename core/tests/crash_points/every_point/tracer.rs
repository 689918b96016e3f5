//! Runs a process from one mark to another, system call by system call, and ends it or fails a call
//! on the way. Knows nothing of locks.

use std::collections::{HashMap, HashSet};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::registers;

const ENTRY: u8 = 1;
const EXIT: u8 = 2;

/// Whose calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Subject,
    /// The process that it forks, from the fork to its exec.
    Child,
}

/// Where in the program a call is made: one that waits makes the same one as often as it has time to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Site {
    number: i64,
    stack: u64,
}

impl Site {
    /// To which of so many parts of all sites it belongs: the same in every fork of one program.
    pub(super) fn share(self, shares: usize) -> usize {
        let mixed = (self.stack ^ self.number.unsigned_abs()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mixed >> 40).map_or(0, |mixed| mixed % shares)
    }
}

/// A call: at its site, the first is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Point {
    pub(super) site: Site,
    pub(super) nth: usize,
}

/// What is done to the victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing: its calls are listed.
    Count,
    KillBefore(Point),
    KillAfter(Point),
    /// The call is not made, and seems to have failed.
    Fail(Point, Errno),
    /// The call, a write, gets half of what it should write.
    Short(Point),
}

impl Plan {
    pub(super) fn kills(self) -> bool {
        matches!(self, Self::KillBefore(_) | Self::KillAfter(_))
    }

    pub(super) fn point(self) -> Option<Point> {
        match self {
            Self::Count => None,
            Self::KillBefore(at) | Self::KillAfter(at) => Some(at),
            Self::Fail(at, _) | Self::Short(at) => Some(at),
        }
    }
}

/// A system call that the victim made, or was about to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) point: Point,
    pub(super) number: i64,
    pub(super) arguments: [u64; 6],
    /// It is about a file that the kernel makes up: its close can't fail, and no signal interrupts it.
    pub(super) of_proc: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The subject has come to its second mark, and runs on by itself.
    Done,
    /// The subject was killed. It is a zombie.
    Killed,
    /// It ended otherwise.
    Died(WaitStatus),
}

#[derive(Debug)]
pub(super) struct Trace {
    pub(super) calls: Vec<Call>,
    pub(super) end: End,
    /// What the subject has forked.
    pub(super) child: Option<Pid>,
    /// The planned call was made, or about to be.
    pub(super) reached: bool,
}

/// For the subject: begins or ends what is counted.
fn mark() {
    // SAFETY: there is no such descriptor.
    let _ = unsafe { libc::close(-1) };
}

/// For the subject: lets its parent trace what it does.
pub(super) fn traced<T>(act: impl FnOnce() -> T) -> T {
    ptrace::traceme().expect("ptrace is allowed, as was tried");
    nix::sys::signal::raise(Signal::SIGSTOP).expect("a signal");
    mark();
    let result = act();
    mark();
    // Seen also by a tracer that no longer looks at calls.
    nix::sys::signal::raise(Signal::SIGSTOP).expect("a signal");
    result
}

/// Traces a child of this process that leads a process group and is in [`traced`].
pub(super) fn trace(subject: Pid, victim: Victim, plan: Plan) -> Trace {
    let stopped = waitpid(subject, Some(WaitPidFlag::__WALL)).expect("the subject");
    assert_eq!(stopped, WaitStatus::Stopped(subject, Signal::SIGSTOP));
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_EXITKILL
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC;
    ptrace::setoptions(subject, options).expect("options");
    let mut run = Run {
        subject,
        victim,
        plan,
        counting: false,
        failing: false,
        done: false,
        made: HashMap::new(),
        threads: HashSet::new(),
        trace: Trace {
            calls: Vec::new(),
            end: End::Done,
            child: None,
            reached: plan == Plan::Count,
        },
    };
    run.go_on(subject, None);
    run.run_to_its_end();
    run.trace
}

struct Run {
    subject: Pid,
    victim: Victim,
    plan: Plan,
    /// Between the marks.
    counting: bool,
    /// The call that is being made shall fail.
    failing: bool,
    /// What was planned has happened: calls need no longer be looked at.
    done: bool,
    /// Calls by site.
    made: HashMap<Site, usize>,
    /// Threads that the subject has just started: let go as soon as they are there.
    threads: HashSet<Pid>,
    trace: Trace,
}

/// What becomes of a process after a stop.
enum Next {
    GoOn(Option<Signal>),
    /// Nothing is left to be traced of it.
    LetGo,
    Kill,
}

impl Run {
    fn run_to_its_end(&mut self) {
        let mut subject_done = false;
        let mut child_done = true;
        while !(subject_done && child_done) {
            let group = Pid::from_raw(-self.subject.as_raw());
            let status = match waitpid(group, Some(WaitPidFlag::__WALL)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(e) => panic!("waiting for the traced: {e}"),
            };
            let pid = status.pid().expect("a process");
            let is_subject = pid == self.subject;
            if self.threads.remove(&pid) {
                // It stops, or has died with its process.
                let _ = ptrace::detach(pid, None);
                continue;
            }
            let next = match status {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                    if is_subject && !subject_done {
                        self.trace.end = End::Died(status);
                        subject_done = true;
                    } else if !is_subject {
                        child_done = true;
                    }
                    continue;
                }
                WaitStatus::PtraceEvent(_, _, event) => self.event(pid, event, &mut child_done),
                WaitStatus::PtraceSyscall(_) => self.call(pid),
                // How a forked process begins.
                WaitStatus::Stopped(_, Signal::SIGSTOP) if !is_subject => Next::GoOn(None),
                WaitStatus::Stopped(_, Signal::SIGSTOP) => Next::LetGo,
                WaitStatus::Stopped(_, signal) => Next::GoOn(Some(signal)),
                other => panic!("not expected: {other:?}"),
            };
            match next {
                Next::GoOn(signal) => self.go_on(pid, signal),
                Next::LetGo => {
                    ptrace::detach(pid, None).expect("it is stopped");
                    if is_subject {
                        subject_done = true;
                    } else {
                        child_done = true;
                    }
                }
                Next::Kill => {
                    kill(pid, Signal::SIGKILL).expect("it is stopped");
                    if is_subject {
                        self.reap_threads();
                        // Dead, and not reaped: the next start has to do with a zombie.
                        let flags =
                            WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
                        waitid(Id::Pid(pid), flags).expect("it was killed");
                        self.trace.end = End::Killed;
                        subject_done = true;
                    }
                }
            }
        }
    }

    /// A process is dead only when the last of its traced threads has been waited for.
    fn reap_threads(&mut self) {
        for thread in std::mem::take(&mut self.threads) {
            while let Ok(status) = waitpid(thread, Some(WaitPidFlag::__WALL)) {
                if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
                    break;
                }
            }
        }
    }

    /// A killed tracee that is gone already is no error.
    fn go_on(&self, pid: Pid, signal: Option<Signal>) {
        let counted = (pid == self.subject) == (self.victim == Victim::Subject);
        let result = if !self.done && (counted || pid == self.subject) {
            ptrace::syscall(pid, signal)
        } else {
            ptrace::cont(pid, signal)
        };
        assert!(matches!(result, Ok(()) | Err(Errno::ESRCH)), "{result:?}");
    }

    fn event(&mut self, pid: Pid, event: i32, child_done: &mut bool) -> Next {
        match event {
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                let new = ptrace::getevent(pid).expect("a fork tells its child");
                let new = Pid::from_raw(i32::try_from(new).expect("a PID"));
                if is_thread(pid, new) {
                    self.threads.insert(new);
                    return Next::GoOn(None);
                }
                assert!(
                    self.trace.child.is_none(),
                    "one child is all that is traced"
                );
                self.trace.child = Some(new);
                *child_done = false;
                Next::GoOn(None)
            }
            libc::PTRACE_EVENT_EXEC => Next::LetGo,
            _ => Next::GoOn(None),
        }
    }

    fn call(&mut self, pid: Pid) -> Next {
        let info = ptrace::syscall_info(pid).expect("it is in a call");
        let counted = (pid == self.subject) == (self.victim == Victim::Subject);
        match info.op {
            ENTRY => {
                // SAFETY: the kernel fills this part of the union at an entry.
                let entry = unsafe { info.u.entry };
                let site = Site {
                    number: i64::try_from(entry.nr).unwrap_or(-1),
                    stack: info.stack_pointer,
                };
                let call = Call {
                    point: Point { site, nth: 0 },
                    number: site.number,
                    arguments: entry.args,
                    of_proc: false,
                };
                if pid == self.subject && call.is_mark() {
                    self.counting = !self.counting;
                    return Next::GoOn(None);
                }
                if !self.counting || !counted {
                    return Next::GoOn(None);
                }
                let link = format!("/proc/{pid}/fd/{}", call.arguments[0]);
                let made = self.made.entry(site).or_default();
                let nth = std::mem::replace(made, *made + 1);
                let call = Call {
                    point: Point { site, nth },
                    of_proc: std::fs::read_link(link).is_ok_and(|file| file.starts_with("/proc")),
                    ..call
                };
                self.trace.calls.push(call);
                self.enter(pid, &call)
            }
            EXIT if self.counting && counted => self.leave(pid),
            _ => Next::GoOn(None),
        }
    }

    fn enter(&mut self, pid: Pid, call: &Call) -> Next {
        let now = call.point;
        self.trace.reached |= self.plan.point() == Some(now);
        match self.plan {
            Plan::KillBefore(at) if at == now => return Next::Kill,
            Plan::Fail(at, _) if at == now => {
                self.failing = true;
                // A descriptor is closed whatever the kernel says of it.
                if call.number != libc::SYS_close {
                    registers::skip(pid).expect("it is at an entry");
                }
            }
            Plan::Short(at) if at == now => {
                let half = call.arguments[2] / 2;
                registers::set_third_argument(pid, half).expect("it is at an entry");
                self.done = true;
            }
            _ => {}
        }
        Next::GoOn(None)
    }

    fn leave(&mut self, pid: Pid) -> Next {
        let Some(now) = self.trace.calls.last().map(|call| call.point) else {
            return Next::GoOn(None); // of the mark
        };
        if self.plan == Plan::KillAfter(now) {
            return Next::Kill;
        }
        if let Plan::Fail(_, errno) = self.plan
            && std::mem::take(&mut self.failing)
        {
            registers::set_failure(pid, errno).expect("it is at an exit");
            self.done = true;
        }
        Next::GoOn(None)
    }
}

fn is_thread(process: Pid, id: Pid) -> bool {
    std::path::Path::new(&format!("/proc/{process}/task/{id}")).exists()
}

impl Call {
    fn is_mark(&self) -> bool {
        self.number == libc::SYS_close && self.arguments[0] as i32 == -1
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self.number, libc::SYS_write | libc::SYS_pwrite64)
    }

    /// Calls that tell the time or the caller's name, allocate, or change what is the process's
    /// own: no full disk, broken medium or want of descriptors makes them fail.
    pub(super) fn can_fail(&self) -> bool {
        let closes_proc = self.of_proc && self.number == libc::SYS_close;
        let asks_for_flags =
            self.number == libc::SYS_fcntl && self.arguments[1] == libc::F_GETFD as u64;
        !closes_proc
            && !asks_for_flags
            && !matches!(
                self.number,
                libc::SYS_brk
                | libc::SYS_mmap
                | libc::SYS_munmap
                | libc::SYS_mprotect
                | libc::SYS_madvise
                | libc::SYS_mremap
                | libc::SYS_futex
                | libc::SYS_getrandom
                | libc::SYS_clock_gettime
                | libc::SYS_clock_nanosleep
                | libc::SYS_nanosleep
                | libc::SYS_restart_syscall
                | libc::SYS_getpid
                | libc::SYS_gettid
                | libc::SYS_geteuid
                | libc::SYS_getuid
                | libc::SYS_rt_sigaction
                | libc::SYS_rt_sigprocmask
                | libc::SYS_rt_sigreturn
                | libc::SYS_sigaltstack
                | libc::SYS_sched_yield
                | libc::SYS_set_robust_list
                | libc::SYS_rseq
                | libc::SYS_exit
                | libc::SYS_exit_group
                // A process that can't be started is the caller's to report.
                | libc::SYS_clone
                | libc::SYS_clone3
                | libc::SYS_wait4
                | libc::SYS_waitid
            )
    }
}
