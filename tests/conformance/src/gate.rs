//! Stops a program, in whatever language, at the door of chosen system calls, so that what can go
//! wrong between two of them does so every time. Linux alone has this (a seccomp filter that asks).
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
pub use linux::Gate;

/// A call that waits to be let in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub id: u64,
    pub thread: u32,
    pub call: i64,
    pub arguments: [u64; 6],
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Duration;

    use super::Arrival;
    use crate::speaker::{Program, Speaker};

    /// The calls by which a file loses its name.
    #[cfg(target_arch = "x86_64")]
    const REMOVALS: &[i64] = &[libc::SYS_unlink, libc::SYS_unlinkat];
    #[cfg(not(target_arch = "x86_64"))]
    const REMOVALS: &[i64] = &[libc::SYS_unlinkat];

    /// Where the stopped calls arrive.
    #[derive(Debug)]
    pub struct Gate {
        listener: OwnedFd,
    }

    impl Gate {
        pub const REMOVALS: &'static [i64] = REMOVALS;
        pub const LOCKS: &'static [i64] = &[libc::SYS_flock];

        /// Starts a program whose `calls` wait at the gate. The error says why there can't be one.
        pub fn start(
            program: &Program,
            directory: &Path,
            calls: &[i64],
        ) -> Result<(Speaker, Self), String> {
            let (ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
            let filter = filter(calls);
            let channel = theirs.as_raw_fd();
            let hook = move || install(&filter, channel);
            let speaker = program.start_with(directory, |command: &mut Command| {
                // SAFETY: the hook makes system calls, and neither allocates nor locks.
                unsafe { command.pre_exec(hook) };
            })?;
            drop(theirs);
            let listener = receive(&ours).map_err(|e| format!("no listener: {e}"))?;
            Ok((speaker, Self { listener }))
        }

        /// The next call that waits, if one comes in time.
        pub fn next(&self, time: Duration) -> io::Result<Option<Arrival>> {
            let mut poll = libc::pollfd {
                fd: self.listener.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: one entry, which outlives the call.
            let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
            if ready <= 0 || poll.revents & libc::POLLIN == 0 {
                return Ok(None);
            }
            // SAFETY: all zero is a value of this plain structure, and what the kernel asks for.
            let mut arrival: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel fills the structure it was made for.
            let received = unsafe {
                libc::ioctl(
                    self.listener.as_raw_fd(),
                    libc::SECCOMP_IOCTL_NOTIF_RECV as _,
                    &raw mut arrival,
                )
            };
            if received != 0 {
                let e = io::Error::last_os_error();
                // It was killed meanwhile.
                return match e.raw_os_error() {
                    Some(libc::ENOENT | libc::EINTR) => Ok(None),
                    _ => Err(e),
                };
            }
            Ok(Some(Arrival {
                id: arrival.id,
                thread: arrival.pid,
                call: i64::from(arrival.data.nr),
                arguments: arrival.data.args,
            }))
        }

        /// Lets a call in.
        pub fn let_in(&self, arrival: &Arrival) {
            let mut answer = libc::seccomp_notif_resp {
                id: arrival.id,
                val: 0,
                error: 0,
                flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            };
            // SAFETY: the kernel reads the structure it was made for. One that was killed
            // meanwhile needs no answer.
            unsafe {
                libc::ioctl(
                    self.listener.as_raw_fd(),
                    libc::SECCOMP_IOCTL_NOTIF_SEND as _,
                    &raw mut answer,
                )
            };
        }
    }

    impl Arrival {
        /// What file the call's first argument, a descriptor, is open to.
        pub fn file(&self) -> Option<PathBuf> {
            std::fs::read_link(format!("/proc/{}/fd/{}", self.thread, self.arguments[0])).ok()
        }
    }

    fn filter(calls: &[i64]) -> Vec<libc::sock_filter> {
        let statement = |code: u32, k: u32| libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: 0,
            k,
        };
        // The number of the call is what seccomp_data begins with.
        let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
        for (at, &call) in calls.iter().enumerate() {
            filter.push(libc::sock_filter {
                code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
                // Over the other comparisons, and the answer that lets all others through.
                jt: (calls.len() - at) as u8,
                jf: 0,
                k: call as u32,
            });
        }
        filter.push(statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ALLOW,
        ));
        filter.push(statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_USER_NOTIF,
        ));
        filter
    }

    /// Between fork and exec: async-signal-safe.
    fn install(filter: &[libc::sock_filter], channel: RawFd) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: numbers alone.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the program outlives the call.
        let listener = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            )
        };
        if listener < 0 {
            return Err(io::Error::last_os_error());
        }
        send(channel, listener as RawFd)
    }

    const ROOM: usize = 64;

    /// Room for one descriptor, aligned as the kernel's header wants it.
    #[repr(align(8))]
    struct Control([u8; ROOM]);

    fn send(channel: RawFd, descriptor: RawFd) -> io::Result<()> {
        let mut byte = [1_u8];
        let mut data = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut control = Control([0; ROOM]);
        // SAFETY: all zero is a value of this plain structure.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: computes numbers; the buffer has room for one descriptor.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header)
                .cast::<RawFd>()
                .write_unaligned(descriptor);
            if libc::sendmsg(channel, &raw const message, 0) != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    fn receive(channel: &UnixStream) -> io::Result<OwnedFd> {
        let mut byte = [0_u8];
        let mut data = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut control = Control([0; ROOM]);
        // SAFETY: all zero is a value of this plain structure.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = ROOM as _;
        // SAFETY: the buffers outlive the call, and their sizes are as told.
        let received = unsafe {
            libc::recvmsg(
                channel.as_raw_fd(),
                &raw mut message,
                libc::MSG_CMSG_CLOEXEC,
            )
        };
        if received != 1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled the headers that these walk.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let descriptor = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
            Ok(OwnedFd::from_raw_fd(descriptor))
        }
    }
}
