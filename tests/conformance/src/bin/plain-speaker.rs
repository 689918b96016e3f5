//! Speaks the protocol without any of our libraries, from the specification alone; with
//! `--fault NAME` it breaks one rule, so that the cases can be seen to find it.

#[cfg(unix)]
fn main() -> std::io::Result<()> {
    unix::main()
}

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
mod unix {
    //! The specification, rule by rule, and how each is broken.

    use std::collections::HashMap;
    use std::fs::{self, DirBuilder, File};
    use std::io::{self, BufRead, Read, Seek, Write};
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use chrono::{DateTime, Datelike, SecondsFormat, TimeDelta, Utc};
    use rustix::fs::{FlockOperation, Mode, OFlags, flock};
    use rustix::io::Errno;
    use serde_json::Value;

    const LIMIT: u64 = 4096;

    struct Speaker {
        directory: PathBuf,
        held: HashMap<u16, File>,
        /// Descriptors that a faulty release forgets.
        kept: Vec<File>,
        fault: String,
    }

    /// Whom a file names.
    #[derive(Debug)]
    struct Holder {
        pid: u32,
        started_at: DateTime<Utc>,
        json: Value,
    }

    pub(super) fn main() -> io::Result<()> {
        let mut words = std::env::args().skip(1);
        let fault = match words.next().as_deref() {
            Some("--fault") => words.next().unwrap_or_default(),
            _ => String::new(),
        };
        let directory = std::env::var_os("LLMLB_LOCK_DIR").unwrap_or_default();
        let mut speaker = Speaker {
            directory: directory.into(),
            held: HashMap::new(),
            kept: Vec::new(),
            fault,
        };
        for line in io::stdin().lock().lines() {
            let line = line?;
            let answer = speaker.answer(&line);
            println!("{}", answer.unwrap_or_else(|e| format!("error {e}")));
            io::stdout().flush()?;
        }
        Ok(())
    }

    impl Speaker {
        fn breaks(&self, rule: &str) -> bool {
            self.fault == rule
        }

        fn answer(&mut self, line: &str) -> io::Result<String> {
            let mut words = line.split_ascii_whitespace();
            let request = words.next().unwrap_or_default();
            let port: u16 = words.next().map_or(Ok(0), str::parse).unwrap_or(0);
            match request {
                "list" => return self.list(),
                _ if port == 0 && !self.breaks("takes_port_0") => {
                    return Ok("error port 0".to_owned());
                }
                _ => {}
            }
            match request {
                "acquire" => self.acquire(port),
                "hold" => self.hold(port),
                "release" => self.release(port),
                "read" => self.read(port),
                "hand_over" => self.hand_over(port, words),
                _ => Ok("error no such request".to_owned()),
            }
        }

        fn path(&self, port: u16) -> PathBuf {
            if self.breaks("one_file_for_all_ports") {
                return self.directory.join("serve_8000.lock");
            }
            if self.breaks("pads_the_port") {
                return self.directory.join(format!("serve_{port:05}.lock"));
            }
            self.directory.join(format!("serve_{port}.lock"))
        }

        fn acquire(&mut self, port: u16) -> io::Result<String> {
            if !self.breaks("makes_no_directory") {
                DirBuilder::new().recursive(true).create(&self.directory)?;
            }
            let path = self.path(port);
            let started = Instant::now();
            loop {
                let file = self.open(&path)?;
                let metadata = file.metadata()?;
                if metadata.nlink() == 0 && !self.breaks("compares_no_inodes") {
                    continue;
                }
                self.check(&path, &metadata)?;
                let foreign = metadata.uid() != rustix::process::geteuid().as_raw()
                    && !self.breaks("trusts_strangers");
                if !self.lock(&file)? {
                    match holder(&file, port) {
                        Some(_) if foreign => return Ok("held".to_owned()),
                        Some(holder) if self.breaks("shows_dead_names") => {
                            return Ok(format!("refused {}", holder.pid));
                        }
                        Some(holder) if is_alive(holder.pid) && started_in_time(&holder) => {
                            if self.breaks("touches_what_is_held") {
                                file.write_all_at(b" ", 200)?;
                            }
                            if self.breaks("names_nobody_when_refused") {
                                return Ok("held".to_owned());
                            }
                            return Ok(format!("refused {}", holder.pid));
                        }
                        None if self.breaks("recovers_held_locks") => {}
                        _ if started.elapsed() >= Duration::from_secs(1) => {
                            return Ok("held".to_owned());
                        }
                        _ => {
                            std::thread::sleep(Duration::from_millis(1));
                            continue;
                        }
                    }
                }
                if foreign {
                    return Err(io::Error::other("it belongs to somebody else"));
                }
                let compares = !self.breaks("compares_no_inodes") && !self.breaks("follows_links");
                if compares && !is_at(&file, &path)? {
                    continue;
                }
                if let Some(refused) = self.judge(&file, port) {
                    return Ok(refused);
                }
                if metadata.mode() & 0o7777 != 0o600 && !self.breaks("forgets_the_mode") {
                    file.set_permissions(fs::Permissions::from_mode(0o600))?;
                }
                self.write(&file, std::process::id(), port)?;
                self.held.insert(port, file);
                return Ok("acquired".to_owned());
            }
        }

