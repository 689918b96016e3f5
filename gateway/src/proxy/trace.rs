//! What tells one request from all others, on its way through: its id, and where it went.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Asked for in a request, told in the answer.
const BACKEND: HeaderName = HeaderName::from_static("x-llmlb-backend");

/// A client's own id is passed on up to this length.
const LONGEST: usize = 200;

pub(super) struct Trace {
    id: HeaderValue,
    wants_backend: bool,
}

impl Trace {
    /// The id that the client has given, or a new one.
    pub(super) fn of(request: &mut Request) -> Self {
        let headers = request.headers_mut();
        let wants_backend = headers.remove(BACKEND).is_some();
        let given = headers.get(REQUEST_ID).filter(|id| is_sound(id)).cloned();
        let id = given.unwrap_or_else(make);
        Self { id, wants_backend }
    }

    /// Tells the backend, whatever of its headers the client has meant for the gateway alone.
    pub(super) fn carry(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.id.clone());
    }

    pub(super) fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// Tells it in the answer, where the backend has not.
    pub(super) fn tell(&self, answer: &mut HeaderMap, backend: Option<&str>) {
        answer.entry(REQUEST_ID).or_insert_with(|| self.id.clone());
        if self.wants_backend
            && let Some(name) = backend.and_then(|name| HeaderValue::from_str(name).ok())
        {
            answer.insert(BACKEND, name);
        }
    }
}

/// It goes into logs as it is.
fn is_sound(id: &HeaderValue) -> bool {
    let id = id.as_bytes();
    (1..=LONGEST).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Unique to this process, and as good as unique among all.
fn make() -> HeaderValue {
    static INSTANCE: LazyLock<u64> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_nanos());
        // Of a time in nanoseconds the lower half changes.
        let now = u64::try_from(now & u128::from(u64::MAX)).unwrap_or(0);
        now.rotate_left(32) ^ u64::from(std::process::id())
    });
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut id = [0; 32];
    for (digits, half) in id.chunks_exact_mut(16).zip([*INSTANCE, number]) {
        hex(half, digits);
    }
    HeaderValue::from_bytes(&id).unwrap_or(HeaderValue::from_static("none"))
}

/// Without the machinery of formatting, which costs ten times that.
fn hex(number: u64, digits: &mut [u8]) {
    for (place, digit) in digits.iter_mut().rev().enumerate() {
        let nibble = number >> (4 * place) & 0xf;
        *digit = b"0123456789abcdef"[nibble as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_and_count_up() {
        let mut digits = [0; 16];
        hex(0x0123_4567_89ab_cdef, &mut digits);
        assert_eq!(&digits, b"0123456789abcdef");
        let [first, second] = [make(), make()];
        assert!(is_sound(&first) && first.len() == 32);
        assert!(first < second && first.as_bytes()[..16] == second.as_bytes()[..16]);
    }
}
