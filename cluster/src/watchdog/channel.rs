//! What guardian, watchdog and gate say to each other, one packet each. Apart, since all read it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::clock::BootTime;

const HEADER: usize = 16;
const MAX: usize = HEADER + 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Kill the server then.
    Deadline(BootTime),
    /// Watch the server of the handle that comes with this; the whole group if it leads one, and all
    /// its offspring if it is told how to know them.
    Guard(Option<ServerKin>),
    /// Kill the server now.
    Kill,
    /// From the watchdog: it is there; 1: with real-time priority.
    Ready(bool),
    /// This deadline is known.
    Armed(BootTime),
    /// The server is watched.
    Guarding,
    /// The server has ended; true: by the watchdog's hand.
    Ended(bool),
    /// The server was killed, as its time was over.
    Fired,
    /// To the gate: become the server, with the standard input that comes with this.
    Open,
}

/// How a watchdog knows what a server has started: see [`llmlb_lock_core::Kin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerKin {
    /// The server's [`SERVER_ID_ENV`](llmlb_lock_core::SERVER_ID_ENV).
    pub id: String,
    /// Whether whoever descends from the guardian, but for its watchdog, comes from the server.
    pub told_by_descent: bool,
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let (tag, number, text): (u8, u64, &[u8]) = match self {
            Self::Deadline(at) => (1, at.as_nanos(), &[]),
            Self::Guard(None) => (2, 0, &[]),
            Self::Guard(Some(kin)) => (2, u64::from(kin.told_by_descent), kin.id.as_bytes()),
            Self::Kill => (3, 0, &[]),
            Self::Ready(real_time) => (4, u64::from(*real_time), &[]),
            Self::Armed(at) => (5, at.as_nanos(), &[]),
            Self::Guarding => (6, 0, &[]),
            Self::Ended(killed) => (7, u64::from(*killed), &[]),
            Self::Fired => (8, 0, &[]),
            Self::Open => (9, 0, &[]),
        };
        let mut packet = vec![0; HEADER];
        packet[0] = tag;
        packet[8..].copy_from_slice(&number.to_ne_bytes());
        packet.extend_from_slice(text);
        packet
    }

    fn decode(packet: &[u8]) -> Option<Self> {
        let number = u64::from_ne_bytes(packet.get(8..HEADER)?.try_into().ok()?);
        let id = String::from_utf8(packet[HEADER..].to_vec()).ok()?;
        Some(match packet[0] {
            1 => Self::Deadline(BootTime::from_nanos(number)),
            2 => Self::Guard((!id.is_empty()).then_some(ServerKin {
                id,
                told_by_descent: number != 0,
            })),
            3 => Self::Kill,
            4 => Self::Ready(number != 0),
            5 => Self::Armed(BootTime::from_nanos(number)),
            6 => Self::Guarding,
            7 => Self::Ended(number != 0),
            8 => Self::Fired,
            9 => Self::Open,
            _ => return None,
        })
    }
}

/// One end. Packets keep their bounds, and its end is seen by the other.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(ours), theirs))
    }

    pub(crate) fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Never waits: a peer that takes nothing any more is `WouldBlock`.
    pub(crate) fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let packet = message.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&packet)], &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The next packet; `None` when the other end is gone.
    pub(crate) fn receive(&self, wait: bool) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut packet = [0; MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if !wait {
            flags |= RecvFlags::DONTWAIT;
        }
        let received = loop {
            let mut slice = [IoSliceMut::new(&mut packet)];
            match recvmsg(&self.0, &mut slice, &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                // With packets of ours on the way, an end is told so.
                Err(Errno::CONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let packet = &packet[..received.bytes];
        let message = Message::decode(packet)
            .filter(|_| !received.flags.contains(ReturnFlags::TRUNC))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a watchdog's packet"))?;
        Ok(Some((message, fd)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_arrive_as_they_were_sent_and_the_end_is_seen() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::from(theirs);
        let at = BootTime::from_nanos(u64::MAX - 1);
        for message in [
            Message::Deadline(at),
            Message::Guard(None),
            Message::Guard(Some(ServerKin {
                id: "8000.0.a.1.2.3".into(),
                told_by_descent: true,
            })),
            Message::Kill,
            Message::Ready(true),
            Message::Armed(at),
            Message::Guarding,
            Message::Ended(false),
            Message::Fired,
            Message::Open,
        ] {
            ours.send(&message, Some(io::stdin().as_fd())).unwrap();
            let (heard, fd) = theirs.receive(true).unwrap().unwrap();
            assert_eq!(heard, message);
            assert!(fd.is_some());
        }
        drop(ours);
        assert!(theirs.receive(true).unwrap().is_none());
    }

    #[test]
    fn sending_to_one_that_takes_nothing_never_waits() {
        let (ours, _theirs) = Channel::pair().unwrap();
        let error = loop {
            if let Err(error) = ours.send(&Message::Kill, None) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