        fn open(&self, path: &Path) -> io::Result<File> {
            if self.breaks("removes_what_is_in_the_way") && path.exists() && !path.is_file() {
                fs::remove_file(path).or_else(|_| fs::remove_dir(path))?;
            }
            let mut flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
            if !self.breaks("follows_links") {
                flags |= OFlags::NOFOLLOW;
            }
            if !self.breaks("lets_all_inherit") {
                flags |= OFlags::CLOEXEC;
            }
            if self.breaks("truncates_first") {
                flags |= OFlags::TRUNC;
            }
            let mode = if self.breaks("forgets_the_mode") {
                0o644
            } else {
                0o600
            };
            let open = rustix::fs::open(path, flags, Mode::from_raw_mode(mode));
            let without = flags - OFlags::CREATE;
            match open {
                // Some kernels let nobody create what is another user's already.
                Err(Errno::ACCESS) => Ok(rustix::fs::open(path, without, Mode::empty())?.into()),
                opened => Ok(opened?.into()),
            }
        }

        fn check(&self, path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
            let odd_kind = !metadata.is_file();
            let linked = metadata.nlink() > 1 && !self.breaks("takes_hard_links");
            if odd_kind || linked {
                let text = format!("{} is no lock file", path.display());
                return Err(io::Error::other(text));
            }
            Ok(())
        }

        fn lock(&self, file: &File) -> io::Result<bool> {
            if self.breaks("takes_no_lock") {
                return Ok(true);
            }
            if self.breaks("locks_with_fcntl") {
                let operation = FlockOperation::NonBlockingLockExclusive;
                return match rustix::fs::fcntl_lock(file, operation) {
                    Ok(()) => Ok(true),
                    Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
                    Err(e) => Err(e.into()),
                };
            }
            match flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(true),
                Err(Errno::WOULDBLOCK) => Ok(false),
                Err(e) => Err(e.into()),
            }
        }

        /// Under the lock: whether what the file says keeps us out.
        fn judge(&self, file: &File, port: u16) -> Option<String> {
            let found = holder(file, port);
            if found.is_none() {
                let empty = file.metadata().is_ok_and(|file| file.len() == 0);
                let gives_up = match empty {
                    true => self.breaks("keeps_out_of_empty_files") && self.is_old(file),
                    false => self.breaks("keeps_out_of_corrupt_files"),
                };
                return gives_up.then(|| "error it is no lock file".to_owned());
            }
            let found = found?;
            let alive = is_alive(found.pid);
            let refused = if self.breaks("trusts_pids") {
                alive
            } else if self.breaks("trusts_all_pids") {
                true
            } else if self.breaks("ignores_recycling") {
                alive && !started_in_time(&found)
            } else if self.breaks("ignores_identities") || self.breaks("takes_no_lock") {
                false
            } else if self.breaks("trusts_half_an_identity") {
                alive
                    && identity(found.pid)
                        .is_some_and(|fields| found.json["boot_id"] == fields["boot_id"])
            } else {
                alive && identity(found.pid).is_some_and(|fields| is_exactly(&found.json, &fields))
            };
            refused.then(|| format!("refused {}", found.pid))
        }

        /// Not made a moment ago by ourselves.
        fn is_old(&self, file: &File) -> bool {
            file.metadata()
                .is_ok_and(|file| file.mode() & 0o7777 == 0o600)
        }

