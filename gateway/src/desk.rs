//! Where places at backends are given out: to those who come, and before them to those who wait.
//!
//! Under one lock, so that a burst spreads out, and nobody takes a place that somebody before them
//! has waited for. Apart from the set of backends, which changes seldom, and from the rules of
//! choosing.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::oneshot;

use crate::backend::{Backend, Place, Usher, Waiting};
use crate::choose::{Choice, Standing, take_turn};
use crate::pick::{Tried, Wanted, pick};
use crate::queue::{Fits, Kind, Offer, Queue, TooLong};
use crate::roster::Roster;

/// Why there is no place for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Backends that might serve it are down, or have been tried.
    Unavailable,
    /// Backends that might serve it have as much as they may have.
    Full,
    /// Backends that might serve it have not been looked at yet, and no other might that is up.
    Unseen,
    /// No backend serves this model.
    NoSuchModel,
}

/// What a request is told.
pub(crate) type Told = Result<Place, NoPlace>;

/// What becomes of one that may wait.
pub(crate) enum Asked {
    Told(Told),
    Waits(Ticket),
}

pub(crate) struct Desk {
    roster: ArcSwap<Roster>,
    books: Mutex<Books>,
    /// As backends see it.
    waiting: Arc<Waiting>,
}

struct Books {
    /// The clock of turns.
    now: u64,
    queue: Queue<Waiter>,
}

/// When a request has come, beside others: where it is given to a backend in vain and waits again,
/// it still is before those that have come after it.
#[derive(Default)]
pub(crate) struct Arrival(Option<u64>);

/// A request that waits, and where it is told.
struct Waiter {
    need: Need,
    /// Until it is told.
    answer: Option<oneshot::Sender<Told>>,
}

/// What a request wants, for as long as it waits.
struct Need {
    model: Option<Box<str>>,
    strict: bool,
    affine: Option<Box<str>>,
    anchor: Option<u64>,
    home: Option<Arc<Backend>>,
    tried: Tried,
}

impl Need {
    fn of(wanted: &Wanted<'_>, tried: &Tried) -> Self {
        Self {
            model: wanted.model.map(Box::from),
            strict: wanted.strict,
            affine: wanted.affine.map(Box::from),
            anchor: wanted.anchor,
            home: wanted.home.cloned(),
            tried: tried.clone(),
        }
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            model: self.model.as_deref(),
            strict: self.strict,
            affine: self.affine.as_deref(),
            anchor: self.anchor,
            home: self.home.as_ref(),
        }
    }

    /// Whether it is as well served by this backend as by any: it has not been elsewhere, where it
    /// might go on.
    fn goes_on(&self, backend: &Arc<Backend>) -> bool {
        self.home
            .as_ref()
            .is_none_or(|home| Arc::ptr_eq(home, backend) || !home.is_up() || self.tried.has(home))
    }
}

impl Desk {
    /// With a queue of this length at most.
    pub(crate) fn new(queue: usize, waiting: Arc<Waiting>) -> Arc<Self> {
        let desk = Arc::new(Self {
            roster: ArcSwap::from_pointee(Roster::default()),
            books: Mutex::new(Books {
                now: 0,
                queue: Queue::new(queue),
            }),
            waiting,
        });
        let usher: Arc<dyn Usher> = Arc::<Self>::clone(&desk);
        desk.waiting.is_seen_to_by(Arc::downgrade(&usher));
        desk
    }

    /// Those that requests may go to.
    pub(crate) fn roster(&self) -> Guard<Arc<Roster>> {
        self.roster.load()
    }

    /// From now on, requests go to these.
    pub(crate) fn set_roster(&self, roster: Roster) {
        let mut books = self.books();
        self.roster.store(Arc::new(roster));
        let roster = self.roster.load();
        books.queue.refit(|who| fits(&roster, &who.need.wanted()));
        books.serve(&roster, None);
        self.count(&books);
    }

