//! Request bodies: their beginning is kept, to find the model in and to send again, the rest
//! streams.

mod received;
mod upload;

use std::time::Duration;

pub(crate) use received::Received;
pub(crate) use upload::Upload;

/// How long a client may pause while it sends one.
const PAUSE: Duration = Duration::from_secs(30);
