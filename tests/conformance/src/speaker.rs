//! A program under judgement: started, asked line by line, ended.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a machine under load may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A command that speaks the protocol.
#[derive(Debug, Clone)]
pub struct Program {
    pub command: Vec<OsString>,
}

impl Program {
    pub fn new(command: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Self {
        Self {
            command: command
                .into_iter()
                .map(|word| word.as_ref().to_owned())
                .collect(),
        }
    }

    pub fn start(&self, directory: &Path) -> Result<Speaker, String> {
        self.start_with(directory, |_| {})
    }

    pub fn start_with(
        &self,
        directory: &Path,
        change: impl FnOnce(&mut Command),
    ) -> Result<Speaker, String> {
        let mut words = self.command.iter();
        let program = words.next().ok_or("no command was given")?;
        let mut command = Command::new(program);
        command
            .args(words)
            .env("LLMLB_LOCK_DIR", directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // Its children too are ended with it, whatever a failed case leaves.
        command.process_group(0);
        change(&mut command);
        let mut child = command
            .spawn()
            .map_err(|e| format!("{} can't be started: {e}", program.display()))?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let input = child.stdin.take();
        Ok(Speaker {
            child,
            input,
            answers,
        })
    }
}

/// A running program. It is killed when dropped, with what it has started.
#[derive(Debug)]
pub struct Speaker {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Speaker {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&mut self, request: &str) -> Result<(), String> {
        let input = self.input.as_mut().ok_or("its input is closed")?;
        writeln!(input, "{request}").map_err(|e| format!("{request:?} can't be asked: {e}"))
    }

    pub fn hear(&mut self) -> Result<String, String> {
        self.hear_within(PATIENCE)?
            .ok_or_else(|| format!("no answer within {} s", PATIENCE.as_secs()))
    }

    /// `None` where there is no answer yet.
    pub fn hear_within(&mut self, time: Duration) -> Result<Option<String>, String> {
        match self.answers.recv_timeout(time) {
            Ok(line) => Ok(Some(line.trim_end().to_owned())),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err("it ended without an answer".to_owned()),
        }
    }

    pub fn ask(&mut self, request: &str) -> Result<String, String> {
        self.tell(request)?;
        self.hear()
            .map_err(|why| format!("asked to {request:?}: {why}"))
    }

    /// Asks, and wants this very answer.
    pub fn must(&mut self, request: &str, answer: &str) -> Result<(), String> {
        let got = self.ask(request)?;
        if got != answer {
            return Err(format!(
                "asked to {request:?} it says {got:?}, not {answer:?}"
            ));
        }
        Ok(())
    }

    /// By -9, and waited for.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it ends within the time a machine under load may take.
    pub fn ends(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Ok(Some(_)) = self.child.try_wait() {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        // What it has started is in its group, unless it was put into one of its own.
        if let Ok(group) = i32::try_from(self.child.id()) {
            let group = nix::unistd::Pid::from_raw(group);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
        self.kill();
    }
}
