//! Chooses a backend: one pure judgement of what is known at this moment.
//!
//! Fit (does it serve the model) before standing (should it be spared) before the fewest requests in
//! flight by weight before whose turn it is; who is down or full is no choice at all.
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
    /// It said that it has enough for now: asked when there is no other, not even one that is full.
    Cooling,
    /// Requests found it failing: asked when there is not even one of those.
    Ejected,
    /// It has as many as it may have.
    Full,
    /// It has not been looked at yet: it may be up in a moment.
    Unseen,
    /// It is down, or has been tried for this request.
    Out,
}

/// What counts of a backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) fit: Fit,
    pub(crate) standing: Standing,
    pub(crate) in_flight: usize,
    /// What it takes to load the model first, in requests in flight.
    pub(crate) loading: u64,
    /// In parts of a unit, [`WHOLE`] each.
    pub(crate) weight: u64,
    pub(crate) turn: u64,
}

impl Candidate {
    fn rank(&self) -> u32 {
        rank(self.fit, self.standing)
    }
}

/// What is read first of one that is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Glance {
    pub(crate) in_flight: u64,
    pub(crate) weight: u64,
    pub(crate) turn: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice<T> {
    Chosen(T),
    /// None is ready, but some are only full.
    Full,
    /// Not even that, but some have not been looked at yet.
    Unseen,
    Nobody,
}

/// The best of those that have been considered; of equals, the first.
#[derive(Debug)]
pub(crate) struct Choosing<T> {
    best: Option<(T, Candidate)>,
    /// What the best one is to be beaten by.
    mark: Mark,
    /// One is full.
    full: bool,
    /// One has not been looked at yet.
    unseen: bool,
    /// The clock of turns.
    now: u64,
}

/// Of a candidate, what most of them differ in alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    rank: u32,
    weight: u64,
    burden: u64,
    /// Not before now.
    turn: u64,
}

impl<T> Choosing<T> {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            best: None,
            mark: Mark {
                rank: u32::MAX,
                weight: 0,
                burden: 0,
                turn: 0,
            },
            full: false,
            unseen: false,
            now,
        }
    }

    /// Whether one that is ready, and no better than it seems at a glance, need not be considered.
    #[inline]
    pub(crate) fn is_beaten(&self, fit: Fit, glance: Glance) -> bool {
        let mark = &self.mark;
        let later = || glance.turn.max(self.now) >= mark.turn;
        rank(fit, Standing::Ready) == mark.rank
            && glance.weight == mark.weight
            && (glance.in_flight > mark.burden || glance.in_flight == mark.burden && later())
    }

    /// Whether it `is_cold`, and would have to load the model first, is asked only where it would be
    /// the best so far if it is not: that takes a look at more than what is at hand of all.
    pub(crate) fn consider(
        &mut self,
        who: T,
        mut candidate: Candidate,
        is_cold: impl FnOnce(&T) -> bool,
    ) {
        match candidate.standing {
            Standing::Out => return,
            Standing::Full => {
                self.full = true;
                return;
            }
            Standing::Unseen => {
                self.unseen = true;
                return;
            }
            Standing::Ready | Standing::Cooling | Standing::Ejected => {}
        }
        if !self.is_better(&candidate) {
            return;
        }
        if is_cold(&who) {
            candidate.loading = LOADING;
            if !self.is_better(&candidate) {
                return;
            }
        }
        self.mark = Mark {
            rank: candidate.rank(),
            weight: candidate.weight,
            burden: burden(&candidate),
            turn: candidate.turn.max(self.now),
        };
        self.best = Some((who, candidate));
    }

    fn is_better(&self, candidate: &Candidate) -> bool {
        let Some((_, best)) = &self.best else {
            return true;
        };
        let ranks = candidate.rank().cmp(&best.rank());
        ranks.then_with(|| order(candidate, best, self.now)).is_lt()
    }

    /// Of those that are ready, the worst that is worth to be taken in place of the best, for having
    /// in memory what the request begins with: no worse in kind, and its load at most a quarter and
    /// one request more.
    pub(crate) fn bound(&self) -> Option<Bound> {
        let (_, best) = self.best.as_ref()?;
        (best.standing == Standing::Ready).then(|| Bound {
            fit: best.fit,
            loading: best.loading,
            load: 5 * burden(best) + SLACK,
            weight: best.weight,
        })
    }

    pub(crate) fn chosen(self) -> Choice<T> {
        match self.best {
            Some((_, one)) if self.full && one.standing >= Standing::Cooling => Choice::Full,
            Some((who, _)) => Choice::Chosen(who),
            None if self.full => Choice::Full,
            None if self.unseen => Choice::Unseen,
            None => Choice::Nobody,
        }
    }
}

/// Of a load in quarters of requests: one.
const SLACK: u64 = 4;

/// How busy one may be that is taken for its memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) fit: Fit,
    loading: u64,
    /// In quarters of requests, of one that has this `weight`.
    load: u64,
    weight: u64,
}

impl Bound {
    /// Whether one that is ready, as it seems at a glance, is within it.
    #[inline]
    pub(crate) fn admits(&self, glance: Glance) -> bool {
        let load = glance.in_flight.saturating_mul(4 * self.weight);
        load <= self.load.saturating_mul(glance.weight)
    }

    /// Whether one that `is_cold`, and would have to load the model first, is within it.
    pub(crate) fn admits_cold(&self, is_cold: bool) -> bool {
        !is_cold || self.loading > 0
    }
}

/// Fit and standing as one number, the lower the better.
fn rank(fit: Fit, standing: Standing) -> u32 {
    (fit as u32) << 8 | standing as u32
}

