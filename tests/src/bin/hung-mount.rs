//! A network mount whose server is gone: `hung-mount DIRECTORY [mapped]`, as root, since Linux 5.16.
//! Mounts a FUSE file system in a mount namespace of its own, starts a process that has a file of it
//! open, says `hung PID`, and answers nothing from then on. Ends with its standard input.
//!
//! `mapped`: the process has written to the file through its memory, and waits for that to arrive
//! with its address space locked: whoever reads its environment waits with it.

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
    use std::num::NonZeroUsize;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};
    use std::sync::mpsc::{Sender, channel};
    use std::thread;
    use std::time::Duration;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    const OPEN: u32 = 14;
    const READ: u32 = 15;
    const WRITE: u32 = 16;
    /// Who closes it asks nobody: he would wait for ever, also when killed.
    const FOPEN_NOFLUSH: u32 = 1 << 5;
    const INIT: u32 = 26;
    const DIRECTORY: u32 = 0o40755;
    const REGULAR: u32 = 0o100644;
    const ENOSYS: i32 = 38;

    pub(super) fn main() {
        let directory = std::env::args().nth(1).unwrap();
        let mapped = match std::env::args().nth(2).as_deref() {
            Some("map") => return map(&directory),
            mode => mode == Some("mapped"),
        };
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
        let (hang, hangs) = channel();
        let last = if mapped { WRITE } else { OPEN };
        thread::spawn(move || answer_until(device, last, &hang));
        let file = format!("{directory}/file");
        let mut holder = match mapped {
            true => Command::new(std::env::current_exe().unwrap())
                .args([&*file, "map"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
            false => Command::new("sleep")
                .arg("1000")
                .stdin(File::open(file).unwrap())
                .spawn()
                .unwrap(),
        };
        hangs.recv().unwrap();
        println!("hung {}", holder.id());
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        holder.kill().unwrap();
    }

    /// Puts other memory over that of a file which has been written to.
    fn map(file: &str) {
        let file = File::options().read(true).write(true).open(file).unwrap();
        let len = NonZeroUsize::new(4096).unwrap();
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the memory is ours, and nothing else refers to it.
        unsafe {
            let memory = mmap(None, len, rights, MapFlags::MAP_SHARED, &file, 0).unwrap();
            memory.cast::<u8>().as_ptr().write_volatile(1);
            let place = NonZeroUsize::new(memory.as_ptr() as usize);
            let _ = mmap_anonymous(
                place,
                len,
                rights,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED,
            );
        }
    }

    fn answer_until(mut device: File, last: u32, hang: &Sender<()>) {
        let mut buffer = vec![0; 1 << 17];
        let mut hung = false;
        while !hung {
            let len = device.read(&mut buffer).unwrap();
            let number = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
            let unique = &buffer[8..16];
            hung = number(4) == last;
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
                OPEN => numbers(&[0, 0, FOPEN_NOFLUSH, 0]),
                READ => vec![0; 4096],
                WRITE => break,
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
        hang.send(()).unwrap();
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
        attributes.extend(numbers(&[4096, 0]));
        attributes.extend(numbers(&[0; 11]));
        attributes.extend(numbers(&[mode, 1, 0, 0, 0, 4096, 0]));
        attributes
    }
}