        fn write(&self, file: &File, pid: u32, port: u16) -> io::Result<()> {
            if self.breaks("names_nobody") {
                return file.set_len(0);
            }
            let pid = match () {
                () if self.breaks("names_its_parent") => std::os::unix::process::parent_id(),
                () => pid,
            };
            let now = Utc::now();
            let started_at = match () {
                () if self.breaks("says_no_zone") => now.format("%Y-%m-%dT%H:%M:%S").to_string(),
                () if self.breaks("says_local_time") => {
                    (now + TimeDelta::hours(9)).to_rfc3339_opts(SecondsFormat::Micros, true)
                }
                () => now.to_rfc3339_opts(SecondsFormat::Micros, true),
            };
            let mut json = serde_json::json!({"pid": pid, "started_at": started_at, "port": port});
            let mut fields = identity(pid).unwrap_or_default();
            if self.breaks("lies_about_its_start") {
                fields.insert("start_ticks".to_owned(), 1.into());
            }
            for (name, value) in fields {
                json[name] = value;
            }
            let mut text = json.to_string().into_bytes();
            let len = text.len();
            let old = file.metadata()?.len() as usize;
            // Blanks over the end of a longer text, so that no reader sees two texts in one.
            text.resize(len.max(old.min(LIMIT as usize)), b' ');
            file.write_all_at(&text, 0)?;
            if !self.breaks("leaves_the_old_text") {
                file.set_len(len as u64)?;
            } else if old > len {
                file.write_all_at(br#","pid":1}"#, len as u64)?;
            }
            Ok(())
        }

        fn hold(&self, port: u16) -> io::Result<String> {
            let Some(file) = self.held.get(&port) else {
                return Ok("error nothing is held there".to_owned());
            };
            let is_at = is_at(file, &self.path(port))? || self.breaks("notices_no_loss");
            Ok(if is_at { "holding" } else { "lost" }.to_owned())
        }

        fn release(&mut self, port: u16) -> io::Result<String> {
            let Some(file) = self.held.remove(&port) else {
                return Ok("error nothing is held there".to_owned());
            };
            let path = self.path(port);
            let ours = is_at(&file, &path)? || self.breaks("removes_anothers_file");
            let named = holder(&file, port).is_none_or(|named| named.pid == std::process::id());
            if self.breaks("unlocks") {
                flock(&file, FlockOperation::Unlock)?;
            }
            if self.breaks("removes_after_closing") {
                drop(file);
                if ours && named {
                    fs::remove_file(path)?;
                }
                return Ok("released".to_owned());
            }
            let leaves = self.breaks("leaves_the_file");
            if ours && !leaves && (named || self.breaks("removes_the_servers_file")) {
                let _ = fs::remove_file(path);
            }
            if self.breaks("keeps_the_lock") {
                self.kept.push(file);
            }
            Ok("released".to_owned())
        }

        fn read(&self, port: u16) -> io::Result<String> {
            let file = match File::open(self.path(port)) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok("none".to_owned()),
                Err(e) => return Err(e),
            };
            if self.breaks("reads_and_removes") {
                fs::remove_file(self.path(port))?;
                self.write(&File::create(self.path(port))?, 4711, port)?;
            }
            let found = holder(&file, port);
            if let Some(found) = &found
                && self.breaks("refuses_unknown_fields")
                && !found.json["colour"].is_null()
            {
                return Ok("corrupted".to_owned());
            }
            Ok(match found {
                Some(found) => format!("info {} {}", found.pid, found.started_at.to_rfc3339()),
                None if self.breaks("reads_corrupt_as_none") => "none".to_owned(),
                None => "corrupted".to_owned(),
            })
        }

        fn list(&self) -> io::Result<String> {
            let mut live = Vec::new();
            for entry in fs::read_dir(&self.directory)? {
                let entry = entry?;
                let name = entry.file_name();
                let port = name.to_str().and_then(|name| {
                    name.strip_prefix("serve_")?
                        .strip_suffix(".lock")?
                        .parse()
                        .ok()
                });
                let Some(port) = port.filter(|port| {
                    name.to_string_lossy() == format!("serve_{port}.lock")
                        || self.breaks("lists_odd_names")
                }) else {
                    continue;
                };
                let file = File::open(entry.path())?;
                let Some(found) = holder(&file, port) else {
                    continue;
                };
                if self.breaks("lists_left_overs") || is_locked(&file)? {
                    live.push((port, found.pid));
                }
                if self.breaks("cleans_up_while_listing") {
                    fs::write(entry.path(), "")?;
                }
            }
            live.sort_unstable();
            let all = live.iter().map(|(port, pid)| format!(" {port}={pid}"));
            Ok(format!("list{}", all.collect::<String>()))
        }

