//! What a request's outcome says of its backend.
//!
//! Apart from those who find out (connecting, sending, relaying), so that all failures are told of in
//! one place and judged by one rule.

use axum::http::StatusCode;

use crate::backend::{Backend, Place, Trouble};
use crate::report::{self, Reason};
use crate::shared::Shared;

/// No connection was to be had. That is a matter for its condition: as nothing is lost by it, it is
/// not ejected for that.
pub(crate) fn unreachable(shared: &Shared, backend: &Backend, e: &std::io::Error) {
    report::failed(&shared.metrics, backend, Reason::Connect, &e.to_string());
    backend.failed(Trouble::connecting(e));
}

/// It failed a request that it had taken.
pub(crate) fn failed(shared: &Shared, place: &mut Place, reason: Reason, problem: &str) {
    report::failed(&shared.metrics, place, reason, problem);
    if shared.live.failed(place, problem) {
        report::ejected(&shared.metrics, &place.name);
    }
}

/// It answered with this, and may do so for a request that is at fault as well: if only it does is
/// for others to tell.
pub(crate) fn answered(shared: &Shared, place: &mut Place, status: StatusCode) {
    if is_trouble(status) {
        failed(
            shared,
            place,
            Reason::Answer,
            &format!("it answered {status}"),
        );
    }
}

fn is_trouble(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}
