//! The queue before backends that have as many requests as they may: first come, first served, by
//! whichever backend fits first. Only of those who wait for the same may one that goes on at a
//! backend be served there before others that go on elsewhere, and before each of them but a few
//! times.
//!
//! Apart from choosing, as of backends it knows nothing but their places in the roster: it keeps the
//! order. All who wait for the same (the same model, say) are of one kind and stand in one line, so
//! that where there is nothing for the first of them, nobody asks for the others.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use tokio::time::Instant;

/// Of the measured time between two that are served, this share is the newest one's.
const NEWEST: f64 = 0.1;

/// How many of a line are looked at for one that goes on at the backend that has come free.
const LOOKS: usize = 64;

/// For each backend that fits, others may go before the first one so many times: about as often as
/// its own is likely to come free meanwhile.
const PASSES: u32 = 2;

/// The longest time after which to come again, as who waits may leave at any moment.
const LONGEST: Duration = Duration::from_secs(60);

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kind(u64);

/// Which backends may serve a kind, by their places in the roster.
#[derive(Debug, Default)]
pub(crate) struct Fits(Vec<u64>);

impl Fits {
    pub(crate) fn add(&mut self, index: usize) {
        let word = index / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (index % 64);
    }

    pub(crate) fn has(&self, index: usize) -> bool {
        let word = self.0.get(index / 64);
        word.is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// What becomes of an offer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Who was offered it has gone with it.
    Taken,
    /// There is nothing for this one, nor for those behind it in its line.
    Nothing,
    /// There is nothing for anybody.
    Over,
}

#[derive(Debug)]
pub(crate) struct Queue<W> {
    most: usize,
    len: usize,
    next: u64,
    /// Each by the number of its first one.
    lines: BTreeMap<u64, Line<W>>,
    firsts: HashMap<Kind, u64>,
    hasher: RandomState,
    pace: Pace,
}

#[derive(Debug)]
struct Line<W> {
    kind: Kind,
    fits: Fits,
    /// Never empty.
    waiting: VecDeque<Waits<W>>,
}

#[derive(Debug)]
struct Waits<W> {
    id: u64,
    who: W,
    /// How many that came after it have been served before it.
    passed: u32,
}

impl<W> Line<W> {
    /// Who is next where a backend has come free: the first one, or else one that came before
    /// `others`, and `goes_on` there.
    fn next(&self, others: impl FnOnce() -> Option<u64>, goes_on: impl Fn(&W) -> bool) -> usize {
        let most = PASSES * self.fits.count();
        let is_due = |first: &Waits<W>| first.passed >= most || goes_on(&first.who);
        if self.waiting.front().is_none_or(is_due) {
            return 0;
        }
        let others = others();
        let mut before = (self.waiting.iter().take(LOOKS))
            .take_while(|one| others.is_none_or(|other| one.id < other));
        before.position(|one| goes_on(&one.who)).unwrap_or(0)
    }
}

/// How fast those who wait are served.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    seconds: Option<f64>,
}

/// The queue has as many as it may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    /// When all who wait now are likely to be served.
    pub(crate) retry_after: Duration,
}

impl<W> Queue<W> {
    /// For so many.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            len: 0,
            next: 0,
            lines: BTreeMap::new(),
            firsts: HashMap::new(),
            hasher: RandomState::new(),
            pace: Pace::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn kind(&self, what: impl Hash) -> Kind {
        Kind(self.hasher.hash_one(what))
    }

    /// The number of one that comes now.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether it has room for one more.
    pub(crate) fn has_room(&self) -> Result<(), TooLong> {
        if self.len < self.most {
            return Ok(());
        }
        let retry_after = self.pace.time_for(self.len + 1);
        Err(TooLong { retry_after })
    }

