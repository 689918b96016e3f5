//! Between a client's socket and hyper: what hyper would let pass, and what it answers alone.
//!
//! hyper has no deadline for a head that begins when the head does, takes lines that end in a bare
//! LF, and answers what it cannot parse with an empty body. None of that can be told to it, so it
//! is done to what it reads and writes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::activity::Activity;
use super::framing::Framing;
use crate::error::Refusal;

/// How long a client may take to send a request's head, from its first byte.
pub(super) const HEAD: Duration = Duration::from_secs(30);

/// In no line of a head, to any parser.
const NEVER: u8 = 0;

/// A client's stream, as hyper is to see it.
pub(super) struct Strict<S> {
    stream: S,
    framing: Framing,
    /// Runs while a head is incomplete.
    deadline: Option<Pin<Box<Sleep>>>,
    activity: Arc<Activity>,
    /// What is written in place of what hyper wrote, and how much of it has been.
    instead: Option<(Vec<u8>, usize)>,
}

impl<S> Strict<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            framing: Framing::new(),
            deadline: None,
            activity,
            instead: None,
        }
    }

    fn came(&mut self, new: &mut [u8]) {
        if let Some(at) = self.framing.follow(new) {
            // hyper then finds it malformed, and says so.
            new[at] = NEVER;
        }
        if !self.framing.in_head() {
            self.deadline = None;
        }
        self.activity.has_read(!self.framing.is_between());
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.activity.awaits_head() {
            if this.framing.stays_http() {
                this.activity.has_read(false);
            }
            // Else there would be no deadline for this head, nor anything else that is seen to here.
            if this.framing.is_lost() {
                return Poll::Ready(Ok(()));
            }
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if read.is_ready() {
            this.came(&mut buffer.filled_mut()[before..]);
            return read;
        }
        if this.framing.in_head() {
            let deadline = this.deadline.get_or_insert_with(|| Box::pin(sleep(HEAD)));
            ready!(deadline.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> Strict<S> {
    /// Writes what is to be written in place of something else.
    fn poll_instead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((text, written)) = &mut self.instead {
            let stream = Pin::new(&mut self.stream);
            match ready!(stream.poll_write(context, &text[*written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                len => *written += len,
            }
            if *written == text.len() {
                self.instead = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether this is written otherwise, and has been.
    fn poll_own(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<bool>> {
        if self.instead.is_none() {
            let answered = self.activity.takes_answer();
            if answered || !may_be_own(data) {
                return Poll::Ready(Ok(false));
            }
            let Some(text) = in_our_shape(data, self.framing.speaks_http_2) else {
                return Poll::Ready(Ok(false));
            };
            self.instead = Some((text, 0));
        }
        ready!(self.poll_instead(context))?;
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if ready!(this.poll_own(context, data))? {
            return Poll::Ready(Ok(data.len()));
        }
        Pin::new(&mut this.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first: &[u8] = data.first().map_or(&[], |slice| slice);
        if ready!(this.poll_own(context, first))? {
            return Poll::Ready(Ok(first.len()));
        }
        Pin::new(&mut this.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Whether hyper may have written this by itself.
fn may_be_own(data: &[u8]) -> bool {
    data.starts_with(b"HTTP/1.1 4") && data.ends_with(b"\r\n\r\n")
}

/// hyper's own answer, with a body that tells what is wrong.
fn in_our_shape(head: &[u8], http_2: bool) -> Option<Vec<u8>> {
    let refusal = match head.get(9..12)? {
        b"400" if http_2 => Refusal::VersionNotSupported,
        b"400" => Refusal::Malformed("its head is no HTTP/1.1"),
        b"414" => Refusal::PathTooLong,
        b"431" => Refusal::HeadTooLarge,
        _ => return None,
    };
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.trim_end().split("\r\n");
    lines.next()?;
    let mut text = format!("HTTP/1.1 {}", refusal.status());
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            // What has a body was not made there.
            if value.trim() != "0" {
                return None;
            }
        } else {
            text.push_str("\r\n");
            text.push_str(line);
        }
    }
    let body = refusal.json().to_string();
    let len = body.len();
    text.push_str(&format!(
        "\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n{body}"
    ));
    Some(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const OWN: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
        content-length: 0\r\ndate: x\r\n\r\n";

    async fn written(text: &str, answered: bool) -> String {
        // So small that it takes several writes.
        let (near, mut far) = duplex(16);
        let activity = Arc::new(Activity::default());
        if answered {
            activity.answers();
        }
        let mut strict = Strict::new(near, activity);
        let write = async move { strict.write_all(text.as_bytes()).await.unwrap() };
        let mut read = String::new();
        let (_, result) = tokio::join!(write, far.read_to_string(&mut read));
        result.unwrap();
        read
    }

    #[tokio::test]
    async fn an_answer_of_hypers_own_gets_a_body() {
        let text = written(OWN, false).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 431 ") && head.contains("date: x"),
            "{head}"
        );
        let length = format!("content-length: {}", body.len());
        assert!(
            head.contains(&length) && !head.contains("length: 0"),
            "{head}"
        );
        assert!(body.contains("headers_too_large"), "{body}");
    }

    #[tokio::test]
    async fn all_else_goes_out_as_it_is() {
        assert_eq!(written(OWN, true).await, OWN);
        for text in [
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "data",
        ] {
            assert_eq!(written(text, false).await, text);
        }
    }

    /// What comes in these pieces.
    struct Pieces(VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(piece) = self.0.pop_front() {
                buffer.put_slice(&piece);
            }
            Poll::Ready(Ok(()))
        }
    }

    /// A line of a head that says how long the body is, or one that is beside that.
    fn line() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "X",
            "Cookie",
            "Content-Type",
            "Te",
            "Upgrade-Insecure",
        ]);
        (name, "[a-z0-9:; ]{0,90}").prop_map(|(name, value)| format!("{name}: {value}\r\n"))
    }

    fn request() -> impl Strategy<Value = Vec<u8>> {
        let zeros = || prop_oneof![0..3_usize, 40..90_usize, 900..1200_usize];
        let body = prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..40);
        let lines = || prop::collection::vec(line(), 0..3);
        (lines(), lines(), body, zeros(), any::<bool>()).prop_map(
            |(before, after, body, zeros, chunked)| {
                let zeros = "0".repeat(zeros);
                let (before, after) = (before.concat(), after.concat());
                let start = format!("POST /v1/x HTTP/1.1\r\n{before}");
                if !chunked {
                    let head = format!(
                        "{start}Content-Length: {zeros}{}\r\n{after}\r\n",
                        body.len()
                    );
                    return [head.as_bytes(), &body].concat();
                }
                let head = format!("{start}Transfer-Encoding: chunked\r\n{after}\r\n");
                let mut sent = head.into_bytes();
                for part in body.chunks(7) {
                    sent.extend(format!("{zeros}{:x};a=b\r\n", part.len()).bytes());
                    sent.extend(part);
                    sent.extend(b"\r\n");
                }
                sent.extend(b"0\r\nX-Sum: 1\r\n\r\n");
                sent
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_proper_goes_through_as_it_is_in_whatever_pieces(
            requests in prop::collection::vec(request(), 1..4),
            cuts in prop::collection::vec(1..200_usize, 1..8),
        ) {
            let sent = requests.concat();
            let mut pieces = VecDeque::new();
            let mut rest = sent.as_slice();
            for len in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*len).min(rest.len()));
                pieces.push_back(piece.to_vec());
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            let mut strict = Strict::new(Pieces(pieces), Arc::default());
            let mut read = Vec::new();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut room = [0; 256];
                while let len @ 1.. = strict.read(&mut room).await.unwrap() {
                    read.extend_from_slice(&room[..len]);
                }
            });
            prop_assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(&sent));
        }
    }
}