/// Of two that rank alike.
fn order(a: &Candidate, b: &Candidate, now: u64) -> Ordering {
    let loads = if a.weight == b.weight {
        burden(a).cmp(&burden(b))
    } else {
        let of = |one, other: &Candidate| u64::saturating_mul(burden(one), other.weight);
        of(a, b).cmp(&of(b, a))
    };
    loads.then_with(|| a.turn.max(now).cmp(&b.turn.max(now)))
}

/// To load a model takes as long as so many requests in flight.
const LOADING: u64 = 4;

fn burden(candidate: &Candidate) -> u64 {
    candidate.in_flight as u64 + candidate.loading
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
        in_flight: 0,
        loading: 0,
        weight: WHOLE,
        turn: 0,
    };

    /// Among them, at this time; `cold` have to load the model.
    fn choose<T: Copy>(
        candidates: impl Iterator<Item = (T, Candidate)>,
        cold: impl Fn(T) -> bool,
        now: u64,
    ) -> Choice<T> {
        let mut choosing = Choosing::new(now);
        for (who, candidate) in candidates {
            choosing.consider(who, candidate, |who| cold(*who));
        }
        choosing.chosen()
    }

    fn chosen(candidates: &[Candidate]) -> Choice<usize> {
        choose(candidates.iter().copied().enumerate(), |_| false, 0)
    }

    #[test]
    fn each_rule_gives_way_to_the_one_before_it() {
        let later = Candidate { turn: 9, ..PLAIN };
        let busy = Candidate {
            in_flight: 1,
            ..PLAIN
        };
        let silent = Candidate {
            fit: Fit::Unknown,
            ..PLAIN
        };
        let other = Candidate {
            fit: Fit::NotListed,
            ..PLAIN
        };
        let standing = |standing| Candidate { standing, ..PLAIN };
        let ejected = standing(Standing::Ejected);
        let cooling = standing(Standing::Cooling);
        let ranks = [other, silent, ejected, cooling, busy, later, PLAIN];
        for best in 2..=ranks.len() {
            let expected = best - 1;
            assert_eq!(chosen(&ranks[..best]), Choice::Chosen(expected), "{best}");
        }
    }

    #[test]
    fn one_that_has_not_been_looked_at_is_waited_for_where_there_is_no_other() {
        let [cooling, full, unseen, out] = [
            Standing::Cooling,
            Standing::Full,
            Standing::Unseen,
            Standing::Out,
        ]
        .map(|standing| Candidate { standing, ..PLAIN });
        assert_eq!(chosen(&[out, unseen]), Choice::Unseen);
        assert_eq!(chosen(&[full, unseen]), Choice::Full);
        assert_eq!(chosen(&[unseen, cooling]), Choice::Chosen(1));
    }

    #[test]
    fn who_has_the_model_loaded_is_better_until_there_is_a_queue() {
        let queue = LOADING as usize;
        for (warm, in_flight) in [0, 1]
            .into_iter()
            .flat_map(|warm| (0..9).map(move |n| (warm, n)))
        {
            let mut both = [PLAIN; 2];
            both[warm].in_flight = in_flight;
            let cold = 1 - warm;
            let chosen = choose(both.into_iter().enumerate(), |who| who == cold, 0);
            let expected = match in_flight.cmp(&queue) {
                Ordering::Less => warm,
                // In turns.
                Ordering::Equal => 0,
                Ordering::Greater => cold,
            };
            assert_eq!(chosen, Choice::Chosen(expected), "{warm} {in_flight}");
        }
    }

    #[test]
    fn whoever_is_not_considered_would_not_have_been_chosen() {
        let fits = [Fit::Listed, Fit::Unknown, Fit::NotListed];
        let mut all = Vec::new();
        for fit in fits {
            for (in_flight, turn) in (0..9).map(|n| (n / 3, [0, 3, 9][n % 3])) {
                all.extend([1, 2].map(|units| Candidate {
                    fit,
                    in_flight,
                    turn,
                    weight: units * WHOLE,
                    ..PLAIN
                }));
            }
        }
        let mut beaten = 0;
        for (first, second) in all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b))) {
            for cold in [false, true] {
                let mut choosing = Choosing::new(3);
                choosing.consider(1, first, |_| cold);
                let glance = Glance {
                    in_flight: second.in_flight as u64,
                    weight: second.weight,
                    turn: second.turn,
                };
                if choosing.is_beaten(second.fit, glance) {
                    beaten += 1;
                    choosing.consider(2, second, |_| false);
                    assert_eq!(choosing.chosen(), Choice::Chosen(1), "{first:?} {second:?}");
                }
            }
        }
        assert!(beaten > all.len());
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
        let cooling = Candidate {
            standing: Standing::Cooling,
            ..PLAIN
        };
        assert_eq!(chosen(&[out, cooling, ejected]), Choice::Chosen(1));
        assert_eq!(chosen(&[cooling, full]), Choice::Full);
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
                let Choice::Chosen(index) = choose(all.iter().copied().enumerate(), |_| false, now)
                else {
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
            let Choice::Chosen(index) = choose(candidates, |_| false, now) else {
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
            let Choice::Chosen(index) = choose(all.iter().copied().enumerate(), |_| false, now)
            else {
                panic!("one is ready");
            };
            (now, all[index].turn) = take_turn(all[index].turn, now, WHOLE);
            order.push(index);
        }
        let returned = order[10..].iter().filter(|&&index| index == 1).count();
        assert!((4..=6).contains(&returned), "{order:?}");
    }
}