    /// How many wait for a place.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.count()
    }

    /// Takes a place at the backend that is [picked](pick), leaving out those that were `tried`.
    pub(crate) fn take(&self, wanted: &Wanted<'_>, tried: &Tried) -> Told {
        let mut books = self.books();
        let found = books.take(&self.roster.load(), wanted, tried);
        self.count(&books);
        found
    }

    /// The same, or else a ticket where all that fit are full, or may yet turn out to be up, and
    /// there is a queue.
    pub(crate) fn take_or_wait(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        tried: &Tried,
        arrival: &mut Arrival,
    ) -> Result<Asked, TooLong> {
        let mut books = self.books();
        let roster = self.roster.load();
        let came = arrival.0;
        let id = *arrival.0.get_or_insert_with(|| books.queue.number());
        let found = books.take(&roster, wanted, tried);
        let may_wait = matches!(found, Err(NoPlace::Full | NoPlace::Unseen));
        if !may_wait || books.queue.most() == 0 {
            self.count(&books);
            return Ok(Asked::Told(found));
        }
        if came.is_none() {
            books.queue.has_room()?;
        }
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter {
            need: Need::of(wanted, tried),
            answer: Some(answer),
        };
        let kind = (wanted.model, wanted.strict, wanted.affine, tried);
        let kind = books.queue.kind(kind);
        books.queue.join(kind, id, || fits(&roster, wanted), waiter);
        self.count(&books);
        // Who gave a place back before it saw anybody wait told nobody: what that left is seen here.
        fence(Ordering::SeqCst);
        if books.queue.len() == 1 {
            books.serve(&roster, None);
            self.count(&books);
        }
        Ok(Asked::Waits(Ticket {
            desk: Arc::clone(self),
            kind,
            id,
            answered,
            since: Instant::now(),
        }))
    }

    /// Tells the backends how many wait.
    fn count(&self, books: &Books) {
        let count = books.queue.len();
        if count != self.waiting.count() {
            self.waiting.set_count(count);
        }
    }

    /// No place may be dropped while this is held: that ends up here again.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usher for Desk {
    fn room_at(&self, backend: &Backend) {
        let mut books = self.books();
        let roster = self.roster.load();
        // One that is none any more serves nobody.
        if let Some(index) = roster.index(backend) {
            books.serve(&roster, Some(index));
            self.count(&books);
        }
    }

    fn changed(&self) {
        let mut books = self.books();
        books.serve(&self.roster.load(), None);
        self.count(&books);
    }
}

impl Books {
    fn take(&mut self, roster: &Roster, wanted: &Wanted<'_>, tried: &Tried) -> Told {
        loop {
            let chosen = match pick(roster, wanted, tried, self.now) {
                Choice::Chosen(backend) => backend,
                Choice::Full => return Err(NoPlace::Full),
                Choice::Unseen => return Err(NoPlace::Unseen),
                Choice::Nobody => return Err(nobody(roster, wanted)),
            };
            // It has come free just now, and those who waited for it have yet to be told.
            let others_first = self.queue.len() > 0 && {
                let index = roster.index(chosen);
                index.is_some_and(|at| self.queue.wants(at) && self.serve(roster, Some(at)) > 0)
            };
            if !others_first {
                return Ok(give(&mut self.now, chosen, wanted));
            }
        }
    }

    /// Gives places to those who wait: at this backend, or at any. Returns how many have gone.
    fn serve(&mut self, roster: &Roster, index: Option<usize>) -> usize {
        let is_full = || index.is_some_and(|at| roster.load(at).standing().0 >= Standing::Full);
        let goes_on = |waiter: &Waiter, at: usize| waiter.need.goes_on(&roster.members()[at]);
        let now = &mut self.now;
        self.queue.offer(index, goes_on, |waiter| {
            if is_full() {
                return Offer::Over;
            }
            let wanted = waiter.need.wanted();
            let told = match pick(roster, &wanted, &waiter.need.tried, *now) {
                Choice::Chosen(backend) => Ok(give(now, backend, &wanted)),
                Choice::Full | Choice::Unseen => return Offer::Nothing,
                Choice::Nobody => Err(nobody(roster, &wanted)),
            };
            // It is there to hear it: before it goes, it leaves the queue.
            if let Some(answer) = waiter.answer.take() {
                let _ = answer.send(told);
            }
            Offer::Taken
        })
    }
}

