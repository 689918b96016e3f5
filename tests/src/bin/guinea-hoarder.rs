//! A stranger who fills the lock directory: `guinea-hoarder DIRECTORY FIRST COUNT [WORD...]`. Holds
//! the locks of that many ports, says `holds COUNT`, and ends with its standard input. Every third
//! file names nobody, every third this process, every third this process as one that started too
//! late.

#![allow(clippy::panic, clippy::unwrap_used)]

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
fn main() {
    use std::fs;
    use std::io::Read;

    use nix::fcntl::{Flock, FlockArg};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, first, count, ..] = &arguments[..] else {
        panic!("guinea-hoarder DIRECTORY FIRST COUNT");
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let ports = first.parse::<u16>().unwrap()..;
    let pid = std::process::id();
    let now = chrono::Utc::now();
    let earlier = now - chrono::TimeDelta::seconds(100);
    let held: Vec<_> = ports
        .take(count.parse().unwrap())
        .map(|port| {
            let path = format!("{directory}/serve_{port}.lock");
            let named = |at: chrono::DateTime<chrono::Utc>| {
                let at = at.to_rfc3339();
                format!("{{\"pid\":{pid},\"started_at\":\"{at}\",\"port\":{port}}}")
            };
            let text = match port % 3 {
                0 => "garbage".to_owned(),
                1 => named(now),
                _ => named(earlier),
            };
            fs::write(&path, text).unwrap();
            let file = fs::File::open(path).unwrap();
            Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap()
        })
        .collect();
    println!("holds {}", held.len());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
