//! The backends there are at this moment, and a request's way to one of them.
//!
//! A set that comes in is compared with what is there: backends that stay keep their state and
//! their connections, new ones wait for their first good look, and those that are gone finish what
//! they have.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::Guard;

use crate::backend::{Backend, Care, Place, Slot};
use crate::choose::Standing;
use crate::desk::{Arrival, Asked, Desk, Told};
use crate::outlier::{Others, is_outlier};
use crate::pick::{Tried, Wanted};
use crate::queue::TooLong;
use crate::roster::Roster;
use crate::set::BackendSet;

pub(crate) struct Live {
    care: Care,
    desk: Arc<Desk>,
    /// Those that are gone and may still have requests. Held while the set changes.
    retired: Mutex<Vec<Arc<Backend>>>,
}

/// What a new set has changed.
pub(crate) struct Change {
    pub(crate) added: Vec<Arc<Backend>>,
    pub(crate) removed: Vec<Arc<Backend>>,
}

impl Live {
    /// Without any, and with a queue of this length at most.
    pub(crate) fn new(care: Care, queue: usize) -> Self {
        Self {
            desk: Desk::new(queue, Arc::clone(&care.waiting)),
            care,
            retired: Mutex::default(),
        }
    }

    /// Those that requests may go to.
    pub(crate) fn roster(&self) -> Guard<Arc<Roster>> {
        self.desk.roster()
    }

    /// Those that requests may go to, and then those that are gone but not yet done.
    pub(crate) fn all(&self) -> Vec<Arc<Backend>> {
        let mut retired = self.retired();
        retired.retain(|backend| backend.in_flight() > 0);
        let roster = self.roster();
        let all = roster.members().iter().chain(&*retired);
        all.cloned().collect()
    }

    /// Makes these the backends.
    pub(crate) fn apply(&self, set: &BackendSet) -> Change {
        let mut retired = self.retired();
        let roster = self.roster();
        let by_name = |backend: &Arc<Backend>| (backend.name.clone(), Arc::clone(backend));
        let mut before: HashMap<String, _> = roster.members().iter().map(by_name).collect();
        let mut leaving: HashMap<String, _> = retired.drain(..).map(|b| by_name(&b)).collect();
        let mut added = Vec::new();
        // There is nobody to take its place meanwhile.
        let is_first = before.is_empty();
        // Those that come together lie side by side.
        let is_known = |name: &String| before.contains_key(name) || leaving.contains_key(name);
        let names = set.iter().map(|spec| spec.url.to_string());
        let mut slots = Slot::row(names.filter(|name| !is_known(name)).count());
        let mut member = |spec: &crate::set::BackendSpec| {
            let name = spec.url.to_string();
            let stays = before.remove(&name);
            let is_new = stays.is_none();
            let backend = match stays.or_else(|| leaving.remove(&name)) {
                Some(backend) => {
                    backend.instruct(spec.clone());
                    backend
                }
                None => {
                    let slot = slots.next().unwrap_or_default();
                    Arc::new(Backend::new(spec.clone(), &self.care, slot))
                }
            };
            if is_new {
                if !is_first {
                    backend.start_slowly();
                }
                added.push(Arc::clone(&backend));
            }
            backend
        };
        let members: Vec<_> = set.iter().map(&mut member).collect();
        let removed: Vec<_> = before.into_values().collect();
        for backend in &removed {
            backend.retire();
        }
        let still = removed.iter().cloned().chain(leaving.into_values());
        *retired = still.filter(|backend| backend.in_flight() > 0).collect();
        self.desk.set_roster(Roster::new(members));
        Change { added, removed }
    }

    /// To be called when a backend lists other models than before.
    pub(crate) fn relist(&self) {
        let _retired = self.retired();
        let members = self.roster().members().to_vec();
        self.desk.set_roster(Roster::new(members));
    }

    /// Takes a place at the backend that is picked, leaving out those that were `tried`.
    pub(crate) fn take(&self, wanted: &Wanted<'_>, tried: &Tried) -> Told {
        self.desk.take(wanted, tried)
    }