fn give(now: &mut u64, backend: &Arc<Backend>, wanted: &Wanted<'_>) -> Place {
    let load = backend.load();
    let (time, turn) = take_turn(load.turn(), *now, load.weight().0);
    *now = time;
    load.set_turn(turn);
    if let Some(model) = wanted.model.filter(|model| backend.loaded.lacks(model)) {
        backend.loaded.expect(model);
    }
    Place::take(Arc::clone(backend))
}

/// Where who wants this might ever be given a place.
fn fits(roster: &Roster, wanted: &Wanted<'_>) -> Fits {
    let mut fits = Fits::default();
    let eligible = roster.eligible(wanted.model, wanted.strict);
    eligible.for_each(|index, _| fits.add(index));
    fits
}

/// One that is down counts by what it listed last; one that listed nothing yet may serve it.
fn nobody(roster: &Roster, wanted: &Wanted<'_>) -> NoPlace {
    let served = !roster.eligible(wanted.model, wanted.strict).is_empty();
    // One that has not been looked at may serve it until it lists other models: then it is as good
    // as up.
    let is_known = |backend: &Arc<Backend>| backend.is_up() || backend.is_unseen();
    let any_known = || roster.members().iter().any(is_known);
    if served || !any_known() {
        NoPlace::Unavailable
    } else {
        NoPlace::NoSuchModel
    }
}

/// A place in the queue, given back when this is dropped.
pub(crate) struct Ticket {
    desk: Arc<Desk>,
    kind: Kind,
    id: u64,
    answered: oneshot::Receiver<Told>,
    pub(crate) since: Instant,
}

impl Ticket {
    /// Waits until there is a place, or never will be.
    pub(crate) async fn told(&mut self) -> Told {
        let told = (&mut self.answered).await;
        told.unwrap_or(Err(NoPlace::Unavailable))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut books = self.desk.books();
        books.queue.leave(self.kind, self.id);
        self.desk.count(&books);
        // A place that it was given and has not heard of is given back behind this, as it goes.
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use axum::http::HeaderValue;

    use llmlb_tests::PATIENCE;

    use super::*;
    use crate::backend::models::listing;
    use crate::backend::{Care, Slot, Trouble};
    use crate::options::Options;
    use crate::set::BackendSpec;

    /// Backends that list these models and take one request at a time. Where nobody `is_told`, their
    /// places come free as they do for an instant each time.
    fn desk(models: &[&[&str]], is_told: bool) -> Arc<Desk> {
        let care = Care::of(&Options::new(), 1, HeaderValue::from_static("1.1 test"));
        let backend = |(index, models): (usize, &&[&str])| {
            let spec = BackendSpec::new(format!("http://b{index}").parse().unwrap());
            let backend = Backend::new(spec.max(NonZeroUsize::new(1)), &care, Slot::default());
            backend.succeeded();
            backend.set_models(Some(listing(models)));
            Arc::new(backend)
        };
        let waiting = if is_told {
            Arc::clone(&care.waiting)
        } else {
            Arc::default()
        };
        let desk = Desk::new(9, waiting);
        desk.set_roster(Roster::new(
            models.iter().enumerate().map(backend).collect(),
        ));
        desk
    }

    fn wanted(model: &str) -> Wanted<'_> {
        Wanted {
            model: Some(model),
            strict: true,
            ..Wanted::default()
        }
    }

    fn asks(desk: &Arc<Desk>, model: &str) -> Asked {
        goes_on(desk, model, None)
    }

    /// With what began there.
    fn goes_on(desk: &Arc<Desk>, model: &str, home: Option<&Arc<Backend>>) -> Asked {
        let wanted = Wanted {
            home,
            anchor: home.map(|_| 7),
            ..wanted(model)
        };
        let mut arrival = Arrival::default();
        desk.take_or_wait(&wanted, &Tried::default(), &mut arrival)
            .unwrap()
    }

