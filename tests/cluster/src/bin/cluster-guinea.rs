//! Plays the parts of the tests: watchdog, gate, server, guardian, candidate.
#![allow(clippy::expect_used, clippy::panic, clippy::zombie_processes)]

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::OsString;
    use std::fs::{File, OpenOptions};
    use std::io::{self, BufRead, Write};
    use std::os::unix::fs::FileExt;
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio, exit};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use llmlb_lock_cluster::{
        BootTime, Cluster, ClusterError, ClusterUrl, Exclusive, Interrupt, Options, Record, Timing,
        watchdog::{self, Watchdog},
    };
    use nix::fcntl::{Flock, FlockArg};
    use nix::sys::signal::{SigSet, Signal, kill};
    use nix::unistd::Pid;

    pub(crate) fn main() {
        let mut args = std::env::args_os().skip(1);
        let role = args.next().unwrap_or_default();
        let args: Vec<OsString> = args.collect();
        match role.to_str() {
            Some("watchdog") => watchdog::run().expect("it watches"),
            Some("gate") => {
                let error = watchdog::pass_gate(Command::new(&args[0]).args(&args[1..]));
                eprintln!("gate: {error}");
                exit(127);
            }
            Some("die-with-parent") => {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("Linux");
                panic!("{}", Command::new(&args[0]).args(&args[1..]).exec());
            }
            Some("listen") => listen(&args),
            Some("model") => model(&args),
            Some("server") => server(&args),
            Some("guardian") => guardian(&args),
            Some("candidate") => candidate(&args),
            other => panic!("no role: {other:?}"),
        }
    }

    fn say(what: impl std::fmt::Display) {
        let mut out = io::stdout().lock();
        // Nobody listens any more: then nobody is told.
        let _ = writeln!(out, "{what}").and_then(|()| out.flush());
    }

    fn append(dir: &Path, line: &str) {
        let file = dir.join("history");
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .expect("the history can be written");
        // One write is one line.
        file.write_all(format!("{line}\n").as_bytes())
            .expect("the history can be written");
    }

    /// `PORT`: accepts connections there, and says who it is and what token it has.
    fn listen(args: &[OsString]) {
        let port: u16 = args[0]
            .to_str()
            .and_then(|port| port.parse().ok())
            .expect("a port");
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("it is free");
        let token = std::env::var("LLMLB_FENCING_TOKEN").unwrap_or_default();
        say(format!("serving {} {token}", std::process::id()));
        while listener.accept().is_ok() {}
    }

    /// `PORT NAME`: a model server with this one model, which answers all requests with its list.
    fn model(args: &[OsString]) {
        let text = |i: usize| args[i].to_str().expect("UTF-8");
        let port: u16 = text(0).parse().expect("a port");
        let body = format!(
            r#"{{"object":"list","data":[{{"id":"{}","object":"model"}}]}}"#,
            text(1)
        );
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("it is free");
        for mut stream in listener.incoming().flatten() {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            thread::spawn(move || {
                let mut head = Vec::new();
                let mut some = [0; 4096];
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    match io::Read::read(&mut stream, &mut some) {
                        Ok(0) | Err(_) => return,
                        Ok(length) => head.extend_from_slice(&some[..length]),
                    }
                }
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    }

    /// `DIR TOKEN polite|stubborn`: is active until it is ended. A kernel lock, which goes exactly
    /// when the process does, shows any overlap.
    fn server(args: &[OsString]) {
        let text = |i: usize| args[i].to_str().expect("UTF-8").to_owned();
        let (dir, token) = (PathBuf::from(&args[0]), text(1));
        let polite = text(2) == "polite";
        let begin = BootTime::now().as_nanos();
        let lock = File::options()
            .create(true)
            .append(true)
            .open(dir.join("active"))
            .expect("the lock can be opened");
        let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock);
        if held.is_err() {
            append(&dir, &format!("overlap {token} {begin}"));
        }
        append(
            &dir,
            &format!("begin {token} {begin} {}", std::process::id()),
        );
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.thread_block().expect("a mask");
        static ASKED: AtomicBool = AtomicBool::new(false);
        thread::spawn(move || {
            let _ = mask.wait();
            ASKED.store(true, Ordering::SeqCst);
        });
        let life = File::create(dir.join(format!("life-{token}"))).expect("it can be written");
        loop {
            let now = BootTime::now().as_nanos();
            life.write_all_at(&now.to_ne_bytes(), 0)
                .expect("it can be written");
            if polite && ASKED.load(Ordering::SeqCst) {
                append(&dir, &format!("end {token} {now}"));
                exit(0);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn start(watchdog: Option<&Watchdog>, server: &[OsString]) -> Result<Child, ClusterError> {
        let own = std::env::current_exe().expect("a program knows its own path");
        let mut command = Command::new(&own);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        let Some(watchdog) = watchdog else {
            let child = command.args(server).spawn();
            return child.map_err(ClusterError::Watchdog);
        };
        command.arg("gate");
        let gate = watchdog.gate(&mut command, None)?;
        command.arg(&own).args(server);
        let mut child = command.spawn().map_err(ClusterError::Watchdog)?;
        if let Err(error) = gate.open(child.id(), None) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }

    /// `SERVER...`: starts it under a watchdog, and lives until its input ends.
    fn guardian(args: &[OsString]) {
        let mut dog = Command::new(std::env::current_exe().expect("a program knows its own path"));
        dog.arg("watchdog");
        let watchdog = Watchdog::start(dog).expect("a watchdog");
        say(format!("watchdog {}", watchdog.pid().expect("it runs")));
        let own = std::env::current_exe().expect("a program knows its own path");
        let mut command = Command::new(&own);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .arg("gate");
        let gate = watchdog.gate(&mut command, None).expect("a gate");
        command.args(args);
        let child = command.spawn().expect("the server");
        say(format!("gated {}", child.id()));
        let mut line = String::new();
        let mut input = io::stdin().lock();
        while line.is_empty() && input.read_line(&mut line).expect("input") > 0 {}
        if line.trim() == "open" {
            gate.open(child.id(), None).expect("it opens");
            say("open");
        }
        while input.read_line(&mut line).expect("input") > 0 {}
    }

    /// `URL SERVICE NAME DIR TTL DRAIN [no-watchdog] [stubborn] [FAULT]`: is active whenever it can,
    /// until its input ends.
    fn candidate(args: &[OsString]) {
        let text = |i: usize| args[i].to_str().expect("UTF-8").to_owned();
        let seconds = |i: usize| Duration::from_secs_f64(text(i).parse().expect("seconds"));
        let has = |word: &str| args.iter().any(|arg| arg == word);
        #[cfg(feature = "planted-faults")]
        for (word, fault) in [
            (
                "deadline-from-answer",
                llmlb_lock_cluster::faults::Fault::DeadlineFromAnswer,
            ),
            (
                "release-by-name",
                llmlb_lock_cluster::faults::Fault::ReleaseByName,
            ),
        ] {
            if has(word) {
                llmlb_lock_cluster::faults::plant(fault);
            }
        }
        if std::env::var_os("LLMLB_LOG").is_some() {
            tracing_subscriber::fmt().with_writer(io::stderr).init();
        }
        let url = ClusterUrl::parse(&text(0)).expect("a URL");
        let candidate = Candidate {
            cluster: Cluster::connect(&url).expect("a cluster"),
            service: text(1),
            name: text(2),
            dir: PathBuf::from(&args[3]),
            timing: Timing::new(seconds(4), seconds(5)).expect("times that fit"),
            watched: !has("no-watchdog"),
            stubborn: has("stubborn"),
            stop: Interrupt::new(),
        };
        let stop = candidate.stop.clone();
        thread::spawn(move || {
            for _ in io::stdin().lock().lines() {}
            stop.interrupt();
        });
        while !candidate.stop.is_interrupted() {
            match candidate.turn() {
                Ok(()) | Err(ClusterError::Interrupted) => {}
                Err(error) => {
                    say(format!("error {error}"));
                    candidate.stop.sleep(Duration::from_millis(50));
                }
            }
        }
    }

    struct Candidate {
        cluster: Cluster,
        service: String,
        name: String,
        dir: PathBuf,
        timing: Timing,
        watched: bool,
        stubborn: bool,
        stop: Interrupt,
    }

    impl Candidate {
        /// Once active.
        fn turn(&self) -> Result<(), ClusterError> {
            let record = Record::new(&self.service, &self.name, 8000);
            let mut options = Options::new(record, self.timing).with_interrupt(&self.stop);
            if self.watched {
                let own = std::env::current_exe().expect("a program knows its own path");
                let mut command = Command::new(own);
                command.arg("watchdog");
                let watchdog = Watchdog::start(command)?;
                say(format!("watchdog {}", watchdog.pid().expect("it runs")));
                options = options.with_watchdog(watchdog);
            }
            say("waiting");
            let exclusive = self.cluster.acquire_timeout(&self.service, options, None)?;
            let manner = if self.stubborn { "stubborn" } else { "polite" };
            let token = exclusive.token().to_string();
            let server: [OsString; 4] = [
                "server".into(),
                self.dir.clone().into(),
                token.into(),
                manner.into(),
            ];
            let child = start(exclusive.watchdog(), &server)?;
            say(format!("active {} {}", exclusive.token(), child.id()));
            self.guard(&exclusive, child)?;
            say(format!("ended {}", exclusive.token()));
            match exclusive.release() {
                Err(ClusterError::Lost { .. }) | Ok(()) => {}
                Err(error) => say(format!("error {error}")),
            }
            Ok(())
        }

        /// Until the server has ended: by itself, since the lease is lost, or we are to stop.
        fn guard(&self, exclusive: &Exclusive, mut child: Child) -> Result<(), ClusterError> {
            let ended = Interrupt::new();
            let pid = Pid::from_raw(i32::try_from(child.id()).expect("a PID"));
            let told = ended.clone();
            let waiter = thread::spawn(move || {
                let _ = child.wait();
                told.interrupt();
            });
            loop {
                if ended.is_interrupted() {
                    break;
                }
                let lost = match exclusive.wait_lost_or(Some(Duration::from_millis(200)), &ended) {
                    Ok(None) if !self.stop.is_interrupted() => continue,
                    Ok(lost) => lost,
                    Err(_) => break,
                };
                if let Some(lost) = lost {
                    say(format!("lost {} {lost}", exclusive.token()));
                }
                // Not waited for yet by more than the waiter: its number may be gone, so no -1, 0.
                let _ = kill(pid, Signal::SIGTERM);
                let drain = exclusive.kill_at().remaining().min(self.timing.drain());
                if !ended.sleep(drain) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
                break;
            }
            let _ = waiter.join();
            Ok(())
        }
    }
}

fn main() {
    #[cfg(target_os = "linux")]
    linux::main();
}
