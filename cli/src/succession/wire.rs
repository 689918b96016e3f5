//! What holder and successor say to each other: lines of JSON over a Unix socket, descriptors beside
//! the line that offers them. Apart from both, because they have to agree.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The version of what is said here. Those that differ replace each other the long way.
pub(super) const VERSION: u32 = 1;

/// No line of ours is longer.
const LONGEST: usize = 512;
/// As many descriptors as any line has beside it.
const MOST: usize = 16;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(super) enum Message {
    /// The successor: may I?
    Ask { version: u32 },
    /// The holder: the lock, then the listener, beside it.
    Offer { version: u32 },
    /// The successor: the file names me, I serve.
    Serving,
    /// The holder: I take no more connections.
    Retired,
    /// The successor: I end in good order, and want my predecessor gone as well.
    Ending,
}

/// One side of a conversation.
pub(super) struct Wire {
    stream: UnixStream,
    /// What has come of a line.
    line: Vec<u8>,
    beside: Vec<OwnedFd>,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
            beside: Vec::new(),
        }
    }

    /// The process on the other side, where the system tells.
    pub(super) fn peer(&self) -> Option<u32> {
        let pid = self.stream.peer_cred().ok()?.pid()?;
        u32::try_from(pid).ok()
    }

    pub(super) async fn send(
        &self,
        message: &Message,
        beside: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !beside.is_empty() && !control.push(SendAncillaryMessage::ScmRights(beside)) {
                return Err(ErrorKind::InvalidInput.into());
            }
            // Of a peer that has gone nobody dies: SIGPIPE is ignored in a Rust program.
            let flags = SendFlags::empty();
            Ok(sendmsg(
                &self.stream,
                &[IoSlice::new(&line)],
                &mut control,
                flags,
            )?)
        };
        // So short a line goes whole into the buffer of a socket that has hardly been used.
        if self.stream.async_io(Interest::WRITABLE, send).await? != line.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// The next message, with what came beside it; `None` where the other side has gone. Nothing
    /// is lost when it is cancelled.
    pub(super) async fn receive(&mut self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let Self {
            stream,
            line,
            beside,
        } = self;
        // Byte by byte, so that nothing of the next line is taken with this one.
        while line.last() != Some(&b'\n') {
            if line.len() == LONGEST {
                return Err(ErrorKind::InvalidData.into());
            }
            let received =
                stream.async_io(Interest::READABLE, || receive_byte(stream, line, beside));
            match received.await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                // Killed with something unread: gone as well.
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let message = serde_json::from_slice(&mem::take(line))?;
        Ok(Some((message, mem::take(beside))))
    }
}

fn receive_byte(
    stream: &UnixStream,
    line: &mut Vec<u8>,
    beside: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let mut byte = [0];
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        flags,
    )?;
    line.extend(&byte[..received.bytes]);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            beside.extend(descriptors);
        }
    }
    #[cfg(not(target_os = "linux"))]
    for descriptor in &*beside {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok(received.bytes)
}
