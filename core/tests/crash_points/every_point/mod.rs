//! Goes through all operations and all points of each. Every operation has a worker process, in a
//! PID namespace of its own where one may be made, so that a look at all processes is a short one.

mod registers;
mod scenario;
mod tracer;
mod world;

use std::io::{PipeReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::exit;
use std::time::Instant;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};

use scenario::{After, Scenario};
use tracer::{Call, End, Plan, Trace};
use world::World;

/// How many operations are looked at together.
const WORKERS: usize = 8;
/// A worker that takes longer hangs, in seconds.
const PATIENCE: u32 = 300;
/// What a call fails with: a broken medium, a full one, no descriptors left, a signal.
const ERRORS: [Errno; 4] = [Errno::EIO, Errno::ENOSPC, Errno::EMFILE, Errno::EINTR];
/// An operation of many calls is divided among so many workers, as it waits a lot.
const SHARES: usize = 6;
/// What has more calls than this looks at many processes or waits: of each site there the first,
/// the second and the last call are points.
const MANY: usize = 100;
/// So many failures tell enough of one operation.
const ENOUGH: usize = 8;

pub(super) fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let filters: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    if let Err(why) = is_allowed() {
        println!("crash points: SKIPPED, as ptrace is not allowed here: {why}");
        return;
    }
    let started = Instant::now();
    let mut waiting: Vec<_> = scenario::all()
        .into_iter()
        .filter(|s| filters.is_empty() || filters.iter().any(|f| s.name.contains(f.as_str())))
        .flat_map(|scenario| (0..scenario.shares()).map(move |share| (scenario, share)))
        .collect();
    if waiting.is_empty() {
        return;
    }
    // The longest first; they are taken from the end.
    waiting.sort_by_key(|(scenario, _)| scenario.is_long);
    let mut running: Vec<Worker> = Vec::new();
    let mut total = 0;
    let mut failed = false;
    while !(waiting.is_empty() && running.is_empty()) {
        while running.len() < WORKERS
            && let Some((scenario, share)) = waiting.pop()
        {
            running.push(Worker::start(scenario, share));
        }
        let worker = running.remove(0);
        match worker.finish() {
            Ok(points) => total += points,
            Err(()) => failed = true,
        }
    }
    println!(
        "crash points: {total} in all, in {:.1} s{}",
        started.elapsed().as_secs_f32(),
        if failed { ": FAILED" } else { "" }
    );
    if failed {
        exit(101);
    }
}

fn is_allowed() -> Result<(), Errno> {
    // SAFETY: this process has a single thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let traced = nix::sys::ptrace::traceme();
            if traced.is_ok() {
                let _ = nix::sys::signal::raise(Signal::SIGSTOP);
            }
            exit(traced.err().map_or(0, |e| e as i32));
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Stopped(..) => {
                let looked = nix::sys::ptrace::syscall_info(child).map(drop);
                kill(child, Signal::SIGKILL)?;
                waitpid(child, None)?;
                looked
            }
            WaitStatus::Exited(_, errno) => Err(Errno::from_raw(errno)),
            _ => Err(Errno::EPERM),
        },
    }
}

struct Worker {
    name: &'static str,
    pid: Pid,
    output: PipeReader,
}

impl Worker {
    fn start(scenario: Scenario, share: usize) -> Self {
        let (output, mut say) = std::io::pipe().unwrap();
        // SAFETY: this process has a single thread.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self {
                name: scenario.name,
                pid: child,
                output,
            },
            ForkResult::Child => {
                drop(output);
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
                enter_namespace();
                alarm::set(PATIENCE);
                let points = all_points(&scenario, share);
                let points = points.map_or_else(|()| "failed".to_owned(), |n| n.to_string());
                say.write_all(points.as_bytes()).unwrap();
                exit(0);
            }
        }
    }

    fn finish(mut self) -> Result<usize, ()> {
        let mut points = String::new();
        self.output.read_to_string(&mut points).unwrap();
        let status = waitpid(self.pid, None).unwrap();
        points.parse().map_err(|_| {
            if points.is_empty() {
                println!("{}: the worker was lost: {status:?}", self.name);
            }
        })
    }
}

