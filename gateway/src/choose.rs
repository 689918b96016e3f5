//! Chooses a backend: one pure function over what is known at this moment.
//!
//! Fit (does it serve the model) before affinity (did it make what is asked for) before standing
//! (should it be spared) before the fewest requests in flight by weight before whose turn it is; who
//! is down or full is no choice at all.
//! Apart from what it chooses among, so that each rule can be read, tested and measured here.

use std::cmp::Ordering;

use crate::backend::WHOLE;

/// Whether a backend serves a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    Listed,
    /// It does not say what it serves.
    Unknown,
    NotListed,
}

/// Whether a backend may be given a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Ready,
    /// It said that it has enough for now: asked when there is no other.
    Cooling,
    /// Requests found it failing: asked when there is no other, not even one that is full.
    Ejected,
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
    /// It would have to load the model first.
    pub(crate) cold: bool,
    pub(crate) in_flight: usize,
    /// In parts of a unit, [`WHOLE`] each.
    pub(crate) weight: u64,
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
    let mut best: Option<(T, Candidate, u32)> = None;
    let mut full = false;
    // From within: a chain of iterators is slow to be pulled at.
    candidates.for_each(|(who, candidate)| match candidate.standing {
        Standing::Ready | Standing::Cooling | Standing::Ejected => {
            let rank = rank(&candidate);
            let is_better = match &best {
                None => true,
                Some((_, _, lowest)) if rank != *lowest => rank < *lowest,
                Some((_, least, _)) => order(&candidate, least, now).is_lt(),
            };
            if is_better {
                best = Some((who, candidate, rank));
            }
        }
        Standing::Full => full = true,
        Standing::Out => {}
    });
    match best {
        Some((_, one, _)) if full && one.standing == Standing::Ejected => Choice::Full,
        Some((who, ..)) => Choice::Chosen(who),
        None if full => Choice::Full,
        None => Choice::Nobody,
    }
}

/// Fit, affinity and standing as one number, the lower the better.
fn rank(candidate: &Candidate) -> u32 {
    (candidate.fit as u32) << 16 | u32::from(!candidate.affine) << 8 | candidate.standing as u32
}

/// Of two that rank alike.
fn order(a: &Candidate, b: &Candidate, now: u64) -> Ordering {
    let loads = if (a.weight, a.cold) == (b.weight, b.cold) {
        a.in_flight.cmp(&b.in_flight)
    } else {
        load(a, b).cmp(&load(b, a))
    };
    loads.then_with(|| a.turn.max(now).cmp(&b.turn.max(now)))
}

/// To load a model takes as long as so many requests in flight.
const LOADING: u64 = 4;

/// A's requests for each unit of weight, times both weights.
fn load(a: &Candidate, b: &Candidate) -> u64 {
    let loading = if a.cold { LOADING } else { 0 };
    (a.in_flight as u64 + loading).saturating_mul(b.weight)
}

/// One round of turns of those whose weight is 1, small enough that the clock does not run out. Who
/// has twice the weight has two turns in it.
const ROUND: u64 = 1 << 20;

/// Turns are a clock that each request moves on (stride scheduling): whose time is earliest is
/// next. Returns the new time of the clock and the chosen one's next turn. Who was away has saved
/// up nothing.
pub(crate) fn take_turn(turn: u64, now: u64, weight: u64) -> (u64, u64) {
    let turn = turn.max(now);
    let next = turn + (ROUND * WHOLE / weight.max(1)).max(1);
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
        cold: false,
        in_flight: 0,
        weight: WHOLE,
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
        let standing = |standing| Candidate { standing, ..PLAIN };
        let ejected = standing(Standing::Ejected);
        let cooling = standing(Standing::Cooling);
        let ranks = [other, silent, ejected, cooling, busy, later, PLAIN, affine];
        for best in 2..=ranks.len() {
            // An affine one stands above all that fit as well.
            let expected = best - 1;
            assert_eq!(chosen(&ranks[..best]), Choice::Chosen(expected), "{best}");
        }
    }

    #[test]
    fn who_has_the_model_loaded_is_better_until_there_is_a_queue() {
        let cold = Candidate {
            cold: true,
            ..PLAIN
        };
        let warm = |in_flight| Candidate { in_flight, ..PLAIN };
        for in_flight in 0..LOADING as usize {
            assert_eq!(chosen(&[cold, warm(in_flight)]), Choice::Chosen(1));
        }
        assert_eq!(
            chosen(&[cold, warm(LOADING as usize + 1)]),
            Choice::Chosen(0)
        );
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
        let ejected = Candidate {
            standing: Standing::Ejected,
            ..PLAIN
        };
        assert_eq!(chosen(&[out, ejected]), Choice::Chosen(1));
        assert_eq!(chosen(&[full, ejected]), Choice::Full);
        assert_eq!(chosen(&[out, out]), Choice::Nobody);
        assert_eq!(chosen(&[]), Choice::Nobody);
    }

    #[test]
    fn twice_the_weight_is_twice_the_requests() {
        // In flight for long, and one after the other.
        for stays in [true, false] {
            let mut all = [1, 2, 4].map(|units| Candidate {
                weight: units * WHOLE,
                ..PLAIN
            });
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
            (now, all[index].turn) = take_turn(all[index].turn, now, WHOLE);
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
            (now, all[index].turn) = take_turn(all[index].turn, now, WHOLE);
            order.push(index);
        }
        let returned = order[10..].iter().filter(|&&index| index == 1).count();
        assert!((4..=6).contains(&returned), "{order:?}");
    }
}