        // The server is left to whoever ends it.
        #[allow(clippy::zombie_processes)]
        fn hand_over<'a>(
            &mut self,
            port: u16,
            mut words: impl Iterator<Item = &'a str>,
        ) -> io::Result<String> {
            let Some(file) = self.held.get(&port) else {
                return Ok("error nothing is held there".to_owned());
            };
            let mut command = Command::new(words.next().unwrap_or_default());
            command
                .args(words)
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            if !self.breaks("keeps_the_lock_from_the_server") {
                rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?;
            }
            let server = command.spawn()?;
            rustix::io::fcntl_setfd(file, rustix::io::FdFlags::CLOEXEC)?;
            if !self.breaks("does_not_name_the_server") {
                self.write(file, server.id(), port)?;
            }
            Ok(format!("handed {}", server.id()))
        }
    }

    fn is_locked(file: &File) -> io::Result<bool> {
        match flock(file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    fn is_at(file: &File, path: &Path) -> io::Result<bool> {
        let ours = file.metadata()?;
        match path.symlink_metadata() {
            Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn holder(mut file: &File, port: u16) -> Option<Holder> {
        let mut text = Vec::new();
        file.rewind().ok()?;
        file.take(LIMIT + 1).read_to_end(&mut text).ok()?;
        if text.len() as u64 > LIMIT {
            return None;
        }
        let json: Value = serde_json::from_slice(&text).ok()?;
        let pid = u32::try_from(json.get("pid")?.as_u64()?).ok()?;
        let started_at = DateTime::parse_from_rfc3339(json.get("started_at")?.as_str()?).ok()?;
        let started_at = started_at.to_utc();
        let fits = json.get("port")?.as_u64()? == u64::from(port);
        let valid = fits && (1970..=9999).contains(&started_at.year());
        valid.then_some(Holder {
            pid,
            started_at,
            json,
        })
    }

    #[cfg(target_os = "linux")]
    fn stat(pid: u32) -> Option<(bool, u64)> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = text.rsplit(')').next()?.split_ascii_whitespace();
        let alive = !matches!(fields.next()?, "Z" | "X");
        Some((alive, fields.nth(18)?.parse().ok()?))
    }

    #[cfg(target_os = "linux")]
    fn is_alive(pid: u32) -> bool {
        stat(pid).is_some_and(|(alive, _)| alive)
    }

    #[cfg(not(target_os = "linux"))]
    fn is_alive(pid: u32) -> bool {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }

    /// Not after the time in the file: it would have its PID from another.
    #[cfg(target_os = "linux")]
    fn started_in_time(holder: &Holder) -> bool {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime = uptime.split_ascii_whitespace().next();
        let uptime: Option<f64> = uptime.and_then(|text| text.parse().ok());
        let (Some(uptime), Some((_, ticks))) = (uptime, stat(holder.pid)) else {
            return false;
        };
        let age = uptime - ticks as f64 / 100.0;
        let started = Utc::now() - TimeDelta::milliseconds((age * 1000.0) as i64);
        started - TimeDelta::seconds(2) <= holder.started_at
    }

    #[cfg(not(target_os = "linux"))]
    fn started_in_time(_: &Holder) -> bool {
        true
    }

    #[cfg(target_os = "linux")]
    fn identity(pid: u32) -> Option<serde_json::Map<String, Value>> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let (_, ticks) = stat(pid)?;
        let mut fields = serde_json::Map::new();
        fields.insert("boot_id".to_owned(), boot_id.trim().into());
        let namespace = fs::metadata("/proc/self/ns/pid").ok()?.ino();
        fields.insert("pid_ns".to_owned(), namespace.into());
        fields.insert("start_ticks".to_owned(), ticks.into());
        Some(fields)
    }

    #[cfg(not(target_os = "linux"))]
    fn identity(_: u32) -> Option<serde_json::Map<String, Value>> {
        None
    }

    fn is_exactly(json: &Value, fields: &serde_json::Map<String, Value>) -> bool {
        fields
            .iter()
            .all(|(name, value)| json.get(name) == Some(value))
    }
}