/// A process that is not allowed one works in the namespace there is.
fn enter_namespace() {
    if unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).is_err() {
        return;
    }
    // SAFETY: this process has a single thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).unwrap();
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).unwrap();
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => exit(code),
            status => {
                println!("{status:?}");
                exit(101);
            }
        },
    }
}

/// How many points there were; what went wrong is printed.
fn all_points(scenario: &Scenario, share: usize) -> Result<usize, ()> {
    let started = Instant::now();
    let mut world = World::new();
    let calls = match at_point(&mut world, scenario, Plan::Count) {
        Ok(trace) => trace.calls,
        Err(why) => {
            println!("{}: {why}", scenario.name);
            return Err(());
        }
    };
    if std::env::var_os("LLMLB_CRASH_POINTS_CALLS").is_some() {
        for call in &calls {
            println!("{}: {}", scenario.name, name(call));
        }
    }
    let mut plans = plans(scenario, &calls);
    let shares = scenario.shares();
    // By its site: from run to run the number of calls differs, where they are made does not.
    plans.retain(|plan| {
        plan.point()
            .is_some_and(|at| at.site.share(shares) == share)
    });
    if let Ok(only) = std::env::var("LLMLB_CRASH_POINTS_ONLY") {
        plans.retain(|plan| format!("{plan:?}").contains(&only));
    }
    let mut wrong = 0;
    let mut missed = 0;
    for &plan in &plans {
        if std::env::var_os("LLMLB_CRASH_POINTS_CALLS").is_some() {
            println!("{}: {plan:?}", scenario.name);
        }
        let looked = at_point(&mut world, scenario, plan);
        missed += usize::from(looked.as_ref().is_ok_and(|trace| !trace.reached));
        if let Err(why) = looked {
            let at = calls.iter().find(|call| Some(call.point) == plan.point());
            let at = at.map(name).unwrap_or_default();
            println!("{}, {plan:?} {at}: {why}", scenario.name);
            wrong += 1;
            scenario::clear(&world);
            if wrong == ENOUGH {
                break;
            }
        }
    }
    let kills = plans.iter().filter(|plan| plan.kills()).count();
    println!(
        "crash points: {}{}: {} calls, {kills} kills, {} failures{}, {:.1} s{}",
        scenario.name,
        match shares {
            1 => String::new(),
            _ => format!(" ({} of {shares})", share + 1),
        },
        calls.len(),
        plans.len() - kills,
        match missed {
            0 => String::new(),
            _ => format!(" ({missed} calls not made this time)"),
        },
        started.elapsed().as_secs_f32(),
        if wrong == 0 { "" } else { ": FAILED" }
    );
    if wrong == 0 {
        Ok(plans.len() - missed)
    } else {
        Err(())
    }
}

/// Whether this call is one to be cut off at, among so many.
fn is_point(call: &Call, calls: &[Call]) -> bool {
    if std::env::var_os("LLMLB_CRASH_POINTS_ALL").is_some() {
        return true;
    }
    let last = || {
        calls
            .iter()
            .rfind(|other| other.point.site == call.point.site)
    };
    calls.len() <= MANY || call.point.nth < 2 || last().is_some_and(|l| l.point == call.point)
}

fn plans(scenario: &Scenario, calls: &[Call]) -> Vec<Plan> {
    let mut plans = Vec::new();
    for call in calls.iter().filter(|call| is_point(call, calls)) {
        let at = call.point;
        plans.extend([Plan::KillBefore(at), Plan::KillAfter(at)]);
        if call.can_fail() && !(scenario.exempt)(call) {
            let errors = ERRORS
                .iter()
                .filter(|&&e| !(call.of_proc && e == Errno::EINTR));
            plans.extend(errors.map(|&errno| Plan::Fail(at, errno)));
        }
        if call.is_write() {
            plans.push(Plan::Short(at));
        }
    }
    plans
}

/// Runs the operation once and looks at what it leaves. Its calls, or what is wrong.
fn at_point(world: &mut World, scenario: &Scenario, plan: Plan) -> Result<Trace, String> {
    let other = (scenario.plant)(world);
    let mut subject = world.subject(scenario, other);
    let trace = tracer::trace(subject.pid, scenario.victim, plan);
    let checked = in_a_fork(world, |world| {
        judge(world, scenario, plan, &mut subject, &trace)
    });
    world::end(subject.pid);
    for other in [subject.other, trace.child].into_iter().flatten() {
        world::end(other);
    }
    checked?;
    in_a_fork(world, |world| {
        world.nothing_else_is_harmed();
        Ok(())
    })?;
    Ok(trace)
}

