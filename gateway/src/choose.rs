//! Chooses a backend: one pure function over what is known at this moment.
//!
//! Fit (does it serve the model) before state (may it be given a request) before affinity (did it
//! make what is asked for) before the fewest requests in flight by weight before whose turn it is.
//! Apart from what it chooses among, so that each rule can be read, tested and measured here.

use std::cmp::Ordering;

/// Whether a backend serves a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    Listed,
    /// It does not say what it serves.
    Unknown,
    NotListed,
}

/// Whether a backend may be given a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Ready,
    /// It has as many as it may have.
    Full,
    /// It is down, or has been tried for this request.
    Out,
}

/// What counts of a backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) fit: Fit,
    pub(crate) standing: Standing,
    /// The request follows up on something that it made.
    pub(crate) affine: bool,
    pub(crate) in_flight: usize,
    pub(crate) weight: u32,
    pub(crate) turn: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice<T> {
    Chosen(T),
    /// None is ready, but some are only full.
    Full,
    Nobody,
}

/// The best of them; of equals, the first.
pub(crate) fn choose<T>(candidates: impl Iterator<Item = (T, Candidate)>, now: u64) -> Choice<T> {
    let mut best: Option<(T, Candidate)> = None;
    let mut full = false;
    // From within: a chain of iterators is slow to be pulled at.
    candidates.for_each(|(who, candidate)| match candidate.standing {
        Standing::Ready => match &best {
            Some((_, least)) if order(&candidate, least, now).is_ge() => {}
            _ => best = Some((who, candidate)),
        },
        Standing::Full => full = true,
        Standing::Out => {}
    });
    match best {
        Some((who, _)) => Choice::Chosen(who),
        None if full => Choice::Full,
        None => Choice::Nobody,
    }
}

fn order(a: &Candidate, b: &Candidate, now: u64) -> Ordering {
    (a.fit, !a.affine)
        .cmp(&(b.fit, !b.affine))
        .then_with(|| load(a, b).cmp(&load(b, a)))
        .then_with(|| a.turn.max(now).cmp(&b.turn.max(now)))
}

/// A's requests for each unit of weight, times both weights.
fn load(a: &Candidate, b: &Candidate) -> u64 {
    (a.in_flight as u64).saturating_mul(b.weight.into())
}

/// One round of turns. Who has twice the weight has two turns in it.
const ROUND: u64 = 1 << 32;

/// Turns are a clock that each request moves on (stride scheduling): whose time is earliest is
/// next. Returns the new time of the clock and the chosen one's next turn. Who was away has saved
/// up nothing.
pub(crate) fn take_turn(turn: u64, now: u64, weight: u32) -> (u64, u64) {
    let turn = turn.max(now);
    let next = turn + (ROUND / u64::from(weight.max(1))).max(1);
    // A tick more, so that of two who are due at once the one that waited longer is first.
    (turn + 1, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Candidate = Candidate {
        fit: Fit::Listed,
        standing: Standing::Ready,
        affine: false,
        in_flight: 0,
        weight: 1,
        turn: 0,
    };

    fn chosen(candidates: &[Candidate]) -> Choice<usize> {
        choose(candidates.iter().copied().enumerate(), 0)
    }

    #[test]
    fn each_rule_gives_way_to_the_one_before_it() {
        let later = Candidate { turn: 9, ..PLAIN };
        let busy = Candidate {
            in_flight: 1,
            ..PLAIN
        };
        let affine = Candidate {
            affine: true,
            ..busy
        };
        let silent = Candidate {
            fit: Fit::Unknown,
            ..affine
        };
        let other = Candidate {
            fit: Fit::NotListed,
            ..affine
        };
        let ranks = [other, silent, busy, later, PLAIN, affine];
        for best in 2..=ranks.len() {
            // An affine one stands above all that fit as well.
            let expected = best - 1;
            assert_eq!(chosen(&ranks[..best]), Choice::Chosen(expected), "{best}");
        }
    }

    #[test]
    fn who_is_out_is_left_out_and_full_is_told_from_nobody() {
        let out = Candidate {
            standing: Standing::Out,
            ..PLAIN
        };
        let full = Candidate {
            standing: Standing::Full,
            ..PLAIN
        };
        let last = Candidate {
            fit: Fit::NotListed,
            in_flight: 99,
            ..PLAIN
        };
        assert_eq!(chosen(&[out, full, last]), Choice::Chosen(2));
        assert_eq!(chosen(&[out, full]), Choice::Full);
        assert_eq!(chosen(&[out, out]), Choice::Nobody);
        assert_eq!(chosen(&[]), Choice::Nobody);
    }

    #[test]
    fn twice_the_weight_is_twice_the_requests() {
        // In flight for long, and one after the other.
        for stays in [true, false] {
            let mut all = [1, 2, 4].map(|weight| Candidate { weight, ..PLAIN });
            let (mut now, mut counts) = (0, [0; 3]);
            for _ in 0..70 {
                let Choice::Chosen(index) = choose(all.iter().copied().enumerate(), now) else {
                    panic!("one is ready");
                };
                let one = &mut all[index];
                (now, one.turn) = take_turn(one.turn, now, one.weight);
                one.in_flight += usize::from(stays);
                counts[index] += 1;
            }
            assert_eq!(counts, [10, 20, 40], "{stays}");
        }
    }

    #[test]
    fn who_was_passed_over_takes_turns_with_the_other_at_once() {
        let mut all = [PLAIN; 2];
        let (mut now, mut order) = (0, Vec::new());
        for request in 0..9 {
            // Others asked for what only the second one has.
            let first = usize::from(request < 5);
            let candidates = all.iter().copied().enumerate().skip(first);
            let Choice::Chosen(index) = choose(candidates, now) else {
                panic!("one is ready");
            };
            (now, all[index].turn) = take_turn(all[index].turn, now, 1);
            order.push(index);
        }
        assert_eq!(order[5..], [0, 1, 0, 1]);
    }

    #[test]
    fn who_was_away_has_saved_up_no_turns() {
        let mut all = [PLAIN; 2];
        let (mut now, mut order) = (0, Vec::new());
        for request in 0..20 {
            all[1].standing = if request < 10 {
                Standing::Out
            } else {
                Standing::Ready
            };
            let Choice::Chosen(index) = choose(all.iter().copied().enumerate(), now) else {
                panic!("one is ready");
            };
            (now, all[index].turn) = take_turn(all[index].turn, now, 1);
            order.push(index);
        }
        let returned = order[10..].iter().filter(|&&index| index == 1).count();
        assert!((4..=6).contains(&returned), "{order:?}");
    }
}
