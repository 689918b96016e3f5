//! Request bodies: their beginning is kept, to find the model in and to send again, the rest
//! streams.

mod intake;
mod pace;
mod received;
mod upload;
mod uploads;

pub(crate) use intake::Intake;
pub(crate) use received::Received;
pub(crate) use upload::{Upload, upload_failed};