/// Looks in a process of its own: what the library learns once and remembers, the next subject
/// must have to learn again.
fn in_a_fork(
    world: &mut World,
    look: impl FnOnce(&World) -> Result<(), String>,
) -> Result<(), String> {
    let (mut output, mut say) = std::io::pipe().unwrap();
    // SAFETY: this process has a single thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            drop(say);
            let mut text = String::new();
            output.read_to_string(&mut text).unwrap();
            let ended = waitpid(child, None).unwrap();
            match text.strip_prefix("fine") {
                Some(_) => Ok(()),
                None => Err(format!("{text} {ended:?}")),
            }
        }
        ForkResult::Child => {
            drop(output);
            world.let_go();
            let looked = catch_unwind(AssertUnwindSafe(|| look(world)));
            let text = match looked {
                Ok(Ok(())) => "fine".to_owned(),
                Ok(Err(why)) => why,
                Err(panic) => match panic.downcast::<String>() {
                    Ok(text) => *text,
                    Err(_) => "see above".to_owned(),
                },
            };
            say.write_all(text.as_bytes()).unwrap();
            exit(0);
        }
    }
}

fn judge(
    world: &World,
    scenario: &Scenario,
    plan: Plan,
    subject: &mut world::Subject,
    trace: &Trace,
) -> Result<(), String> {
    match &trace.end {
        End::Killed => {
            scenario::after_a_kill(world, scenario, subject, trace);
            return Ok(());
        }
        End::Died(status) => return Err(format!("it died: {status:?}")),
        End::Done => {}
    }
    let report = subject.report();
    match report.result {
        Ok(()) => scenario::after_success(world, scenario, subject, trace),
        Err(why) => {
            if matches!(plan, Plan::Count | Plan::Fail(_, Errno::EINTR)) {
                return Err(format!("it has no reason to fail, and says: {why}"));
            }
            let path = world.path().display().to_string();
            // Where it is about a process, there is none.
            if !why.contains(&path) && !why.contains("/proc") && !why.contains("PID ") {
                return Err(format!("the error names no path: {why}"));
            }
            if scenario.after == After::Guards
                && report.descriptors_before != report.descriptors_after
            {
                return Err(format!("a descriptor is left open after: {why}"));
            }
            scenario::after_an_error(world, scenario, subject, trace);
        }
    }
    Ok(())
}

fn name(call: &Call) -> String {
    const NAMES: [(i64, &str); 32] = [
        (libc::SYS_openat, "openat"),
        (libc::SYS_close, "close"),
        (libc::SYS_read, "read"),
        (libc::SYS_write, "write"),
        (libc::SYS_pread64, "pread64"),
        (libc::SYS_pwrite64, "pwrite64"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_flock, "flock"),
        (libc::SYS_statx, "statx"),
        (libc::SYS_fstat, "fstat"),
        (libc::SYS_newfstatat, "newfstatat"),
        (libc::SYS_unlinkat, "unlinkat"),
        (libc::SYS_ftruncate, "ftruncate"),
        (libc::SYS_fchmod, "fchmod"),
        (libc::SYS_getdents64, "getdents64"),
        (libc::SYS_pidfd_open, "pidfd_open"),
        (libc::SYS_pidfd_send_signal, "pidfd_send_signal"),
        (libc::SYS_ppoll, "ppoll"),
        (libc::SYS_lseek, "lseek"),
        (libc::SYS_readlinkat, "readlinkat"),
        (libc::SYS_kill, "kill"),
        (libc::SYS_clone, "clone"),
        (libc::SYS_pipe2, "pipe2"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_execve, "execve"),
        (libc::SYS_getpid, "getpid"),
        (libc::SYS_geteuid, "geteuid"),
        (libc::SYS_prctl, "prctl"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_munmap, "munmap"),
        (libc::SYS_brk, "brk"),
        (libc::SYS_clock_nanosleep, "clock_nanosleep"),
    ];
    let known = NAMES.iter().find(|(number, _)| *number == call.number);
    match known {
        Some((_, name)) => format!("{name}{:x?}", &call.arguments[..3]),
        None => format!("call {}{:x?}", call.number, &call.arguments[..3]),
    }
}
