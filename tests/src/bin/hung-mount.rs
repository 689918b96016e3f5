//! A network mount whose server is gone: `hung-mount DIRECTORY`, as root, since Linux 5.16. Mounts a FUSE file system
//! in a mount namespace of its own, starts a process that has a file of it open, says
//! `hung PID`, and answers nothing from then on. Ends with its standard input.

#![allow(clippy::unwrap_used, clippy::zombie_processes)]

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    const OPEN: u32 = 14;
    /// Who closes it asks nobody: he would wait for ever, also when killed.
    const FOPEN_NOFLUSH: u32 = 1 << 5;
    const INIT: u32 = 26;
    const DIRECTORY: u32 = 0o40755;
    const REGULAR: u32 = 0o100644;
    const ENOSYS: i32 = 38;

    pub(super) fn main() {
        let directory = std::env::args().nth(1).unwrap();
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("hung"),
            &*directory,
            Some("fuse"),
            flags,
            Some(&*options),
        )
        .unwrap();
        // Nobody is to wait for ever for what this test has left.
        thread::spawn(|| {
            thread::sleep(Duration::from_secs(300));
            std::process::exit(1);
        });
        thread::spawn(move || answer_until_open(device));
        let file = File::open(format!("{directory}/file")).unwrap();
        let mut holder = Command::new("sleep")
            .arg("1000")
            .stdin(file)
            .spawn()
            .unwrap();
        println!("hung {}", holder.id());
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        holder.kill().unwrap();
    }

    fn answer_until_open(mut device: File) {
        let mut buffer = vec![0; 1 << 17];
        let mut opened = false;
        while !opened {
            let len = device.read(&mut buffer).unwrap();
            let number = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
            let unique = &buffer[8..16];
            let answer = match number(4) {
                INIT => numbers(&[7, 31, 0, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                LOOKUP => {
                    let mut entry = numbers(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                    entry.extend(attributes(2, REGULAR));
                    entry
                }
                GETATTR => {
                    let root = number(16) == 1;
                    let mut found = numbers(&[0; 4]);
                    found.extend(attributes(1, if root { DIRECTORY } else { REGULAR }));
                    found
                }
                OPEN => {
                    opened = true;
                    numbers(&[0, 0, FOPEN_NOFLUSH, 0])
                }
                _ => Vec::new(),
            };
            let error = if answer.is_empty() { -ENOSYS } else { 0 };
            assert!(len >= 40);
            let mut out = (16 + answer.len() as u32).to_ne_bytes().to_vec();
            out.extend(error.to_ne_bytes());
            out.extend(unique);
            out.extend(answer);
            device.write_all(&out).unwrap();
        }
        // Open as long as the process lives, and never read again.
        std::mem::forget(device);
    }

    fn numbers(numbers: &[u32]) -> Vec<u8> {
        numbers
            .iter()
            .flat_map(|number| number.to_ne_bytes())
            .collect()
    }

    fn attributes(inode: u32, mode: u32) -> Vec<u8> {
        let mut attributes = numbers(&[inode, 0]);
        attributes.extend(numbers(&[0; 13]));
        attributes.extend(numbers(&[mode, 1, 0, 0, 0, 4096, 0]));
        attributes
    }
}