    /// Waits behind those with lower numbers, whether there is room or not.
    pub(crate) fn join(&mut self, kind: Kind, id: u64, fits: impl FnOnce() -> Fits, who: W) {
        self.len += 1;
        let mut first = *self.firsts.entry(kind).or_insert(id);
        if id < first {
            // It was here before.
            if let Some(line) = self.lines.remove(&first) {
                self.lines.insert(id, line);
            }
            self.firsts.insert(kind, id);
            first = id;
        }
        let line = self.lines.entry(first).or_insert_with(|| Line {
            kind,
            fits: fits(),
            waiting: VecDeque::new(),
        });
        let at = line.waiting.partition_point(|other| other.id < id);
        let passed = 0;
        line.waiting.insert(at, Waits { id, who, passed });
    }

    /// Whether anybody waits for this backend.
    pub(crate) fn wants(&self, index: usize) -> bool {
        self.lines.values().any(|line| line.fits.has(index))
    }

    /// Makes offers in the order in which they came, to the next of each line for whom this backend
    /// fits (any, if none is named), as long as there is something left. Returns how many took one.
    pub(crate) fn offer(
        &mut self,
        index: Option<usize>,
        goes_on: impl Fn(&W, usize) -> bool,
        mut offer: impl FnMut(&mut W) -> Offer,
    ) -> usize {
        let mut from = 0;
        let mut taken = 0;
        loop {
            let mut lines = self.lines.range_mut(from..);
            let fits = |line: &Line<W>| index.is_none_or(|index| line.fits.has(index));
            let Some((&first, line)) = lines.find(|(_, line)| fits(line)) else {
                return taken;
            };
            let next = index.map_or(0, |index| {
                let others = || lines.find(|(_, line)| fits(line)).map(|(&first, _)| first);
                line.next(others, |who| goes_on(who, index))
            });
            match line.waiting.get_mut(next).map(|one| offer(&mut one.who)) {
                Some(Offer::Taken) => {
                    self.pace.tick(Instant::now());
                    self.take(first, next);
                    taken += 1;
                    // Whoever is its first now may be offered the next place.
                    from = first;
                }
                Some(Offer::Over) => return taken,
                Some(Offer::Nothing) | None => from = first + 1,
            }
        }
    }

    /// Who waits under this number does so no more.
    pub(crate) fn leave(&mut self, kind: Kind, id: u64) {
        let Some(&first) = self.firsts.get(&kind) else {
            return;
        };
        let Some(line) = self.lines.get(&first) else {
            return;
        };
        if let Ok(at) = line.waiting.binary_search_by_key(&id, |one| one.id) {
            self.remove(first, at);
        }
    }

    /// The backends are others, or in other places.
    pub(crate) fn refit(&mut self, fits: impl Fn(&W) -> Fits) {
        for line in self.lines.values_mut() {
            if let Some(one) = line.waiting.front() {
                line.fits = fits(&one.who);
            }
        }
    }

    /// One has been served, before those of its line that came before it.
    fn take(&mut self, first: u64, at: usize) {
        if let Some(line) = self.lines.get_mut(&first) {
            for passed in line.waiting.iter_mut().take(at) {
                passed.passed += 1;
            }
        }
        self.remove(first, at);
    }

    /// One of this line goes; where it is the first, the next one is that.
    fn remove(&mut self, first: u64, at: usize) {
        let Some(line) = self.lines.get_mut(&first) else {
            return;
        };
        line.waiting.remove(at);
        self.one_less();
        if at > 0 {
            return;
        }
        let Some(line) = self.lines.remove(&first) else {
            return;
        };
        match line.waiting.front() {
            Some(next) => {
                self.firsts.insert(line.kind, next.id);
                self.lines.insert(next.id, line);
            }
            None => {
                self.firsts.remove(&line.kind);
            }
        }
    }

    fn one_less(&mut self) {
        self.len -= 1;
        if self.len == 0 {
            self.pace.pause();
        }
    }
}

