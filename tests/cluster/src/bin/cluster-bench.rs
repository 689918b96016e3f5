//! What a thousand registrations and fifty watchers cost, on one etcd.
#![allow(clippy::expect_used, clippy::panic)]

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use llmlb_cluster_tests::PATIENCE;
    use llmlb_cluster_tests::etcd::Etcd;
    use llmlb_lock_cluster::{Change, Interrupt, Options, Record, Timing};
    use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};

    const SERVERS: usize = 1000;
    const WATCHERS: usize = 50;
    const WINDOW: Duration = Duration::from_secs(30);

    fn own_cpu() -> Duration {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("Linux");
        let time = |t: nix::sys::time::TimeVal| {
            Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()).unsigned_abs())
        };
        time(usage.user_time()) + time(usage.system_time())
    }

    /// A number of etcd's metrics.
    fn metric(etcd: &Etcd, name: &str) -> f64 {
        etcd.get("/metrics")
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or_default()
    }

    fn percentile(times: &mut [Duration], part: f64) -> Duration {
        times.sort();
        times[((times.len() - 1) as f64 * part).round() as usize]
    }

    /// Costs per second of window.
    fn window(etcd: &Etcd, what: &str, count: f64) {
        let (cpu, etcds) = (own_cpu(), metric(etcd, "process_cpu_seconds_total"));
        let renewed = metric(etcd, "etcd_debugging_lease_renewed_total");
        let start = Instant::now();
        thread::sleep(WINDOW);
        let time = start.elapsed().as_secs_f64();
        let renewals = (metric(etcd, "etcd_debugging_lease_renewed_total") - renewed) / time;
        let own = (own_cpu() - cpu).as_secs_f64() / time;
        let etcds = (metric(etcd, "process_cpu_seconds_total") - etcds) / time;
        println!(
            "{what}: {renewals:.0} renewals/s; {:.4} % of a core each; etcd {:.1} % of a core",
            own / count * 100.0,
            etcds * 100.0,
        );
    }

    pub(crate) fn main() {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("Linux");
        setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
        let etcd = Etcd::start(1);
        let cluster = etcd.cluster("bench");
        let interrupt = Interrupt::new();

        let start = Instant::now();
        let registrations: Vec<_> = (0..SERVERS)
            .map(|i| {
                let record = Record::new("chat", format!("gpu{i}"), 8000).with_models(["qwen3"]);
                (cluster.register(record.clone()).expect("a thread"), record)
            })
            .collect();
        for (registration, _) in &registrations {
            assert!(
                registration
                    .wait_registered(PATIENCE, &interrupt)
                    .expect("no interrupt")
            );
        }
        println!("{SERVERS} registered in {:.2?}", start.elapsed());
        window(&etcd, "idle registrations", SERVERS as f64);

        let mut starts: Vec<_> = Vec::new();
        let watches: Vec<_> = (0..WATCHERS)
            .map(|_| {
                let start = Instant::now();
                let watch = cluster.watch(Some("chat")).expect("a thread");
                let first = watch
                    .next(Some(PATIENCE), &interrupt)
                    .expect("no interrupt");
                assert!(matches!(first, Some(Change::Snapshot(all)) if all.len() == SERVERS));
                starts.push(start.elapsed());
                watch
            })
            .collect();
        println!(
            "a watcher of {SERVERS} starts in p50 {:.1?}, longest {:.1?}",
            percentile(&mut starts, 0.5),
            percentile(&mut starts, 1.0),
        );

        let (told, heard) = mpsc::channel();
        for watch in watches {
            let told = told.clone();
            thread::spawn(move || {
                while let Ok(Some(change)) = watch.next(None, &Interrupt::new()) {
                    if matches!(change, Change::Up(_)) && told.send(Instant::now()).is_err() {
                        return;
                    }
                }
            });
        }
        let mut times = Vec::new();
        for (registration, record) in registrations.iter().take(20) {
            let start = Instant::now();
            registration
                .update(record.clone().with_slots(9))
                .expect("a good record");
            for _ in 0..WATCHERS {
                times.push(heard.recv_timeout(PATIENCE).expect("every watcher") - start);
            }
        }
        println!(
            "a change is seen by {WATCHERS} watchers within p50 {:.1?}, p99 {:.1?}",
            percentile(&mut times, 0.5),
            percentile(&mut times, 0.99),
        );
        window(&etcd, "with 50 watchers", SERVERS as f64);

        drop(registrations);
        let timing = Timing::new(Duration::from_secs(15), Duration::from_secs(4)).expect("fits");
        let mut times: Vec<_> = (0..100)
            .map(|i| {
                let options = Options::new(Record::new("one", format!("gpu{i}"), 8000), timing);
                let start = Instant::now();
                let exclusive = cluster.acquire("one", options).expect("free");
                let time = start.elapsed();
                exclusive.release().expect("ours");
                time
            })
            .collect();
        println!(
            "an acquisition takes p50 {:.1?}, p99 {:.1?}",
            percentile(&mut times, 0.5),
            percentile(&mut times, 0.99),
        );
    }
}
