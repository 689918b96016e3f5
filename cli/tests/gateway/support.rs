//! `llmlb serve` to test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

pub(crate) use llmlb_tests::front::Front;
pub(crate) use llmlb_tests::model_server::{Backend, Gate, Next, Port};
pub(crate) use llmlb_tests::wire::{STREAM, Wire, answer, chat, chunk, request};
pub(crate) use llmlb_tests::{PATIENCE, wait_until};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use tempfile::TempDir;

/// `llmlb serve`, ended with the test.
pub(crate) struct Gateway {
    front: Front,
    child: Child,
    locks: TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

/// As an editor or a deployment does it: never half a file.
pub(crate) fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

impl Gateway {
    /// In front of these backends, whose health it looks at often.
    pub(crate) fn before(backends: &[String]) -> Self {
        Self::with(backends, &["--health-interval", "0.05"])
    }

    pub(crate) fn with(backends: &[String], args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmlb"));
        command.arg("serve");
        Self::spawn(command, backends, args)
    }

    pub(crate) fn logging(level: &str, backends: &[String]) -> Self {
        let mut command = Command::new("env");
        command.arg(format!("LLMLB_LOG={level}"));
        command.args([env!("CARGO_BIN_EXE_llmlb"), "serve"]);
        Self::spawn(command, backends, &[])
    }

    /// With this many file descriptors.
    pub(crate) fn limited(descriptors: usize, backends: &[String], args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {descriptors} && exec \"$0\" serve \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_llmlb")]);
        Self::spawn(command, backends, args)
    }

    /// One that does not start.
    pub(crate) fn refused(args: &[&str]) -> Output {
        Self::output(&[&["--port", "0"], args].concat())
    }

    /// Of `llmlb serve`, which ends by itself.
    pub(crate) fn output(args: &[&str]) -> Output {
        let locks = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmlb"));
        command.arg("serve").args(args);
        clean(&mut command, &locks);
        command.output().unwrap()
    }

    fn spawn(mut command: Command, backends: &[String], args: &[&str]) -> Self {
        let locks = tempfile::tempdir().unwrap();
        // Without affinity: most tests send the same conversation again and again.
        command
            .args(["--port", "0", "--affinity", "off"])
            .args(args);
        for url in backends {
            command.args(["--backend", url]);
        }
        clean(&mut command, &locks);
        heed_hangup(&mut command);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    log.lock().unwrap().push(line);
                }
            });
        }
        let mut gateway = Self {
            front: Front { port: 0 },
            child,
            locks,
            log,
        };
        let line = gateway.expect_log("listening on ");
        gateway.front.port = line.rsplit(':').next().unwrap().parse().unwrap();
        gateway
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn expect_log(&self, text: &str) -> String {
        wait_until(text, || {
            self.log().into_iter().find(|line| line.contains(text))
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        kill(pid, signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_until("the gateway to end", || self.child.try_wait().unwrap())
    }

    /// `llmlb stop` for it.
    pub(crate) fn stop_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmlb"));
        command
            .args(["stop", "--port", &self.port.to_string()])
            .args(args);
        clean(&mut command, &self.locks);
        command
    }

    pub(crate) fn lock_exists(&self) -> bool {
        let name = format!("serve_{}.lock", self.port);
        self.locks.path().join(name).exists()
    }
}

impl Deref for Gateway {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

/// Whoever runs the tests below `nohup` has every one of their children ignore it.
fn heed_hangup(command: &mut Command) {
    // SAFETY: `sigaction` is safe after a fork, and the default disposition runs no code.
    unsafe {
        command.pre_exec(|| {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            sigaction(Signal::SIGHUP, &default)?;
            Ok(())
        });
    }
}

fn clean(command: &mut Command, locks: &TempDir) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LLMLB_") {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET");
    command
        .env("LLMLB_LOCK_DIR", locks.path())
        .stdin(Stdio::null());
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("The gateway said:\n{}", self.log().join("\n"));
        }
    }
}