impl Pace {
    /// One is served, and others wait.
    fn tick(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let new = now.duration_since(last).as_secs_f64();
            let old = self.seconds.unwrap_or(new);
            self.seconds = Some(old + (new - old) * NEWEST);
        }
    }

    /// Nobody waits: how long that lasts says nothing.
    fn pause(&mut self) {
        self.last = None;
    }

    /// None, as long as nothing is known.
    fn time_for(&self, count: usize) -> Duration {
        let one = self.seconds.unwrap_or_default();
        let all = Duration::try_from_secs_f64(one * count as f64);
        all.unwrap_or(LONGEST).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Of kinds that fit these backends.
    fn queue(
        most: usize,
        names: &[(&'static str, &str, &[usize])],
    ) -> (Queue<&'static str>, Vec<u64>) {
        let mut queue = Queue::new(most);
        let join = |(name, kind, fits): &(&'static str, &str, &[usize])| {
            let kind = queue.kind(kind);
            let id = queue.number();
            queue.join(kind, id, || of(fits), *name);
            id
        };
        let ids = names.iter().map(join).collect();
        (queue, ids)
    }

    fn of(indices: &[usize]) -> Fits {
        let mut fits = Fits::default();
        indices.iter().for_each(|index| fits.add(*index));
        fits
    }

    /// Who is asked, and in which order, if there are so many places.
    fn asked(
        queue: &mut Queue<&'static str>,
        index: Option<usize>,
        places: usize,
    ) -> Vec<&'static str> {
        let mut asked = Vec::new();
        let goes_on = |name: &&str, index| name.starts_with(&format!("at{index} "));
        queue.offer(index, goes_on, |name| {
            asked.push(*name);
            if asked.len() <= places {
                Offer::Taken
            } else {
                Offer::Nothing
            }
        });
        asked
    }

    #[test]
    fn who_goes_on_at_a_backend_goes_before_others_but_not_again_and_again() {
        let both = &[0, 1][..];
        let mut all = vec![("at0 first", "a", both), ("at2", "a", both)];
        all.extend([("at1 a", "a", both); 9]);
        all.push(("at0 last", "a", both));
        let (mut queue, ids) = queue(20, &all);
        let one = |queue: &mut Queue<_>, index| asked(queue, index, 1)[0];
        // Where it does not matter, and where it goes on itself, the first.
        assert_eq!(asked(&mut queue, None, 0), ["at0 first"]);
        assert_eq!(asked(&mut queue, Some(0), 0), ["at0 first"]);
        for _ in 0..4 {
            assert_eq!(one(&mut queue, Some(1)), "at1 a");
        }
        // It was passed over as often as may be, and so was the next one.
        assert_eq!(one(&mut queue, Some(1)), "at0 first");
        assert_eq!(one(&mut queue, Some(0)), "at2");
        // Those have not been passed over yet.
        assert_eq!(one(&mut queue, Some(0)), "at0 last");
        queue.leave(queue.kind("a"), ids[6]);
        assert_eq!(asked(&mut queue, Some(0), 9), ["at1 a"; 4]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn nobody_goes_before_those_who_wait_for_something_else() {
        let all: &[_] = &[
            ("at1 a", "a", &[0, 1][..]),
            ("b", "b", &[0, 1]),
            ("at0 a", "a", &[0, 1]),
            ("c", "c", &[1]),
        ];
        let (mut queue, _) = queue(9, all);
        assert_eq!(asked(&mut queue, Some(0), 9), ["at1 a", "b", "at0 a"]);
        // Those who wait for another backend lose nothing.
        let (mut queue, _) = self::queue(9, &[all[0], all[3], all[2], all[1]]);
        assert_eq!(asked(&mut queue, Some(0), 9), ["at0 a", "at1 a", "b"]);
    }

    #[test]
    fn the_first_is_asked_and_then_the_first_of_the_next_kind() {
        let all: &[_] = &[
            ("a1", "a", &[0][..]),
            ("a2", "a", &[0]),
            ("b1", "b", &[0, 200]),
            ("a3", "a", &[0]),
            ("c1", "c", &[200]),
        ];
        let (mut queue, ids) = queue(8, all);
        assert_eq!(asked(&mut queue, None, 0), ["a1", "b1", "c1"]);
        assert_eq!(asked(&mut queue, Some(200), 0), ["b1", "c1"]);
        assert_eq!(asked(&mut queue, Some(1), 9), [""; 0]);
        assert!(queue.wants(0) && queue.wants(200) && !queue.wants(1) && !queue.wants(201));
        // In the order in which they came, whatever they wait for.
        assert_eq!(asked(&mut queue, Some(0), 2), ["a1", "a2", "b1", "a3"]);
        queue.leave(queue.kind("b"), ids[2]);
        assert_eq!(asked(&mut queue, None, 0), ["a3", "c1"]);
        assert_eq!(asked(&mut queue, None, 9), ["a3", "c1"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn who_leaves_is_not_asked_wherever_it_stood() {
        let line: &[_] = &[("1", "a", &[][..]), ("2", "a", &[]), ("3", "a", &[])];
        for left in 0..3 {
            let (mut queue, ids) = queue(3, line);
            let kind = queue.kind("a");
            queue.leave(kind, ids[left]);
            queue.leave(kind, ids[left]);
            let names: Vec<_> = line.iter().map(|(name, ..)| *name).collect();
            let stay: Vec<_> = { names }
                .into_iter()
                .filter(|name| *name != line[left].0)
                .collect();
            assert_eq!(queue.len(), 2);
            assert_eq!(asked(&mut queue, None, 9), stay);
        }
    }

    #[test]
    fn who_comes_back_stands_where_it_stood() {
        let line: &[_] = &[
            ("a1", "a", &[0][..]),
            ("a2", "a", &[0]),
            ("b1", "b", &[0]),
            ("a3", "a", &[0]),
        ];
        let (mut queue, ids) = queue(9, line);
        assert_eq!(asked(&mut queue, None, 3), ["a1", "a2", "b1", "a3"]);
        // In a line of its own, and then before and in the midst of those of its kind.
        for (kind, id) in [("c", 2), ("a", 1), ("a", 0)] {
            let kind = queue.kind(kind);
            queue.join(kind, ids[id], || of(&[0]), line[id].0);
        }
        assert_eq!(asked(&mut queue, None, 0), ["a1", "b1"]);
        queue.leave(queue.kind("a"), ids[1]);
        assert_eq!(asked(&mut queue, Some(0), 9), ["a1", "b1", "a3"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn it_has_an_end_and_tells_when_to_come_again() {
        let (full, _) = queue(1, &[("1", "a", &[])]);
        let refused = full.has_room().unwrap_err();
        assert_eq!(refused.retry_after, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn when_to_come_again_goes_by_how_fast_it_moves_and_not_by_when_nobody_waits() {
        let mut queue = Queue::new(3);
        let kind = queue.kind("a");
        let refused = |queue: &mut Queue<_>| {
            loop {
                if let Err(refused) = queue.has_room() {
                    return refused.retry_after;
                }
                let id = queue.number();
                queue.join(kind, id, Fits::default, "");
            }
        };
        for _ in 0..3 {
            refused(&mut queue);
            for _ in 0..3 {
                advance(Duration::from_secs(1)).await;
                asked(&mut queue, None, 1);
            }
            assert_eq!(queue.len(), 0);
            advance(Duration::from_secs(1000)).await;
        }
        assert_eq!(refused(&mut queue), Duration::from_secs(4));
        // Those who leave leave it as empty.
        asked(&mut queue, None, 1);
        for id in 0..=99 {
            queue.leave(kind, id);
        }
        assert_eq!(queue.len(), 0);
        advance(Duration::from_secs(1000)).await;
        refused(&mut queue);
        asked(&mut queue, None, 1);
        assert_eq!(refused(&mut queue), Duration::from_secs(4));
        // However slow it is, it is worth another look before long.
        for _ in 0..2 {
            advance(Duration::from_secs(1000)).await;
            asked(&mut queue, None, 1);
        }
        assert_eq!(refused(&mut queue), LONGEST);
    }
}
