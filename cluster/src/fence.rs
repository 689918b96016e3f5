//! The fence of an exclusive service: a key without a lease that says whether the last holder's
//! time is over. Apart, since all of the exclusion rests on how it is judged.
//!
//! Leases alone are not enough. etcd before 3.5.10 let a leader that was already replaced renew
//! leases for up to an election timeout, and a leader that was stopped revoke living ones when it
//! continued; a new leader starts every TTL anew. So a lease here only cleans up, and makes a
//! refusal quick. What decides is a beat: each renewal writes the fence, through etcd's quorum, and
//! nobody starts until it has seen no beat for a whole TTL on its own clock, or the end was
//! announced.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::BootTime;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fence {
    pub(crate) version: u32,
    /// Given back: the server has ended.
    pub(crate) free: bool,
    /// Of whom: its record's nonce.
    pub(crate) nonce: String,
    /// How long after a beat the holder may go on.
    pub(crate) ttl_ms: u64,
    /// Counts the renewals.
    pub(crate) beat: u64,
}

impl Fence {
    pub(crate) fn held(nonce: &str, ttl: Duration, beat: u64) -> Self {
        Self {
            version: 1,
            free: false,
            nonce: nonce.to_owned(),
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            beat,
        }
    }

    pub(crate) fn freed(mut self) -> Self {
        self.free = true;
        self
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > 4096 {
            return Err("longer than 4096 bytes".into());
        }
        let fence: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if fence.version != 1 {
            return Err(format!("version {} is not known here", fence.version));
        }
        if !(1..=3_600_000).contains(&fence.ttl_ms) {
            return Err(format!("a TTL of {} ms", fence.ttl_ms));
        }
        Ok(fence)
    }

    /// When it is over with the holder, if its last beat was seen at `seen`, not earlier than it
    /// was made.
    pub(crate) fn over_at(&self, seen: BootTime) -> BootTime {
        seen + Duration::from_millis(self.ttl_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::Timing;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_and_what_is_not_a_fence_is_refused() {
        let fence = Fence::held("n", Duration::from_secs(3), 7);
        assert_eq!(Fence::read(fence.to_json().as_bytes()), Ok(fence.clone()));
        for bad in [
            "",
            "{}",
            &fence.to_json().replace("\"version\":1", "\"version\":2"),
            &fence.to_json().replace("3000", "0"),
            &fence.to_json().replace("3000", "99999999"),
        ] {
            assert!(Fence::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        /// The two clocks are one here: what differs between machines is what the margin is for.
        #[test]
        fn the_holder_is_dead_before_anybody_takes_over(
            ttl in 1.0..300.0f64, sent in 0u64..1 << 50, way in 0u64..1 << 40, look in 0u64..1 << 40,
        ) {
            let timing = Timing::new(Duration::from_secs_f64(ttl), Duration::ZERO).unwrap();
            let sent = BootTime::from_nanos(sent);
            let seen = sent + Duration::from_nanos(way) + Duration::from_nanos(look);
            let fence = Fence::held("n", timing.ttl(), 0);
            prop_assert!(timing.deadline(sent) < fence.over_at(seen));
        }
    }
}
