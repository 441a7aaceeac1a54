//! Who held an address when.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

const SECOND: u64 = 1_000_000_000;
/// A pod's first packets may come so long before we know it to begin: clocks differ, and news take their time.
const LEAD: u64 = 3 * SECOND;
/// The end of a span that goes on.
const OPEN: u64 = u64::MAX;

/// How the beginning of an ownership is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Certainty {
    /// From the API, whose times are whole seconds, rounded down.
    Told,
    /// Seen on this machine: exact.
    Seen,
}

/// A pod's ownership of an address, from and to Unix times in nanoseconds.
#[derive(Clone, Debug)]
struct Span {
    uid: Arc<str>,
    from: u64,
    certainty: Certainty,
    /// The earliest beginning that anybody told of.
    earliest: u64,
    /// As its pod's end said; not beyond the next one's beginning.
    to: u64,
    claim: u64,
}

/// Spans of ownership by address.
///
/// Of several pods that claim an address the one that began last has it from then on: a pod that has ended, or is about to
/// be deleted, keeps its address in the API until it is gone. Who had it at a time of which that cannot be said is not
/// guessed: after an owner's end the address is nobody's, for it may be the next one's before we hear of that.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    by_address: HashMap<IpAddr, Vec<Span>>,
    claims: u64,
}

impl Spans {
    /// `uid` has the address from then on (or had it all along, if that is known already). Whether that changed anything.
    pub(crate) fn claim(&mut self, address: IpAddr, uid: &Arc<str>, from: u64, certainty: Certainty) -> bool {
        let spans = self.by_address.entry(address).or_default();
        // After its end it is another ownership: the address may have been another's meanwhile.
        let known = spans.iter().rposition(|span| span.uid == *uid);
        if let Some(index) = known.filter(|&index| from < spans[index].to) {
            // Not before whom it followed: times may be rounded down.
            let bound = index.checked_sub(1).map_or(0, |before| spans[before].from);
            let span = &mut spans[index];
            let before = (span.to, span.from, span.certainty);
            span.earliest = span.earliest.min(from);
            match (span.certainty, certainty) {
                (Certainty::Seen, Certainty::Told) => {}
                (Certainty::Told, Certainty::Seen) => (span.from, span.certainty) = (from, certainty),
                _ => span.from = span.from.min(from.max(bound)),
            }
            span.to = OPEN;
            let changed = before != (span.to, span.from, span.certainty);
            if changed {
                spans.sort_by_key(|span| span.from);
            }
            return changed;
        }
        self.claims += 1;
        let at = spans.partition_point(|span| span.from <= from);
        let span = Span {
            uid: uid.clone(),
            from,
            certainty,
            earliest: from,
            to: OPEN,
            claim: self.claims,
        };
        spans.insert(at, span);
        true
    }

    /// `uid` has the address no more. An earlier end that is known stays.
    pub(crate) fn end(&mut self, address: IpAddr, uid: &str, to: u64) {
        let spans = self.by_address.get_mut(&address);
        if let Some(span) = spans.and_then(|spans| spans.iter_mut().rfind(|span| &*span.uid == uid)) {
            span.to = span.to.min(to.max(span.from));
        }
    }

    /// Who held the address at a time, and the number of that claim.
    pub(crate) fn at(&self, address: IpAddr, time: u64) -> Option<(&Arc<str>, u64)> {
        let spans = self.by_address.get(&address)?;
        let next = spans.partition_point(|span| span.from <= time);
        let (before, after) = spans.split_at(next);
        let holder = match before {
            // In the second that its beginning was rounded down to, the one before may have had it still.
            [.., other, span]
                if span.certainty == Certainty::Told && time - span.from < SECOND && time < other.to =>
            {
                return None;
            }
            [.., span] if time < span.to => span,
            // It is nobody's yet, or any more: but the next one's if it may have begun.
            _ => after.first().filter(|span| {
                time >= span.earliest || span.certainty == Certainty::Told && span.from - time <= LEAD
            })?,
        };
        Some((&holder.uid, holder.claim))
    }

    /// Forgets spans that ended before a time.
    pub(crate) fn forget(&mut self, before: u64) {
        self.by_address.retain(|_, spans| {
            // A span also ends where the next one begins.
            let last = spans.len().saturating_sub(1);
            let mut index = 0;
            let begins: Vec<u64> = spans.iter().map(|span| span.from).collect();
            spans.retain(|span| {
                let end = if index < last {
                    span.to.min(begins[index + 1])
                } else {
                    span.to
                };
                index += 1;
                end >= before
            });
            !spans.is_empty()
        });
    }

