//! Five candidates for one exclusive service, three nodes of etcd, and faults at random, for as long
//! as is wanted; then a checker looks at what the servers have written.
//!
//! `cluster-torture [--seconds N] [--seed N] [--planted FAULT]`. With a planted fault it succeeds if
//! the checker finds it.
#![allow(clippy::expect_used, clippy::panic)]

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::io::{BufRead, BufReader};
    use std::path::{Path, PathBuf};
    use std::process::{Child, ExitCode, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::{Duration, Instant};

    use fastrand::Rng;
    use llmlb_cluster_tests::etcd::Etcd;
    use llmlb_cluster_tests::proxy::Proxy;
    use llmlb_cluster_tests::{guinea, role};
    use llmlb_lock_cluster::{BootTime, Interrupt, Timing};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    const CANDIDATES: usize = 5;
    const MARK: &str = "LLMLB_TORTURE";
    /// Beyond the TTL, until the next is active.
    const SLACK: Duration = Duration::from_secs(1);

    pub(crate) fn main() -> ExitCode {
        let mut options = BTreeMap::new();
        let mut args = std::env::args().skip(1);
        while let (Some(name), Some(value)) = (args.next(), args.next()) {
            options.insert(name, value);
        }
        let number = |name: &str, default: u64| {
            options
                .get(name)
                .map_or(default, |text| text.parse().expect("a number"))
        };
        let seed = number("--seed", fastrand::u64(..1_000_000));
        let time = Duration::from_secs(number("--seconds", 60));
        let planted = options.get("--planted").cloned();
        if planted.is_some() && !cfg!(feature = "planted-faults") {
            eprintln!("faults are planted in a build with --features planted-faults alone");
            return ExitCode::from(2);
        }
        let mut run = Run::new(seed, planted.clone());
        run.torture(time);
        run.end();
        run.judge(planted.as_deref())
    }

    struct Run {
        rng: Rng,
        seed: u64,
        start: BootTime,
        etcd: Etcd,
        candidates: Vec<Candidate>,
        dir: PathBuf,
        _temp: tempfile::TempDir,
        timing: Timing,
        planted: Option<String>,
        faults: Vec<Fault>,
        /// What is to be undone, and when.
        heals: Vec<(BootTime, Heal)>,
        counts: BTreeMap<&'static str, u32>,
        log: String,
        stalls: Arc<Mutex<Vec<(BootTime, Duration)>>>,
        ended: Arc<AtomicBool>,
    }

    /// One that was made, and how long it lasted.
    struct Fault {
        from: BootTime,
        to: BootTime,
        /// Whose; none: of etcd's.
        candidate: Option<usize>,
        /// It is more than a process that ends or stands still: etcd answers late or not at all.
        network: bool,
    }

    #[derive(Clone)]
    enum Heal {
        Restart(usize),
        Continue(u32),
        StartNode(usize),
        ContinueNode(usize),
        Network(usize),
        Hold(usize),
    }

    struct Candidate {
        child: Child,
        proxies: Vec<Proxy>,
        known: Arc<Mutex<Known>>,
        busy: BootTime,
    }

    /// What it has said.
    #[derive(Default, Clone)]
    struct Known {
        watchdog: Option<u32>,
        server: Option<u32>,
        lines: Vec<(BootTime, String)>,
    }

    impl Run {
        fn new(seed: u64, planted: Option<String>) -> Self {
            let temp = llmlb_cluster_tests::scratch();
            let etcd = Etcd::start(3);
            let ended = Arc::new(AtomicBool::new(false));
            let stalls = Arc::new(Mutex::new(Vec::new()));
            watch_for_stalls(&stalls, &ended);
            let seconds = |s: f64| Duration::from_secs_f64(s);
            let mut run = Self {
                rng: Rng::with_seed(seed),
                seed,
                start: BootTime::now(),
                candidates: Vec::new(),
                dir: temp.path().to_owned(),
                _temp: temp,
                timing: Timing::new(seconds(3.0), seconds(0.5)).expect("they fit"),
                planted,
                faults: Vec::new(),
                heals: Vec::new(),
                counts: BTreeMap::new(),
                log: String::new(),
                etcd,
                stalls,
                ended,
            };
            for i in 0..CANDIDATES {
                let proxies: Vec<_> = run
                    .etcd
                    .nodes
                    .iter()
                    .map(|node| Proxy::start(node.port))
                    .collect();
                let known = Arc::default();
                let child = run.spawn(i, &proxies, &known);
                run.candidates.push(Candidate {
                    child,
                    proxies,
                    known,
                    busy: BootTime::now(),
                });
            }
            run
        }

        fn spawn(&self, i: usize, proxies: &[Proxy], known: &Arc<Mutex<Known>>) -> Child {
            let hosts: Vec<_> = proxies
                .iter()
                .map(|proxy| format!("127.0.0.1:{}", proxy.port))
                .collect();
            let mut command = role("candidate");
            command
                .arg(format!("etcd://{}/t", hosts.join(",")))
                .args(["chat", &format!("gpu{i}")])
                .arg(&self.dir)
                .arg(self.timing.ttl().as_secs_f64().to_string())
                .arg(self.timing.drain().as_secs_f64().to_string())
                .env(MARK, self.seed.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            // Servers that end when they are asked hide much.
            if i.is_multiple_of(2) || self.planted.is_some() {
                command.arg("stubborn");
            }
            if let Some(planted) = &self.planted {
                command.arg(planted);
            }
            let mut child = command
                .spawn()
                .expect("cluster-guinea is built beside this");
            let output = BufReader::new(child.stdout.take().expect("piped"));
            let known = Arc::clone(known);
            *known.lock().expect("no panic") = Known::default();
            thread::spawn(move || {
                for line in output.lines().map_while(Result::ok) {
                    let mut known = known.lock().expect("no panic");
                    let mut words = line.split(' ');
                    match (words.next(), words.next(), words.next()) {
                        (Some("watchdog"), Some(pid), _) => known.watchdog = pid.parse().ok(),
                        (Some("active"), _, Some(pid)) => known.server = pid.parse().ok(),
                        (Some("ended"), ..) => known.server = None,
                        _ => {}
                    }
                    known.lines.push((BootTime::now(), line));
                }
            });
            child
        }

        fn note(&mut self, what: &str) {
            let at = BootTime::now().since(self.start).as_secs_f64();
            let _ = writeln!(self.log, "{at:8.3} {what}");
        }

        fn torture(&mut self, time: Duration) {
            let end = BootTime::now() + time;
            while !end.remaining().is_zero() {
                self.heal(false);
                if self.planted.is_some() && !overlaps(&self.history()).is_empty() {
                    return;
                }
                self.fault();
                let pause = if self.is_calm() {
                    self.rng.u64(100..500)
                } else {
                    self.rng.u64(10..80)
                };
                thread::sleep(Duration::from_millis(pause));
            }
        }

        fn heal(&mut self, all: bool) {
            let now = BootTime::now();
            let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.heals)
                .into_iter()
                .partition(|(at, _)| all || *at <= now);
            self.heals = later;
            for (_, heal) in due {
                match heal {
                    Heal::Restart(i) => {
                        let _ = self.candidates[i].child.kill();
                        let _ = self.candidates[i].child.wait();
                        let candidate = &self.candidates[i];
                        let child = self.spawn(i, &candidate.proxies, &candidate.known);
                        self.candidates[i].child = child;
                        self.note(&format!("candidate {i} is started again"));
                    }
                    Heal::Continue(pid) => signal(pid, Signal::SIGCONT),
                    Heal::StartNode(i) => {
                        self.etcd.nodes[i].start();
                        self.note(&format!("node {i} is started again"));
                    }
                    Heal::ContinueNode(i) => self.etcd.nodes[i].signal(Signal::SIGCONT),
                    Heal::Network(i) => {
                        for proxy in &self.candidates[i].proxies {
                            proxy.faults.heal();
                        }
                        self.note(&format!("the network of candidate {i} is whole again"));
                    }
                    Heal::Hold(i) => {
                        for proxy in &self.candidates[i].proxies {
                            proxy.faults.hold.store(true, Ordering::SeqCst);
                        }
                    }
                }
            }
        }

        /// The active one, in half of the cases; else any that has no fault now.
        fn victim(&mut self) -> Option<usize> {
            let now = BootTime::now();
            let free: Vec<_> = (0..CANDIDATES)
                .filter(|i| self.candidates[*i].busy <= now)
                .collect();
            let active = free
                .iter()
                .copied()
                .find(|i| self.known(*i).server.is_some());
            match active {
                Some(active) if self.rng.u8(..3) > 0 => Some(active),
                // Somebody has to be left that may take over.
                _ if free.len() < 3 => None,
                _ => self.rng.choice(&free).copied(),
            }
        }

        fn known(&self, i: usize) -> Known {
            self.candidates[i].known.lock().expect("no panic").clone()
        }

        /// Half of the time etcd and the network are well, so that take-overs can be timed.
        fn is_calm(&self) -> bool {
            self.planted.is_none()
                && (BootTime::now().since(self.start).as_secs() / 12).is_multiple_of(2)
        }

        fn fault(&mut self) {
            let ttl = self.timing.ttl();
            let longest = 2 * u32::try_from(ttl.as_millis()).expect("it is short");
            // Most are short, so that there are many.
            let long = match self.planted.as_deref() {
                // Whoever goes on when another is active gives back what is not his.
                Some("release-by-name") => ttl.mul_f64(1.2 + self.rng.f64()),
                _ => {
                    Duration::from_millis(50 + (self.rng.f64().powi(3) * f64::from(longest)) as u64)
                }
            };
            let short = Duration::from_millis(50 + (self.rng.f64().powi(2) * 1500.0) as u64);
            let dice = match self.planted.as_deref() {
                // Those that bring it to light, so that it does not take all day.
                Some("no-watchdog") => self.rng.u8(0..20),
                Some("deadline-from-answer") => self.rng.u8(86..94),
                Some(_) => self.rng.u8(10..20),
                None => self.rng.u8(0..100),
            };
            let dice = if self.is_calm() { dice / 2 } else { dice };
            if (50..64).contains(&dice) {
                return self.node_fault(dice, short * 2);
            }
            let Some(i) = self.victim() else { return };
            match dice {
                0..10 => self.kill_candidate(i, short),
                10..20 => {
                    let pid = self.candidates[i].child.id();
                    self.stop(i, pid, "candidate", long);
                }
                20..50 => self.process_fault(i, dice, short, long),
                _ => self.network_fault(i, dice, long),
            }
        }

        fn made(
            &mut self,
            what: &'static str,
            candidate: Option<usize>,
            network: bool,
            lasts: Duration,
        ) {
            let from = BootTime::now();
            *self.counts.entry(what).or_default() += 1;
            self.faults.push(Fault {
                from,
                to: from + lasts,
                candidate,
                network,
            });
            let whom = candidate.map(|i| {
                self.candidates[i].busy = from + lasts + Duration::from_millis(100);
                let active = self.known(i).server.is_some();
                format!(" of candidate {i}{}", if active { " (active)" } else { "" })
            });
            self.note(&format!(
                "{what}{} for {lasts:.1?}",
                whom.unwrap_or_default()
            ));
        }

        fn kill_candidate(&mut self, i: usize, again: Duration) {
            self.made("kill -9", Some(i), false, again);
            let _ = self.candidates[i].child.kill();
            self.heals.push((BootTime::now() + again, Heal::Restart(i)));
        }

        fn stop(&mut self, i: usize, pid: u32, whom: &str, time: Duration) {
            let what = match whom {
                "candidate" => "SIGSTOP",
                "watchdog" => "SIGSTOP of the watchdog",
                _ => "SIGSTOP of the server",
            };
            self.made(what, Some(i), false, time);
            signal(pid, Signal::SIGSTOP);
            self.heals
                .push((BootTime::now() + time, Heal::Continue(pid)));
        }

        fn process_fault(&mut self, i: usize, dice: u8, short: Duration, long: Duration) {
            let known = self.known(i);
            match (dice, known.watchdog, known.server) {
                (20..30, Some(watchdog), _) if self.planted.is_none() => {
                    // Its guardian killed within the milliseconds that a successor takes to start
                    // is what remains: nobody is left to kill the server.
                    let short = short.max(Duration::from_millis(500));
                    self.made("kill -9 of the watchdog", Some(i), false, short);
                    signal(watchdog, Signal::SIGKILL);
                }
                (30..37, Some(watchdog), _) => self.stop(i, watchdog, "watchdog", long),
                (37..44, _, Some(server)) => {
                    self.made("kill -9 of the server", Some(i), false, Duration::ZERO);
                    signal(server, Signal::SIGKILL);
                }
                (44.., _, Some(server)) => self.stop(i, server, "server", short),
                _ => {}
            }
        }

        fn node_fault(&mut self, dice: u8, time: Duration) {
            let i = self.rng.usize(..self.etcd.nodes.len());
            let down = |(_, heal): &&(BootTime, Heal)| {
                matches!(heal, Heal::StartNode(_) | Heal::ContinueNode(_))
            };
            let same = |(_, heal): &(BootTime, Heal)| matches!(heal, Heal::StartNode(n) | Heal::ContinueNode(n) if *n == i);
            // Seldom two: then there is no majority.
            let down = self.heals.iter().filter(down).count();
            if self.heals.iter().any(same) || down > 1 || down == 1 && self.rng.u8(..4) > 0 {
                return;
            }
            let heal = if dice < 57 {
                self.made("kill -9 of an etcd node", None, true, time);
                self.etcd.nodes[i].kill();
                Heal::StartNode(i)
            } else {
                self.made("SIGSTOP of an etcd node", None, true, time);
                self.etcd.nodes[i].signal(Signal::SIGSTOP);
                Heal::ContinueNode(i)
            };
            self.heals.push((BootTime::now() + time, heal));
        }

        fn network_fault(&mut self, i: usize, dice: u8, time: Duration) {
            let request = u64::try_from(self.timing.request().as_millis()).expect("it is short");
            let now = BootTime::now();
            let part = self.rng.usize(1..=3);
            let late = self.rng.u64(1..request);
            let all = |set: &dyn Fn(&Proxy)| self.candidates[i].proxies.iter().for_each(set);
            let what = match dice {
                64..70 => {
                    all(&|proxy| proxy.faults.cut(true));
                    "partition"
                }
                70..75 => {
                    let some = &self.candidates[i].proxies[..part];
                    some.iter().for_each(|proxy| proxy.faults.cut(true));
                    "partition from some nodes"
                }
                75..80 => {
                    all(&|proxy| proxy.faults.hold.store(true, Ordering::SeqCst));
                    "held back, to come late"
                }
                80..83 => {
                    all(&|proxy| proxy.faults.delay_requests.store(late, Ordering::SeqCst));
                    "late requests"
                }
                83..86 => {
                    all(&|proxy| proxy.faults.delay_answers.store(late, Ordering::SeqCst));
                    "late answers"
                }
                86..94 => {
                    // Just in time for the request's limit, and then nothing more.
                    let late = request * 9 / 10;
                    all(&|proxy| proxy.faults.delay_answers.store(late, Ordering::SeqCst));
                    let soon = self.timing.renew() + Duration::from_millis(late + 100);
                    self.heals.push((now + soon, Heal::Hold(i)));
                    self.made(
                        "late answers, then none",
                        Some(i),
                        true,
                        soon + self.timing.ttl(),
                    );
                    let end = now + soon + self.timing.ttl();
                    self.heals.push((end, Heal::Network(i)));
                    return;
                }
                94..97 => {
                    all(&|proxy| proxy.faults.double_answers.store(true, Ordering::SeqCst));
                    "doubled answers"
                }
                _ => {
                    all(&|proxy| proxy.faults.cut_answers.store(true, Ordering::SeqCst));
                    "cut answers"
                }
            };
            self.made(what, Some(i), true, time);
            self.heals.push((now + time, Heal::Network(i)));
        }

        /// Everything is whole again, and everyone ends in good order.
        fn end(&mut self) {
            self.heal(true);
            self.note("all is whole again");
            for candidate in &mut self.candidates {
                drop(candidate.child.stdin.take());
            }
            let until = Instant::now() + Duration::from_secs(30);
            for i in 0..CANDIDATES {
                while matches!(self.candidates[i].child.try_wait(), Ok(None)) {
                    if Instant::now() > until {
                        self.note(&format!("LEAK candidate {i} does not end"));
                        break;
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            }
            self.ended.store(true, Ordering::SeqCst);
        }

        fn history(&self) -> String {
            std::fs::read_to_string(self.dir.join("history")).unwrap_or_default()
        }

        fn judge(&mut self, planted: Option<&str>) -> ExitCode {
            let history = self.history();
            let mut wrong = overlaps(&history);
            let active = intervals(&history, &self.dir);
            wrong.extend(order(&active));
            if planted.is_none() {
                wrong.extend(self.leaks());
                wrong.extend(
                    self.log
                        .lines()
                        .filter(|line| line.contains("LEAK"))
                        .map(Into::into),
                );
            }
            let (gaps, late) = self.gaps(&active);
            if planted.is_none() {
                wrong.extend(late);
            }
            self.report(&active, &gaps, &wrong);
            match (planted, wrong.is_empty()) {
                (None, true) => ExitCode::SUCCESS,
                (Some(fault), false) => {
                    println!("the planted fault was found: {fault}");
                    ExitCode::SUCCESS
                }
                (None, false) => {
                    self.print_history(&history);
                    ExitCode::FAILURE
                }
                (Some(fault), true) => {
                    println!("the planted fault was NOT found: {fault}");
                    ExitCode::FAILURE
                }
            }
        }

        /// Processes, leases and keys that are still there.
        fn leaks(&self) -> Vec<String> {
            let mut left = Vec::new();
            let until = Instant::now() + self.timing.ttl() + Duration::from_secs(5);
            loop {
                left.clear();
                left.extend(
                    marked(self.seed)
                        .into_iter()
                        .map(|pid| format!("LEAK process {pid}")),
                );
                let leases = self.etcd.call("lease/leases", "{}");
                if leases.contains("\"ID\"") {
                    left.push(format!("LEAK leases {leases}"));
                }
                match self.etcd.cluster("t").servers(None, &Interrupt::new()) {
                    Ok(listing) if listing.servers.is_empty() => {}
                    other => left.push(format!("LEAK keys {other:?}")),
                }
                if left.is_empty() || Instant::now() > until {
                    return left;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }

        /// From the end of one server to the begin of the next; and those that took too long
        /// although nothing was wrong with etcd, the network and somebody who could have.
        fn gaps(&self, active: &[Interval]) -> (Vec<(Duration, bool)>, Vec<String>) {
            let mut gaps = Vec::new();
            let mut late = Vec::new();
            for pair in active.windows(2) {
                let (ended, begun) = (pair[0].end, pair[1].begin);
                let gap = begun.since(ended);
                let from = ended - self.timing.ttl();
                let network =
                    |fault: &Fault| fault.network && fault.from < begun && fault.to + SLACK > from;
                let touched = |fault: &Fault, i: usize| {
                    fault.candidate == Some(i)
                        && fault.from < begun
                        && fault.to + Duration::from_millis(500) > ended
                };
                let quiet = !self.faults.iter().any(network)
                    && (0..CANDIDATES).any(|i| !self.faults.iter().any(|fault| touched(fault, i)));
                gaps.push((gap, quiet));
                let stalls = self.stalls.lock().expect("no panic");
                let stalled: Duration = stalls
                    .iter()
                    .filter(|(at, _)| *at > from && *at < begun + SLACK)
                    .map(|(_, time)| *time)
                    .sum();
                if quiet && gap > self.timing.ttl() + SLACK + stalled {
                    let at = ended.since(self.start).as_secs_f64();
                    late.push(format!("LATE nobody was active for {gap:.2?} from {at:.3}"));
                }
            }
            (gaps, late)
        }

        fn report(&self, active: &[Interval], gaps: &[(Duration, bool)], wrong: &[String]) {
            let faults: u32 = self.counts.values().sum();
            println!(
                "seed {}, {:.0} s, TTL {} s: {faults} faults, {} times active, {} violations",
                self.seed,
                BootTime::now().since(self.start).as_secs_f64(),
                self.timing.ttl().as_secs(),
                active.len(),
                wrong.len(),
            );
            for (what, count) in &self.counts {
                println!("  {count:4} {what}");
            }
            for (name, quiet) in [("with etcd and network well", true), ("all others", false)] {
                let mut times: Vec<_> = gaps
                    .iter()
                    .filter(|gap| gap.1 == quiet)
                    .map(|gap| gap.0)
                    .collect();
                times.sort();
                let at = |part: f64| {
                    let last = times.len().saturating_sub(1) as f64;
                    times
                        .get((last * part).round() as usize)
                        .copied()
                        .unwrap_or_default()
                };
                println!(
                    "take-overs, {name}: {}, p50 {:.2?}, p90 {:.2?}, p99 {:.2?}, longest {:.2?}",
                    times.len(),
                    at(0.5),
                    at(0.9),
                    at(0.99),
                    at(1.0),
                );
            }
            for line in wrong.iter().take(20) {
                println!("VIOLATION {line}");
            }
        }

        fn print_history(&self, history: &str) {
            let mut lines: Vec<(f64, String)> = self
                .log
                .lines()
                .map(|line| {
                    let (at, what) = line.split_at(8);
                    (at.trim().parse().unwrap_or(0.0), what.trim().to_owned())
                })
                .collect();
            let since = |at: BootTime| at.since(self.start).as_secs_f64();
            for (i, candidate) in self.candidates.iter().enumerate() {
                let known = candidate.known.lock().expect("no panic");
                lines.extend(
                    known
                        .lines
                        .iter()
                        .map(|(at, line)| (since(*at), format!("  candidate {i}: {line}"))),
                );
            }
            for line in history.lines() {
                if let Some(at) = line.split(' ').nth(2).and_then(|at| at.parse().ok()) {
                    lines.push((
                        since(BootTime::from_nanos(at)),
                        format!("    server: {line}"),
                    ));
                }
            }
            lines.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (at, line) in lines {
                println!("{at:8.3} {line}");
            }
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            for candidate in &mut self.candidates {
                let _ = candidate.child.kill();
                let _ = candidate.child.wait();
            }
            // Without a watchdog, and with one that is planted away, servers stay.
            for pid in marked(self.seed) {
                signal(pid, Signal::SIGKILL);
            }
        }
    }

    fn is_ours(pid: u32) -> bool {
        std::fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|exe| guinea().canonicalize().is_ok_and(|own| own == exe))
    }

    /// A process that is ours, by its program: numbers are given anew.
    fn signal(pid: u32, signal: Signal) {
        if is_ours(pid)
            && let Ok(pid) = i32::try_from(pid)
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn marked(seed: u64) -> Vec<u32> {
        let mark = format!("{MARK}={seed}");
        let Ok(all) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            // Others' environment may be on a mount that hangs, and so would this.
            .filter(|pid: &u32| is_ours(*pid))
            .filter(|pid| {
                std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                    environ
                        .split(|byte| *byte == 0)
                        .any(|one| one == mark.as_bytes())
                })
            })
            .collect()
    }

    /// How late this machine wakes who sleeps.
    fn watch_for_stalls(stalls: &Arc<Mutex<Vec<(BootTime, Duration)>>>, ended: &Arc<AtomicBool>) {
        let (stalls, ended) = (Arc::clone(stalls), Arc::clone(ended));
        let step = Duration::from_millis(10);
        thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let before = BootTime::now();
                thread::sleep(step);
                let now = BootTime::now();
                let late = now.since(before).saturating_sub(step);
                if late > step {
                    stalls.lock().expect("no panic").push((now, late));
                }
            }
        });
    }

    /// From its first sign of life to its last.
    struct Interval {
        token: u64,
        begin: BootTime,
        end: BootTime,
    }

    fn intervals(history: &str, dir: &Path) -> Vec<Interval> {
        let mut all: Vec<Interval> = history
            .lines()
            .filter_map(|line| {
                let mut words = line.strip_prefix("begin ")?.split(' ');
                let token = words.next()?.parse().ok()?;
                let begin = BootTime::from_nanos(words.next()?.parse().ok()?);
                let life = std::fs::read(dir.join(format!("life-{token}"))).unwrap_or_default();
                let last = life.try_into().map_or(0, u64::from_ne_bytes);
                Some(Interval {
                    token,
                    begin,
                    end: BootTime::from_nanos(last).max(begin),
                })
            })
            .collect();
        all.sort_by_key(|one| one.begin);
        all
    }

    /// What the servers themselves found: another had the kernel's lock.
    fn overlaps(history: &str) -> Vec<String> {
        history
            .lines()
            .filter(|line| line.starts_with("overlap"))
            .map(Into::into)
            .collect()
    }

    fn order(active: &[Interval]) -> Vec<String> {
        active
            .windows(2)
            .flat_map(|pair| {
                let (a, b) = (&pair[0], &pair[1]);
                let overlap = (a.end > b.begin).then(|| {
                    format!(
                        "{} is active {:?} into {}",
                        a.token,
                        a.end.since(b.begin),
                        b.token
                    )
                });
                let token =
                    (a.token >= b.token).then(|| format!("token {} after {}", b.token, a.token));
                [overlap, token].into_iter().flatten()
            })
            .collect()
    }
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