    fn place(asked: Asked) -> Place {
        match asked {
            Asked::Told(told) => told.expect("there is a place"),
            Asked::Waits(_) => panic!("it waits"),
        }
    }

    fn ticket(asked: Asked) -> Ticket {
        match asked {
            Asked::Told(_) => panic!("it does not wait"),
            Asked::Waits(ticket) => ticket,
        }
    }

    fn told(mut ticket: Ticket) -> Option<Place> {
        ticket.answered.try_recv().ok()?.ok()
    }

    fn name(place: &Place) -> &str {
        place.name.strip_prefix("http://").unwrap()
    }

    #[test]
    fn who_comes_takes_no_place_that_somebody_before_it_waits_for() {
        let desk = desk(&[&["a", "ab"], &["ab"]], false);
        let (first, _second) = (place(asks(&desk, "a")), place(asks(&desk, "ab")));
        let waiting = ticket(asks(&desk, "a"));
        drop(first);
        // It fits both, but that place is another's.
        let newcomer = ticket(asks(&desk, "ab"));
        assert_eq!(desk.waiting(), 1);
        let held = told(waiting).expect("it was told");
        assert_eq!(name(&held), "b0");
        drop(held);
        assert!(matches!(
            desk.take(&wanted("a"), &Tried::default()),
            Err(NoPlace::Full)
        ));
        assert_eq!(name(&told(newcomer).expect("it was told")), "b0");
    }

    #[test]
    fn who_goes_before_it_has_heard_of_its_place_gives_it_back() {
        let desk = desk(&[&["a"]], false);
        let first = place(asks(&desk, "a"));
        let [second, third] = ["a"; 2].map(|model| ticket(asks(&desk, model)));
        drop(first);
        desk.changed();
        assert_eq!(desk.waiting(), 1);
        drop(second);
        desk.changed();
        assert_eq!(desk.waiting(), 0);
        assert!(told(third).is_some());
        assert_eq!(name(&place(asks(&desk, "a"))), "b0");
    }

    #[test]
    fn who_goes_on_elsewhere_is_not_kept_from_its_turn_by_one_that_is_down() {
        for is_up in [true, false] {
            let desk = desk(&[&["a"], &["a"]], true);
            let held = ["a"; 2].map(|model| place(asks(&desk, model)));
            let [_busy, free] = held;
            let roster = desk.roster();
            let home = roster.members().iter().find(|one| one.name != free.name);
            let waits = ticket(goes_on(&desk, "a", home));
            let newcomer = ticket(asks(&desk, "a"));
            if !is_up {
                (0..3).for_each(|_| home.unwrap().failed(Trouble::new("gone")));
            }
            drop(free);
            assert_eq!(told(newcomer).is_some(), is_up);
            // As a ticket is dropped, so is the place that it has not heard of.
            assert!(told(waits).is_some());
        }
    }

    #[test]
    fn nobody_is_forgotten_where_all_come_and_go_at_once() {
        let desk = desk(&[&["a", "ab"], &["b", "ab"]], true);
        let comes = |seed: usize| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_time().build().unwrap();
            for number in (0..1000).map(|number| number + seed) {
                let place = match asks(&desk, ["a", "b", "ab"][number % 3]) {
                    Asked::Told(told) => told,
                    Asked::Waits(_) if number % 7 == 0 => continue,
                    Asked::Waits(mut ticket) => runtime.block_on(async {
                        let told = tokio::time::timeout(PATIENCE, ticket.told());
                        told.await.expect("it is told")
                    }),
                };
                assert!(place.is_ok());
                if number % 5 == 0 {
                    std::thread::yield_now();
                }
            }
        };
        std::thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || comes(seed));
            }
        });
        assert_eq!(desk.waiting(), 0);
        let roster = desk.roster();
        assert!(roster.members().iter().all(|one| one.in_flight() == 0));
    }
}