    /// Addresses with a span.
    pub(crate) fn len(&self) -> usize {
        self.by_address.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn uid(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    fn told(spans: &mut Spans, name: &str, from: u64) -> bool {
        spans.claim(ADDRESS, &uid(name), from, Certainty::Told)
    }

    fn seen(spans: &mut Spans, name: &str, from: u64) -> bool {
        spans.claim(ADDRESS, &uid(name), from, Certainty::Seen)
    }

    fn at(spans: &Spans, second: u64) -> Option<&str> {
        spans.at(ADDRESS, second * SECOND).map(|(uid, _)| &**uid)
    }

    #[test]
    fn an_address_that_was_handed_on_belongs_to_each_in_its_time() {
        let mut spans = Spans::default();
        assert!(told(&mut spans, "a", 100 * SECOND));
        assert!(!told(&mut spans, "a", 100 * SECOND));
        assert!(told(&mut spans, "b", 200 * SECOND));
        assert_eq!(at(&spans, 96), None);
        assert_eq!(at(&spans, 98), Some("a"));
        assert_eq!(at(&spans, 199), Some("a"));
        // Whose this second is cannot be said.
        assert_eq!(at(&spans, 200), None);
        assert_eq!(at(&spans, 201), Some("b"));
        // The old one's object is deleted much later.
        spans.end(ADDRESS, "a", 300 * SECOND);
        assert_eq!(at(&spans, 250), Some("b"));
        spans.end(ADDRESS, "b", 400 * SECOND);
        assert_eq!(at(&spans, 399), Some("b"));
        // It may be the next one's, of which nobody has told yet.
        assert_eq!(at(&spans, 400), None);
        spans.forget(350 * SECOND);
        assert_eq!(at(&spans, 150), None);
        assert_eq!(at(&spans, 250), Some("b"));
        spans.forget(500 * SECOND);
        assert_eq!(spans.len(), 0);
    }

    #[test]
    fn a_job_that_has_ended_does_not_take_its_address_back() {
        let mut spans = Spans::default();
        told(&mut spans, "new", 200 * SECOND);
        // Listed after the new one.
        told(&mut spans, "job", 100 * SECOND);
        spans.end(ADDRESS, "job", 150 * SECOND);
        assert_eq!(at(&spans, 120), Some("job"));
        assert_eq!(at(&spans, 149), Some("job"));
        assert_eq!(at(&spans, 170), None);
        assert_eq!(at(&spans, 210), Some("new"));
    }

    #[test]
    fn an_address_that_came_back_is_a_new_ownership() {
        let mut spans = Spans::default();
        told(&mut spans, "a", 100 * SECOND);
        spans.end(ADDRESS, "a", 200 * SECOND);
        told(&mut spans, "b", 200 * SECOND);
        spans.end(ADDRESS, "b", 300 * SECOND);
        assert!(told(&mut spans, "a", 300 * SECOND));
        for (second, holder) in [(150, "a"), (250, "b"), (350, "a")] {
            assert_eq!(at(&spans, second), Some(holder));
        }
    }

    #[test]
    fn a_beginning_that_was_rounded_down_does_not_go_before_whom_it_followed() {
        let mut spans = Spans::default();
        told(&mut spans, "short", 200 * SECOND + 300);
        spans.end(ADDRESS, "short", 200 * SECOND + 600);
        told(&mut spans, "long", 200 * SECOND + 900);
        told(&mut spans, "long", 200 * SECOND);
        assert_eq!(at(&spans, 205), Some("long"));
    }

    #[test]
    fn what_was_seen_here_is_exact() {
        let mut spans = Spans::default();
        seen(&mut spans, "a", 10 * SECOND + 100);
        // The API tells of the next one first, with its beginning rounded down, and of the end of this one rounded up.
        told(&mut spans, "b", 10 * SECOND);
        spans.end(ADDRESS, "a", 11 * SECOND);
        seen(&mut spans, "b", 10 * SECOND + 500);
        let at = |spans: &Spans, ns: u64| {
            spans
                .at(ADDRESS, 10 * SECOND + ns)
                .map(|(uid, _)| uid.to_string())
        };
        for (ns, holder) in [(200, "a"), (499, "a"), (500, "b"), (SECOND + 1, "b")] {
            assert_eq!(at(&spans, ns).as_deref(), Some(holder), "{ns}");
        }
        // Of the one before it nothing is known at all: the API's time does.
        let mut spans = Spans::default();
        told(&mut spans, "a", 10 * SECOND);
        seen(&mut spans, "a", 10 * SECOND + 500);
        assert_eq!(at(&spans, 100).as_deref(), Some("a"));
    }

    proptest! {
        #[test]
        fn nobody_else_than_who_began_last_has_it(
            begins in prop::collection::btree_set(0u64..1000, 1..20),
            order in any::<u64>(),
            time in 0u64..1000,
        ) {
            let begins: Vec<u64> = begins.into_iter().collect();
            let mut shuffled = begins.clone();
            shuffled.sort_by_key(|begin| begin.wrapping_mul(order | 1));
            let mut spans = Spans::default();
            for begin in &shuffled {
                told(&mut spans, &begin.to_string(), begin * SECOND);
            }
            let expected = begins.iter().rev().find(|begin| **begin <= time)
                .or_else(|| begins.iter().find(|begin| **begin <= time + 3))
                // The second in which one has begun and the one before not ended.
                .filter(|begin| **begin != time || begins[0] == time)
                .map(u64::to_string);
            prop_assert_eq!(at(&spans, time).map(str::to_owned), expected);
        }
    }
}
