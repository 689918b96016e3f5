//! What a lock costs, beside the same system calls in C, measured in the same run:
//!
//! ```text
//! cargo bench -p llmlb-lock-core            # criterion's figures, then the ratios
//! cargo bench -p llmlb-lock-core -- ratios  # the ratios alone
//! ```

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("measured on Linux alone");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{CString, c_char, c_int};
    use std::hint::black_box;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use criterion::{BenchmarkId, Criterion};
    use libloading::Library;
    use llmlb_lock_core::{LockDir, LockError, StopOptions, StopOutcome};
    use tempfile::TempDir;

    const PORT: u16 = 8000;

    pub(crate) fn main() {
        let arguments: Vec<_> = std::env::args().collect();
        let benched = arguments.iter().any(|argument| argument == "--bench");
        let ratios_alone = arguments.iter().any(|argument| argument == "ratios");
        if !ratios_alone {
            let mut criterion = Criterion::default().configure_from_args();
            acquire_and_release(&mut criterion);
            refused(&mut criterion);
            list(&mut criterion);
            criterion.final_summary();
        }
        // Not when only tested.
        if benched {
            ratios();
        }
    }

    /// The C side, compiled now: a build of the library needs no C compiler.
    struct Baseline {
        library: Library,
        _dir: TempDir,
    }

    type AcquireRelease =
        unsafe extern "C" fn(*const c_char, *const c_char, *const c_char) -> c_int;
    type Refused = unsafe extern "C" fn(*const c_char) -> c_int;
    type Floor = unsafe extern "C" fn(*const c_char, *const c_char, usize) -> c_int;

    impl Baseline {
        fn compile() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let object = dir.path().join("libbaseline.so");
            let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
            let status = cc::Build::new()
                .cargo_metadata(false)
                .target(&target)
                .host(&target)
                .opt_level(2)
                .out_dir(dir.path())
                .get_compiler()
                .to_command()
                .args(["-shared", "-fPIC", "-o"])
                .arg(&object)
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/baseline.c"))
                .status()
                .expect("a C compiler");
            assert!(status.success());
            // SAFETY: it has no initialisers.
            let library = unsafe { Library::new(&object) }.unwrap();
            Self { library, _dir: dir }
        }

        fn acquire_release(&self, locks: &LockDir) -> impl Fn() + use<'_> {
            let path = c_string(&locks.lock_path(PORT));
            let name = c_string(Path::new(locks.lock_path(PORT).file_name().unwrap()));
            let dir = c_string(locks.path());
            // SAFETY: this is its type.
            let call = unsafe {
                self.library
                    .get::<AcquireRelease>(b"baseline_acquire_release\0")
            };
            let call = call.unwrap();
            move || {
                // SAFETY: three strings, as it wants.
                let result = unsafe { call(dir.as_ptr(), name.as_ptr(), path.as_ptr()) };
                assert_eq!(result, 0);
            }
        }

        /// Open, flock, write, unlink, close.
        fn floor(&self, locks: &LockDir) -> impl Fn() + use<'_> {
            let path = c_string(&locks.lock_path(PORT));
            let text = {
                let lock = locks.acquire(PORT).unwrap();
                std::fs::read(lock.path()).unwrap()
            };
            // SAFETY: this is its type.
            let call = unsafe { self.library.get::<Floor>(b"baseline_floor\0") }.unwrap();
            move || {
                // SAFETY: a string and a text of that length, as it wants.
                let result = unsafe { call(path.as_ptr(), text.as_ptr().cast(), text.len()) };
                assert_eq!(result, 0);
            }
        }

        /// Open, flock, read, close.
        fn refused_floor(&self, locks: &LockDir) -> impl Fn() + use<'_> {
            let path = c_string(&locks.lock_path(PORT));
            // SAFETY: this is its type.
            let call = unsafe { self.library.get::<Refused>(b"baseline_refused_floor\0") };
            let call = call.unwrap();
            // SAFETY: a string, as it wants.
            move || assert_eq!(unsafe { call(path.as_ptr()) }, 0)
        }

        fn refused(&self, locks: &LockDir) -> impl Fn() + use<'_> {
            let path = c_string(&locks.lock_path(PORT));
            let own = c_int::try_from(std::process::id()).unwrap();
            // SAFETY: this is its type.
            let call = unsafe { self.library.get::<Refused>(b"baseline_refused\0") }.unwrap();
            // SAFETY: a string, as it wants.
            move || assert_eq!(unsafe { call(path.as_ptr()) }, own)
        }
    }

    fn c_string(path: &Path) -> CString {
        CString::new(path.to_str().unwrap()).unwrap()
    }

    fn directory() -> (TempDir, LockDir) {
        let dir = tempfile::tempdir().unwrap();
        let locks = LockDir::new(dir.path());
        (dir, locks)
    }

    fn acquire_and_release(criterion: &mut Criterion) {
        let (_dir, locks) = directory();
        let baseline = Baseline::compile();
        let mut group = criterion.benchmark_group("acquire and release");
        group.bench_function("llmlb", |b| {
            b.iter(|| locks.acquire(PORT).unwrap().release().unwrap());
        });
        group.bench_function("C", |b| b.iter(baseline.acquire_release(&locks)));
        group.finish();
    }

    fn be_refused(locks: &LockDir) {
        let result = locks.acquire(PORT);
        assert!(matches!(result, Err(LockError::AlreadyRunning { .. })));
    }

    fn refused(criterion: &mut Criterion) {
        let (_dir, locks) = directory();
        let baseline = Baseline::compile();
        let _lock = locks.acquire(PORT).unwrap();
        let mut group = criterion.benchmark_group("refused acquire");
        group.bench_function("llmlb", |b| b.iter(|| be_refused(&locks)));
        group.bench_function("C", |b| b.iter(baseline.refused(&locks)));
        group.finish();
    }

    fn list(criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group("list");
        group.sample_size(20);
        for count in [10, 100, 1000] {
            let servers = Servers::start(count);
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter(|| assert_eq!(servers.locks.list_all_locks().len(), count));
            });
        }
        group.finish();
    }

    /// Processes of their own, each holding the lock of a port of its own.
    struct Servers {
        locks: LockDir,
        processes: Vec<Child>,
        _dir: TempDir,
    }

    impl Servers {
        fn start(count: usize) -> Self {
            let (dir, locks) = directory();
            let ports = 10_000..;
            let processes = ports.take(count).map(|port| serve(&locks, port)).collect();
            Self {
                locks,
                processes,
                _dir: dir,
            }
        }
    }

    impl Drop for Servers {
        fn drop(&mut self) {
            for process in &mut self.processes {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }

    /// A process that holds the lock, and ends when asked to or when this one ends.
    fn serve(locks: &LockDir, port: u16) -> Child {
        let mut lock = locks.acquire(port).unwrap();
        lock.set_inheritable(true).unwrap();
        let server = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        lock.hand_over(server.id()).unwrap();
        server
    }

    fn ratios() {
        let (_dir, locks) = directory();
        let baseline = Baseline::compile();
        println!(
            "\n{:46} {:>10} {:>10} {:>7} {:>7}",
            "", "llmlb", "C", "ratio", "bar"
        );
        compare(
            "acquire + release / the same calls",
            1.3,
            || locks.acquire(PORT).unwrap().release().unwrap(),
            baseline.acquire_release(&locks),
        );
        compare(
            "acquire + release / open, flock, write, unlink",
            1.35,
            || locks.acquire(PORT).unwrap().release().unwrap(),
            baseline.floor(&locks),
        );
        let lock = locks.acquire(PORT).unwrap();
        compare(
            "refused acquire / the same calls",
            2.0,
            || be_refused(&locks),
            baseline.refused(&locks),
        );
        compare(
            "refused acquire / open, flock, read",
            5.4,
            || be_refused(&locks),
            baseline.refused_floor(&locks),
        );
        lock.release().unwrap();

        println!("\n{:46} {:>10} {:>10} {:>15}", "", "median", "95 %", "bar");
        let few = Servers::start(10);
        let look = |servers: &Servers| {
            let count = servers.processes.len();
            samples(50, || {
                assert_eq!(black_box(servers.locks.list_all_locks()).len(), count)
            })
        };
        report("list 10", look(&few), "");
        report("list 100", look(&Servers::start(100)), "");
        let many = Servers::start(1000);
        report("list 1,000", look(&many), "30 ms");
        report(
            "list 10, while 1,000 more processes run",
            look(&few),
            "as list 10",
        );
        drop(many);
        report(
            "stop, from the signal to the file's end",
            stops(&locks),
            "3 ms",
        );
        let hand_overs = (0..100).map(|round| {
            // At another point of its waiting each time.
            hand_over(&locks, Duration::from_micros(20_000 + 97 * round)).0
        });
        report(
            "hand-over to a waiting acquire_timeout",
            hand_overs.collect(),
            "5 ms",
        );
        let share = 100.0 * hand_over(&locks, Duration::from_secs(5)).1;
        println!(
            "{:46} {share:>8.2} % {:>26}",
            "a waiter's share of a core", "1 %"
        );
    }

    /// Medians of batches in turn, so that both see the same machine.
    fn compare(what: &str, bar: f64, mut ours: impl FnMut(), mut theirs: impl FnMut()) {
        // Short enough to fit between two interruptions of a busy machine.
        const BATCH: u32 = 5;
        let batch = |act: &mut dyn FnMut()| {
            let started = Instant::now();
            (0..BATCH).for_each(|_| act());
            started.elapsed() / BATCH
        };
        let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
        for _ in 0..3000 {
            our_times.push(batch(&mut ours));
            their_times.push(batch(&mut theirs));
        }
        let (ours, theirs) = (
            quantile(&mut our_times, 0.5),
            quantile(&mut their_times, 0.5),
        );
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        println!("{what:46} {ours:>10.1?} {theirs:>10.1?} {ratio:>7.2} {bar:>7.2}");
    }

    fn samples(count: usize, mut act: impl FnMut()) -> Vec<Duration> {
        let mut sample = || {
            let started = Instant::now();
            act();
            started.elapsed()
        };
        (0..count).map(|_| sample()).collect()
    }

    fn report(what: &str, mut times: Vec<Duration>, bar: &str) {
        let (median, most) = (quantile(&mut times, 0.5), quantile(&mut times, 0.95));
        println!("{what:46} {median:>10.1?} {most:>10.1?} {bar:>15}");
    }

    fn quantile(times: &mut [Duration], share: f64) -> Duration {
        times.sort_unstable();
        times[((times.len() - 1) as f64 * share) as usize]
    }

    fn stops(locks: &LockDir) -> Vec<Duration> {
        let stop = || {
            let mut server = serve(locks, PORT);
            let path: PathBuf = locks.lock_path(PORT);
            // It must have become the program that SIGTERM ends.
            let comm = format!("/proc/{}/comm", server.id());
            while std::fs::read_to_string(&comm).unwrap() != "cat\n" {
                thread::yield_now();
            }
            let started = Instant::now();
            let outcome = locks.stop_server(PORT, &StopOptions::default()).unwrap();
            let time = started.elapsed();
            assert!(matches!(outcome, StopOutcome::Stopped { .. }) && !path.exists());
            server.wait().unwrap();
            time
        };
        (0..100).map(|_| stop()).collect()
    }

    /// From the release to the return of the waiting call; and the share of a core waiting took.
    fn hand_over(locks: &LockDir, after: Duration) -> (Duration, f64) {
        let lock = locks.acquire(PORT).unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let waiter = scope.spawn(move || {
                tell.send(()).unwrap();
                let (started, cpu) = (Instant::now(), cpu_time());
                let lock = locks.acquire_timeout(PORT, Duration::from_secs(60));
                let worked = (cpu_time() - cpu).as_secs_f64();
                let share = worked / started.elapsed().as_secs_f64();
                (Instant::now(), share, lock.unwrap())
            });
            told.recv().unwrap();
            thread::sleep(after);
            let released = Instant::now();
            lock.release().unwrap();
            let (acquired, share, _lock) = waiter.join().unwrap();
            (acquired.saturating_duration_since(released), share)
        })
    }

    /// Of this thread.
    fn cpu_time() -> Duration {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the time is ours to be written.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        assert_eq!(result, 0);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}