    /// The same, or else a ticket where all that fit are full and there is a queue.
    pub(crate) fn take_or_wait(
        &self,
        wanted: &Wanted<'_>,
        tried: &Tried,
        arrival: &mut Arrival,
    ) -> Result<Asked, TooLong> {
        self.desk.take_or_wait(wanted, tried, arrival)
    }

    /// Without a place, where no other takes one away by it.
    pub(crate) fn aside(&self, wanted: &Wanted<'_>, tried: &Tried) -> Told {
        self.desk.aside(wanted, tried)
    }

    /// How many wait for a place.
    pub(crate) fn waiting(&self) -> usize {
        self.desk.waiting()
    }

    /// A request failed at its backend for this reason, which others may do better. Returns whether
    /// the backend is ejected for that.
    pub(crate) fn failed(&self, place: &mut Place, problem: &str) -> bool {
        let Some(on_trial) = place.failed(problem) else {
            return false;
        };
        let others = self.others(place);
        let record = place.request_failed(others.good);
        on_trial || (is_outlier(record, &others) && place.eject(problem))
    }

    /// How those do that are up beside this one.
    fn others(&self, one: &Arc<Backend>) -> Others {
        let roster = self.roster();
        let mut others = Others::default();
        let members = roster.members().iter();
        for backend in members.filter(|backend| !Arc::ptr_eq(backend, one)) {
            others.good += backend.good_answers();
            match backend.load().standing().0 {
                Standing::Out | Standing::Unseen => continue,
                _ if backend.is_ejected() => others.ejected += 1,
                _ => {
                    others.serving += 1;
                    let share = backend.failure_share();
                    others.best = Some(others.best.map_or(share, |best| share.min(best)));
                }
            }
        }
        others
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Arc<Backend>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroUsize};
    use std::time::Duration;

    use axum::http::HeaderValue;
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::backend::models::listing;
    use crate::backend::{State, Trouble};
    use crate::desk::NoPlace;
    use crate::options::Options;
    use crate::set::BackendSpec;

    const FALL: u32 = 3;

    fn new() -> Live {
        let options = Options::new().health_fall(FALL);
        Live::new(
            Care::of(&options, 1, HeaderValue::from_static("1.1 test")),
            512,
        )
    }

    fn spec(name: &str) -> BackendSpec {
        BackendSpec::new(format!("http://{name}").parse().unwrap())
    }

    fn set(names: &[&str]) -> BackendSet {
        names.iter().map(|name| spec(name)).collect()
    }

    /// b0, b1, ... are up and list these models.
    fn serving(models: &[Option<&[&str]>]) -> Live {
        let live = new();
        let specs = (0..models.len()).map(|index| spec(&format!("b{index}")));
        let change = live.apply(&specs.collect());
        for (backend, models) in change.added.iter().zip(models) {
            backend.succeeded();
            backend.set_models(models.map(listing));
        }
        live.relist();
        live
    }

    fn take(
        live: &Live,
        model: &str,
        strict: bool,
        tried: &[Arc<Backend>],
    ) -> Result<Place, NoPlace> {
        let mut all = Tried::default();
        tried.iter().cloned().for_each(|backend| all.add(backend));
        let wanted = Wanted {
            model: Some(model),
            strict,
            ..Wanted::default()
        };
        live.take(&wanted, &all)
    }

    fn any(live: &Live) -> Place {
        live.take(&Wanted::default(), &Tried::default())
            .ok()
            .unwrap()
    }

    fn name(backend: &Backend) -> &str {
        backend.name.strip_prefix("http://").unwrap()
    }

    fn names(backends: &[Arc<Backend>]) -> Vec<&str> {
        backends.iter().map(|b| name(b)).collect()
    }

    #[test]
    fn the_least_loaded_is_chosen_and_equals_take_turns() {
        let live = serving(&[None, None, None]);
        let places: Vec<_> = (0..3).map(|_| any(&live)).collect();
        let order: Vec<_> = places.iter().map(|place| name(place)).collect();
        assert_eq!(order, ["b0", "b1", "b2"]);
        let [first, second, _third]: [Place; 3] = places.try_into().ok().unwrap();
        drop(second);
        let again = any(&live);
        assert_eq!(name(&again), "b1");
        drop((first, again));
        // Though all in flight are gone, the turn goes on.
        let counted: Vec<_> = (0..2).map(|_| name(&any(&live)).to_owned()).collect();
        assert_eq!(counted, ["b0", "b1"]);
    }

