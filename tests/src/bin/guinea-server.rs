//! A server to run under `llmlb serve --`, with the manners a test asks for.
//!
//! `guinea-server PORT [graceful=CODE] [stubborn] [exit=CODE] [worker] [bare-worker] [daemon]
//! [count=FILE] [slow=SECONDS] [address=IP] [listen-when=FILE] [healthy-when=FILE]
//! [hung]`
//!
//! `listen-when=FILE` listens only when the file is there, `below` in a child of its own;
//! `healthy-when=FILE` answers with 503 until it is, and with 200 then,
//! and prints `asked` each time; `hung` listens, and accepts nobody.

#![allow(clippy::unwrap_used, clippy::zombie_processes)]

#[cfg(unix)]
fn main() {
    unix::main();
}

#[cfg(windows)]
fn main() {
    windows::main();
}

#[cfg(unix)]
mod unix {
    use std::env;
    use std::fs::OpenOptions;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, exit};
    use std::thread;

    use nix::sys::signal::{SigSet, Signal};

    pub(super) fn main() {
        let args: Vec<String> = env::args().skip(1).collect();
        let has = |name: &str| args.iter().any(|arg| arg == name);
        let value = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name));

        let mut signals = SigSet::empty();
        if has("stubborn") || has("sleep") {
            signals.add(Signal::SIGTERM);
            signals.add(Signal::SIGINT);
        }
        if value("graceful=").is_some() {
            signals.add(Signal::SIGTERM);
        }
        if value("count=").is_some() {
            signals.add(Signal::SIGINT);
            signals.add(Signal::SIGTERM);
        }
        signals.thread_block().unwrap();

        if has("sleep") {
            println!("worker {}", std::process::id());
            loop {
                thread::park();
            }
        }
        if let Some(code) = value("exit=") {
            exit(code.parse().unwrap());
        }
        // Workers inherit what the server inherited, as those of a real one do.
        let own = env::current_exe().unwrap();
        if has("worker") {
            Command::new(&own).arg("sleep").spawn().unwrap();
        }
        if has("bare-worker") {
            // As Python's multiprocessing starts them: nothing inherited, and, with a process title
            // set, no environment to be seen.
            let mut worker = Command::new("bash");
            let close = "for fd in /proc/self/fd/*; do fd=${fd##*/}; ((fd > 2)) && eval \"exec $fd>&-\"; done 2>/dev/null";
            let script = format!("{close}; exec env -i '{}' sleep", own.display());
            worker.args(["-c", &script]).spawn().unwrap();
        }
        if has("daemon") {
            // In a process group of its own: no signal to the server's group reaches it.
            let mut daemon = Command::new(&own);
            daemon.arg("sleep").process_group(0).spawn().unwrap();
        }
        if let Some(name) = value("env=") {
            println!("{name}={}", env::var(name).unwrap_or_default());
        }
        let port: u16 = args[0].parse().unwrap();
        let there = |file: &str| std::path::Path::new(file).exists();
        if let Some(file) = value("listen-when=") {
            println!("loading {}", std::process::id());
            while !there(file) {
                thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        if has("below") {
            let mut child = Command::new(&own);
            child.arg(port.to_string()).spawn().unwrap();
        } else {
            let address = value("address=").unwrap_or("127.0.0.1");
            let listener = TcpListener::bind((address, port)).unwrap();
            let healthy_when = value("healthy-when=").map(str::to_owned);
            let hung = has("hung");
            if hung {
                let backlog = nix::sys::socket::Backlog::new(0).unwrap();
                nix::sys::socket::listen(&listener, backlog).unwrap();
            }
            thread::spawn(move || {
                if hung {
                    loop {
                        thread::park();
                    }
                }
                for stream in listener.incoming() {
                    match (stream, &healthy_when) {
                        (Ok(stream), Some(file)) => answer(stream, there(file)),
                        (stream, _) => drop(stream),
                    }
                }
            });
            println!("ready {}", std::process::id());
        }
        loop {
            let signal = if signals.iter().next().is_some() && !has("stubborn") {
                signals.wait().unwrap()
            } else {
                thread::park();
                continue;
            };
            if let Some(file) = value("count=") {
                let mut file = OpenOptions::new().append(true).create(true).open(file);
                writeln!(file.as_mut().unwrap(), "{signal}").unwrap();
            }
            if let Some(seconds) = value("slow=") {
                thread::sleep(std::time::Duration::from_secs(seconds.parse().unwrap()));
                let mut file = OpenOptions::new()
                    .append(true)
                    .open(value("count=").unwrap());
                writeln!(file.as_mut().unwrap(), "drained").unwrap();
            }
            if signal == Signal::SIGTERM {
                exit(value("graceful=").map_or(0, |code| code.parse().unwrap()));
            }
        }
    }

    /// One request, whatever it asks.
    fn answer(mut stream: TcpStream, healthy: bool) {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        println!("asked");
        let status = if healthy { "200 OK" } else { "503 Loading" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes());
    }
}

/// Is asked to end by its stop event: `graceful=CODE` and `stubborn` listen, the others don't.
/// `lock` takes the lock by itself. `job` runs a worker in a job that outlives the server, as the
/// worker has it open too.
#[cfg(windows)]
mod windows {
    use std::env;
    use std::net::TcpListener;
    use std::process::{Command, exit};
    use std::thread;

    use std::os::windows::io::{AsHandle, AsRawHandle};

    use llmlb_lock_core::{LockDir, ServerJob, StopEvent};
    use windows::Win32::Foundation::{HANDLE, HANDLE_FLAG_INHERIT, SetHandleInformation};

    pub(super) fn main() {
        let args: Vec<String> = env::args().skip(1).collect();
        let has = |name: &str| args.iter().any(|arg| arg == name);
        let value = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name));

        if has("sleep") {
            println!("worker {}", std::process::id());
            loop {
                thread::park();
            }
        }
        if let Some(code) = value("exit=") {
            exit(code.parse().unwrap());
        }
        let listens = has("stubborn") || value("graceful=").is_some();
        let stop = listens.then(|| StopEvent::listen().unwrap());
        if has("worker") {
            let own = env::current_exe().unwrap();
            Command::new(own).arg("sleep").spawn().unwrap();
        }
        let _job = has("job").then(|| {
            let job = ServerJob::create().unwrap();
            let handle = HANDLE(job.as_handle().as_raw_handle());
            // SAFETY: the handle is open.
            unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT.0, HANDLE_FLAG_INHERIT) }
                .unwrap();
            let own = env::current_exe().unwrap();
            let worker = Command::new(own).arg("sleep").spawn().unwrap();
            job.add(worker.as_handle()).unwrap();
            job
        });
        if has("daemon") {
            let own = env::current_exe().unwrap();
            let daemon = Command::new(own).arg("sleep").spawn().unwrap();
            // It may be ended before it says so itself.
            println!("worker {}", daemon.id());
            exit(0);
        }
        for name in args.iter().filter_map(|arg| arg.strip_prefix("env=")) {
            println!("{name}={}", env::var(name).unwrap_or_default());
        }
        let port: u16 = args[0].parse().unwrap();
        let _lock = has("lock").then(|| LockDir::default().acquire(port).unwrap());
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                drop(stream);
            }
        });
        println!("ready {}", std::process::id());
        while let Some(stop) = &stop {
            stop.wait(None).unwrap();
            if let Some(code) = value("graceful=") {
                exit(code.parse().unwrap());
            }
        }
        loop {
            thread::park();
        }
    }
}
