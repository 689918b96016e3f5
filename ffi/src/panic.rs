//! The one boundary that every exported function runs inside.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::failure::{Failure, set_last};
use crate::result::llmlb_result_t::{self, LLMLB_OK, LLMLB_PANIC};

/// Runs a function's body: a panic ends here, a failure is remembered for the calling thread.
pub(crate) fn boundary(body: impl FnOnce() -> Result<(), Failure>) -> llmlb_result_t {
    match catch(body) {
        Ok(()) => LLMLB_OK,
        Err(failure) => {
            let code = failure.code;
            set_last(failure);
            code
        }
    }
}

/// The same, without touching what is remembered.
pub(crate) fn boundary_quiet(body: impl FnOnce() -> Result<(), Failure>) -> llmlb_result_t {
    catch(body).map_or_else(|failure| failure.code, |()| LLMLB_OK)
}

/// For functions that return no result.
pub(crate) fn boundary_or<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    let mut value = None;
    boundary(|| {
        value = Some(body());
        Ok(())
    });
    value.unwrap_or(otherwise)
}

fn catch(body: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    // What the body leaves half done is out of reach (its own values) or guarded by a mutex whose
    // poison is looked past: the lock in it is changed by core alone, in steps that each hold up.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let failure = Failure::new(LLMLB_PANIC, format!("Internal error: {}", text(&*payload)));
        // Its destructor might panic as well.
        std::mem::forget(payload);
        Err(failure)
    })
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::with_last;

    extern "C" fn panics(literal: bool) -> llmlb_result_t {
        boundary(|| match literal {
            true => panic!("a literal"),
            false => panic!("{} message", "a formatted"),
        })
    }

    fn last_message() -> String {
        with_last(|last| last.message.clone()).unwrap_or_default()
    }

    #[test]
    fn a_panic_becomes_a_code_and_a_message() {
        assert_eq!(panics(true), LLMLB_PANIC);
        assert_eq!(last_message(), "Internal error: a literal");
        assert_eq!(panics(false), LLMLB_PANIC);
        assert_eq!(last_message(), "Internal error: a formatted message");
    }

    #[test]
    fn a_payload_that_panics_when_dropped_does_not_escape() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let result = boundary(|| std::panic::panic_any(Bomb));
        assert_eq!(result, LLMLB_PANIC);
        assert_eq!(last_message(), "Internal error: unknown panic");
    }

    #[test]
    fn a_panic_where_there_is_no_result_gives_the_stated_value() {
        assert!(!boundary_or(false, || panic!("no answer")));
        assert_eq!(last_message(), "Internal error: no answer");
    }
}
