//! Speaks the protocol for the Rust library: the program that others are paired with.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::process::{Command, Stdio};

use llmlb_lock_core::{LockDir, LockError, ServerLock};

pub(crate) fn speak() -> io::Result<()> {
    let locks = LockDir::default();
    let mut held = HashMap::new();
    for line in io::stdin().lock().lines() {
        let answer = answer(&locks, &mut held, &line?);
        let answer = answer.unwrap_or_else(|e| match e {
            LockError::AlreadyRunning { pid, .. } => format!("refused {pid}"),
            LockError::HeldByUnknown { .. } => "held".to_owned(),
            LockError::Corrupted(_) => "corrupted".to_owned(),
            LockError::Lost { .. } => "lost".to_owned(),
            e => format!("error {}", e.to_string().replace('\n', " ")),
        });
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}

fn answer(
    locks: &LockDir,
    held: &mut HashMap<u16, ServerLock>,
    line: &str,
) -> Result<String, LockError> {
    let mut words = line.split_ascii_whitespace();
    let request = words.next().unwrap_or_default();
    let port = words.next().map_or(Ok(0), str::parse).unwrap_or(0);
    let none = || "error nothing is held there".to_owned();
    Ok(match request {
        "acquire" => {
            held.insert(port, locks.acquire(port)?);
            "acquired".to_owned()
        }
        "hold" => match held.get(&port) {
            Some(lock) => lock.verify().map(|()| "holding".to_owned())?,
            None => none(),
        },
        "release" => match held.remove(&port) {
            Some(lock) => lock.release().map(|()| "released".to_owned())?,
            None => none(),
        },
        "read" => match locks.read_lock_info(port)? {
            Some(info) => format!("info {} {}", info.pid, info.started_at.to_rfc3339()),
            None => "none".to_owned(),
        },
        "list" => {
            let live = locks.list_all_locks();
            let all = live
                .iter()
                .map(|info| format!(" {}={}", info.port, info.pid));
            format!("list{}", all.collect::<String>())
        }
        "hand_over" => match held.get_mut(&port) {
            Some(lock) => start(lock, words)?,
            None => none(),
        },
        _ => format!("error there is no request {request:?}"),
    })
}

// The server is left to whoever ends it.
#[allow(clippy::zombie_processes)]
fn start<'a>(
    lock: &mut ServerLock,
    mut words: impl Iterator<Item = &'a str>,
) -> Result<String, LockError> {
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    lock.set_inheritable(true)?;
    let server = command.spawn();
    lock.set_inheritable(false)?;
    match server {
        Ok(server) => {
            lock.hand_over(server.id())?;
            Ok(format!("handed {}", server.id()))
        }
        Err(e) => Ok(format!("error {e}")),
    }
}
