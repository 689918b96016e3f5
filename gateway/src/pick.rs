//! Picks a backend of the roster for a request: joins what the request wants to what is known of each.
//!
//! Apart from the judgement, which knows neither requests nor backends, and from the places that are
//! taken there.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::affinity::suits;
use crate::backend::{Backend, Load};
use crate::choose::{Bound, Candidate, Choice, Choosing, Fit, Standing};
use crate::roster::{Eligible, Roster};

/// What a request asks of a backend.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) model: Option<&'a str>,
    /// Only who may serve the model will do.
    pub(crate) strict: bool,
    /// The name of the backend that made what this follows up on.
    pub(crate) affine: Option<&'a str>,
    /// The anchor of what this goes on with, and where that was before.
    pub(crate) anchor: Option<u64>,
    pub(crate) home: Option<&'a Arc<Backend>>,
}

/// The backends that a request has been given to in vain.
#[derive(Clone, Default)]
pub(crate) struct Tried {
    who: Vec<Arc<Backend>>,
    /// One of them answered that it has enough: only who is likely to be better will do.
    pub(crate) turned_away: bool,
}

/// By whom it has: what it may yet be given to depends on nothing else.
impl Hash for Tried {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.turned_away.hash(hasher);
        let mut who: Vec<_> = self.who.iter().map(Arc::as_ptr).collect();
        who.sort_unstable();
        who.hash(hasher);
    }
}

impl Tried {
    pub(crate) fn add(&mut self, backend: Arc<Backend>) {
        self.who.push(backend);
    }

    pub(crate) fn has(&self, backend: &Arc<Backend>) -> bool {
        self.who.iter().any(|tried| Arc::ptr_eq(tried, backend))
    }

    fn standing(&self, backend: &Arc<Backend>, load: &Load) -> (Standing, usize) {
        let (standing, burden) = load.standing();
        let spared = matches!(standing, Standing::Cooling | Standing::Ejected);
        let out = (spared && self.turned_away) || self.has(backend);
        (if out { Standing::Out } else { standing }, burden)
    }
}

/// The one to take, leaving out those that were `tried`.
pub(crate) fn pick<'a>(
    roster: &'a Roster,
    wanted: &Wanted<'_>,
    tried: &Tried,
    now: u64,
) -> Choice<&'a Arc<Backend>> {
    let mut choosing = Choosing::new(now);
    let consider = |choosing: &mut Choosing<_>, index: usize, fit| {
        let backend = &roster.members()[index];
        let candidate = candidate(backend, roster.load(index), fit, tried, now);
        choosing.consider(backend, candidate, |backend| {
            let model = wanted.model;
            model.is_some_and(|model| backend.loaded.lacks(model))
        });
    };
    let eligible = roster.eligible(wanted.model, wanted.strict);
    match maker(roster, eligible, wanted, tried) {
        // No other will do.
        Some(maker) => consider(&mut choosing, maker, Fit::Listed),
        None => eligible.for_each(|index, fit| {
            let glance = roster.load(index).glance();
            if !glance.is_some_and(|glance| choosing.is_beaten(fit, glance)) {
                consider(&mut choosing, index, fit);
            }
        }),
    }
    let home = match (wanted.anchor, choosing.bound()) {
        (Some(anchor), Some(bound)) => home(roster, eligible, wanted, tried, anchor, bound),
        _ => None,
    };
    match home {
        Some(home) => Choice::Chosen(&roster.members()[home]),
        None => choosing.chosen(),
    }
}

/// Where the conversation goes on if that is within the bound; where it was, or else whom it suits
/// best.
fn home(
    roster: &Roster,
    eligible: Eligible<'_>,
    wanted: &Wanted<'_>,
    tried: &Tried,
    anchor: u64,
    bound: Bound,
) -> Option<usize> {
    let members = roster.members();
    let admits = |index: usize| {
        let glance = roster.load(index).glance();
        glance.is_some_and(|glance| bound.admits(glance))
    };
    let home = match wanted.home {
        Some(home) => {
            let index = members.iter().position(|one| Arc::ptr_eq(one, home))?;
            (eligible.fit(index) == Some(bound.fit) && admits(index)).then_some(index)?
        }
        None => {
            let mut best = None;
            eligible.for_each(|index, fit| {
                let suits = suits(anchor, roster.seed(index));
                // How busy it is takes longer to tell, and few suit better than all before them.
                let is_better = best.is_none_or(|(most, _)| suits > most);
                if is_better && fit == bound.fit && admits(index) {
                    best = Some((suits, index));
                }
            });
            best?.1
        }
    };
    let one = &members[home];
    let is_cold = wanted.model.is_some_and(|model| one.loaded.lacks(model));
    (bound.admits_cold(is_cold) && !tried.has(one)).then_some(home)
}

/// Who made what this follows up on, if it is there.
fn maker(
    roster: &Roster,
    eligible: Eligible<'_>,
    wanted: &Wanted<'_>,
    tried: &Tried,
) -> Option<usize> {
    let name = wanted.affine?;
    let members = roster.members();
    let index = members.iter().position(|backend| backend.name == name)?;
    let maker = &members[index];
    (eligible.has(index) && maker.is_up() && !tried.has(maker)).then_some(index)
}

/// Not inlined where a look at each of many is to be short.
#[inline(never)]
fn candidate(backend: &Arc<Backend>, load: &Load, fit: Fit, tried: &Tried, now: u64) -> Candidate {
    let (standing, in_flight) = tried.standing(backend, load);
    let (weight, grows) = load.weight();
    let turn = load.turn();
    // Else one that has none in flight would be given each next one, however small its share.
    let early = grows && turn > now;
    Candidate {
        fit,
        standing,
        in_flight: in_flight + usize::from(early),
        loading: 0,
        weight,
        turn,
    }
}
