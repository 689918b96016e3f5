//! The output of a detached server, on its way through llmlb into the log, so that the log can be
//! opened anew. A file that can't be written to, as on a full disk, holds nobody up: what does not
//! fit is counted, and left out.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::stdio::stdout;

use crate::log;

/// How long what has ended may take to be read to its end; a process that was let go has the pipe
/// still.
const SETTLE: Duration = Duration::from_secs(1);

/// The llmlb side of the pipe.
pub(super) struct PassedThrough {
    ended: Receiver<()>,
}

impl PassedThrough {
    /// With what the server is to have as its standard output and standard error.
    pub(super) fn start() -> io::Result<(PipeWriter, Self)> {
        let (reader, writer) = io::pipe()?;
        let (end, ended) = channel();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                copy(reader);
                let _ = end.send(());
            })?;
        Ok((writer, Self { ended }))
    }

    /// When the server has ended: waits until all it said is in the log.
    pub(super) fn finish(self) {
        let _ = self.ended.recv_timeout(SETTLE);
    }
}

fn copy(mut reader: PipeReader) {
    let mut buffer = vec![0; 64 * 1024];
    let mut lost = Lost::default();
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => lost.write(&buffer[..len]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// What has found no room.
#[derive(Default)]
struct Lost {
    bytes: usize,
    why: String,
}

impl Lost {
    fn write(&mut self, text: &[u8]) {
        if self.bytes > 0 {
            let Self { bytes, why } = self;
            let what = format!("{bytes} bytes of output were lost here: {why}");
            let remark = format!("\n{}", log::warning(&what));
            if try_write(remark.as_bytes()).is_err() {
                self.bytes += text.len();
                return;
            }
            self.bytes = 0;
        }
        if let Err((rest, e)) = try_write(text) {
            self.bytes += rest;
            self.why = e.to_string();
        }
    }
}

/// How much could not be written, and why.
fn try_write(mut text: &[u8]) -> Result<(), (usize, io::Error)> {
    while !text.is_empty() {
        // Looked up each time: the log may be another by now.
        match rustix::io::write(stdout(), text) {
            Ok(0) => return Err((text.len(), io::ErrorKind::WriteZero.into())),
            Ok(len) => text = &text[len..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err((text.len(), e.into())),
        }
    }
    Ok(())
}