    #[test]
    fn a_model_goes_where_it_is_listed_else_where_it_may_be() {
        let live = serving(&[Some(&["a"]), Some(&["b:latest"]), None]);
        let took =
            |model, tried: &[_]| name(&take(&live, model, true, tried).ok().unwrap()).to_owned();
        for _ in 0..3 {
            assert_eq!(took("a", &[]), "b0");
            assert_eq!(took("b", &[]), "b1");
            assert_eq!(took("b:latest", &[]), "b1");
            assert_eq!(took("c", &[]), "b2");
        }
        let tried = [Arc::clone(&live.all()[0])];
        assert_eq!(took("a", &tried), "b2");
    }

    #[test]
    fn a_model_nobody_serves_is_told_from_one_that_is_down() {
        let live = serving(&[Some(&["a"]), Some(&["b"])]);
        let problem = |model, strict| take(&live, model, strict, &[]).err();
        assert_eq!(problem("c", true), Some(NoPlace::NoSuchModel));
        assert_eq!(problem("c", false), None);
        for _ in 0..FALL {
            assert_eq!(problem("a", true), None);
            live.all()[0].failed(Trouble::new("gone"));
        }
        assert_eq!(problem("a", true), Some(NoPlace::Unavailable));
        assert_eq!(problem("c", true), Some(NoPlace::NoSuchModel));
        let tried = [Arc::clone(&live.all()[1])];
        let none = take(&live, "b", true, &tried).err();
        assert_eq!(none, Some(NoPlace::Unavailable));
        assert_eq!(
            take(&live, "c", false, &tried).err(),
            Some(NoPlace::Unavailable)
        );
    }

    #[test]
    fn what_follows_up_goes_to_who_began() {
        let live = serving(&[None, None]);
        let wanted = Wanted {
            affine: Some("http://b1"),
            ..Wanted::default()
        };
        let places: Vec<_> = (0..3)
            .map(|_| live.take(&wanted, &Tried::default()).ok().unwrap())
            .collect();
        assert!(places.iter().all(|place| name(place) == "b1"));
    }

    #[test]
    fn weights_and_limits_hold_and_change_at_once() {
        let live = serving(&[None, None]);
        let heavy = spec("b0").weight(NonZeroU32::new(3).unwrap());
        live.apply(&[heavy.clone(), spec("b1")].into_iter().collect());
        let mut places: Vec<_> = (0..8).map(|_| any(&live)).collect();
        let all = live.all();
        assert_eq!((all[0].in_flight(), all[1].in_flight()), (6, 2));
        let limited = [
            heavy.max(NonZeroUsize::new(6)),
            spec("b1").max(NonZeroUsize::new(3)),
        ];
        live.apply(&limited.into_iter().collect());
        places.push(any(&live));
        assert_eq!((all[0].in_flight(), all[1].in_flight()), (6, 3));
        assert_eq!(
            live.take(&Wanted::default(), &Tried::default()).err(),
            Some(NoPlace::Full)
        );
        places.pop();
        assert_eq!(name(&any(&live)), "b1");
    }

