//! The output of a detached server, on its way through llmlb into the log, so that the log can be
//! opened anew. A file that can't be written to, as on a full disk, holds nobody up: what does not
//! fit is counted, and left out.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::stdio::stdout;

use crate::log::Lost;

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
    let mut lost = Lost::new("bytes of output", <[u8]>::len);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => lost.write(&buffer[..len], write),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The descriptor is looked up each time: the log may be another by now.
fn write(text: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(stdout(), text)?)
}