    #[tokio::test]
    async fn whatever_is_known_of_one_its_limit_holds() {
        for ejected in [false, true] {
            let live = serving(&[None]);
            let limited = spec("b0").max(NonZeroUsize::new(1));
            live.apply(&[limited].into_iter().collect());
            if ejected {
                live.all()[0].eject("broken");
            } else {
                live.all()[0].cool(Duration::from_secs(60));
            }
            let _place = any(&live);
            let more = live.take(&Wanted::default(), &Tried::default());
            assert_eq!(more.err(), Some(NoPlace::Full), "{ejected}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_enough_is_spared_for_the_longest_time_that_it_says() {
        let live = serving(&[None]);
        let one = &live.all()[0];
        let is_spared = || one.load().standing().0 == Standing::Cooling;
        for said in [&[1, 30][..], &[30, 1], &[1, 30, 20]] {
            for seconds in said {
                one.cool(Duration::from_secs(*seconds));
                sleep(Duration::from_millis(400)).await;
            }
            sleep(Duration::from_secs(28)).await;
            assert!(is_spared(), "{said:?}");
            sleep(Duration::from_secs(3)).await;
            assert!(!is_spared(), "{said:?}");
        }
    }

    /// How many of these many requests each is given, one after the other or all in flight.
    fn shares(live: &Live, requests: usize, stay: bool) -> Vec<usize> {
        let all = live.all();
        let mut counts = vec![0; all.len()];
        let mut places = Vec::new();
        for _ in 0..requests {
            let place = any(live);
            let index = all.iter().position(|one| Arc::ptr_eq(one, &place));
            counts[index.unwrap()] += 1;
            places.extend(stay.then_some(place));
        }
        counts
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_just_come_starts_slowly_and_the_first_ones_do_not() {
        for stay in [false, true] {
            let live = serving(&[None, None]);
            assert_eq!(shares(&live, 20, stay), [10, 10]);
            let change = live.apply(&set(&["b0", "b1", "b2"]));
            advance(Duration::from_secs(60)).await;
            change.added[0].succeeded();
            // A tenth of what each of the others is given, then a bit more than half.
            let counts = shares(&live, 210, stay);
            assert!((9..=12).contains(&counts[2]), "{counts:?}");
            advance(Duration::from_secs(5)).await;
            let counts = shares(&live, 255, stay);
            assert!((45..=58).contains(&counts[2]), "{counts:?}");
            advance(Duration::from_secs(5)).await;
            let counts = shares(&live, 300, stay);
            assert!((96..=102).contains(&counts[2]), "{counts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_one_at_a_time_is_given_no_more_than_its_share_for_that() {
        let live = serving(&[None, None]);
        let _others: Vec<_> = (0..4).map(|_| any(&live)).collect();
        live.apply(&set(&["b0", "b1", "b2"])).added[0].succeeded();
        let counts = shares(&live, 210, false);
        assert!((9..=12).contains(&counts[2]), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_returns_starts_slowly() {
        for ejected in [false, true] {
            let live = serving(&[None, None]);
            let all = live.all();
            if ejected {
                all[1].eject("broken");
                advance(Duration::from_secs(60)).await;
                all[1].succeeded();
                // One of them is the trial.
                for _ in 0..4 {
                    any(&live).succeeded();
                }
            } else {
                for _ in 0..FALL {
                    all[1].failed(Trouble::new("gone"));
                }
                all[1].succeeded();
                all[1].succeeded();
            }
            assert_eq!(all[1].load().standing().0, Standing::Ready);
            let counts = shares(&live, 110, false);
            assert!((9..=12).contains(&counts[1]), "{counts:?}");
        }
    }

    #[test]
    fn who_stays_is_the_same_who_comes_waits_and_who_goes_finishes() {
        let live = serving(&[Some(&["a"]), None]);
        let before = live.all();
        let place = take(&live, "a", true, &[]).ok().unwrap();
        assert_eq!(name(&place), "b0");

        let change = live.apply(&set(&["b1", "b2"]));
        assert_eq!(
            (names(&change.added), names(&change.removed)),
            (vec!["b2"], vec!["b0"])
        );
        assert_eq!(
            names(&live.all()),
            ["b1", "b2", "b0"],
            "gone, but not yet done"
        );
        assert!(Arc::ptr_eq(&live.all()[0], &before[1]));
        assert!(place.is_retired() && place.in_flight() == 1);
        for _ in 0..3 {
            assert_eq!(name(&take(&live, "a", true, &[]).ok().unwrap()), "b1");
        }
        live.all()[1].succeeded();
        let chosen = [any(&live), any(&live)];
        assert!(chosen.iter().any(|place| name(place) == "b2"));

        // It comes back while it finishes, and is who it was.
        let change = live.apply(&set(&["b0"]));
        assert_eq!(names(&change.added), ["b0"]);
        assert!(Arc::ptr_eq(&live.all()[0], &before[0]));
        assert_eq!(
            (before[0].state().0, before[0].is_retired()),
            (State::Up, false)
        );
        drop((place, chosen));
        live.apply(&BackendSet::default());
        assert!(live.all().is_empty());
        assert_eq!(
            live.take(&Wanted::default(), &Tried::default()).err(),
            Some(NoPlace::Unavailable)
        );
    }
}
