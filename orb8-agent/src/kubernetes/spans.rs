//! Who held an address when.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

const SECOND: u64 = 1_000_000_000;
/// A pod's last packets (FIN, RST, what was on the way) may come so long after its end, as long as nobody else has its
/// address.
const GRACE: u64 = 10 * SECOND;
/// A pod's first packets may come so long before we know it to begin: the API's times are whole seconds, and clocks differ.
const LEAD: u64 = 3 * SECOND;
/// The end of a span that goes on.
const OPEN: u64 = u64::MAX;

/// A pod's ownership of an address, from and to Unix times in nanoseconds.
#[derive(Clone, Debug)]
struct Span {
    uid: Arc<str>,
    from: u64,
    /// As its pod's end said; not beyond the next one's beginning.
    to: u64,
    claim: u64,
}

/// Spans of ownership by address.
///
/// Of several pods that claim an address the one that began last has it from then on: a pod that has ended, or is about to
/// be deleted, keeps its address in the API until it is gone.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    by_address: HashMap<IpAddr, Vec<Span>>,
    claims: u64,
}

impl Spans {
    /// `uid` has the address from then on (or had it all along, if that is known already). Whether that changed anything.
    pub(crate) fn claim(&mut self, address: IpAddr, uid: &Arc<str>, from: u64) -> bool {
        let spans = self.by_address.entry(address).or_default();
        // After its end it is another ownership: the address may have been another's meanwhile.
        let known = spans.iter().rposition(|span| span.uid == *uid);
        if let Some(index) = known.filter(|&index| from < spans[index].to) {
            let earliest = index.checked_sub(1).map_or(0, |before| spans[before].from);
            let span = &mut spans[index];
            let changed = span.to != OPEN;
            // The earliest that anybody saw, but not before whom it followed: times may be rounded down.
            span.from = span.from.min(from.max(earliest));
            span.to = OPEN;
            return changed;
        }
        self.claims += 1;
        let at = spans.partition_point(|span| span.from <= from);
        let span = Span {
            uid: uid.clone(),
            from,
            to: OPEN,
            claim: self.claims,
        };
        spans.insert(at, span);
        true
    }

    /// Whether `uid` is known to have the address now.
    pub(crate) fn has(&self, address: IpAddr, uid: &str) -> bool {
        self.by_address
            .get(&address)
            .and_then(|spans| spans.last())
            .is_some_and(|span| &*span.uid == uid && span.to == OPEN)
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
        let before = next.checked_sub(1).map(|index| &spans[index]);
        let holder = match (before, spans.get(next)) {
            (Some(span), _) if time < span.to => span,
            // Between two: what is nearer, each within its bound.
            (before, after) => {
                let late = before.filter(|span| time - span.to < GRACE);
                let early = after.filter(|span| span.from - time <= LEAD);
                match (late, early) {
                    (Some(late), Some(early)) if early.from - time < time - late.to => early,
                    (Some(late), _) => late,
                    (None, early) => early?,
                }
            }
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

    fn at(spans: &Spans, second: u64) -> Option<&str> {
        spans.at(ADDRESS, second * SECOND).map(|(uid, _)| &**uid)
    }

    #[test]
    fn an_address_that_was_handed_on_belongs_to_each_in_its_time() {
        let mut spans = Spans::default();
        assert!(spans.claim(ADDRESS, &uid("a"), 100 * SECOND));
        assert!(!spans.claim(ADDRESS, &uid("a"), 100 * SECOND));
        assert!(spans.claim(ADDRESS, &uid("b"), 200 * SECOND));
        assert_eq!(at(&spans, 96), None);
        assert_eq!(at(&spans, 98), Some("a"));
        assert_eq!(at(&spans, 199), Some("a"));
        assert_eq!(at(&spans, 200), Some("b"));
        // The old one's object is deleted much later.
        spans.end(ADDRESS, "a", 300 * SECOND);
        assert_eq!(at(&spans, 250), Some("b"));
        spans.end(ADDRESS, "b", 400 * SECOND);
        assert_eq!(at(&spans, 409), Some("b"));
        assert_eq!(at(&spans, 411), None);
        spans.forget(350 * SECOND);
        assert_eq!(at(&spans, 150), None);
        assert_eq!(at(&spans, 250), Some("b"));
        spans.forget(500 * SECOND);
        assert_eq!(spans.len(), 0);
    }

    #[test]
    fn a_job_that_has_ended_does_not_take_its_address_back() {
        let mut spans = Spans::default();
        spans.claim(ADDRESS, &uid("new"), 200 * SECOND);
        // Listed after the new one.
        spans.claim(ADDRESS, &uid("job"), 100 * SECOND);
        spans.end(ADDRESS, "job", 150 * SECOND);
        assert_eq!(at(&spans, 120), Some("job"));
        assert_eq!(at(&spans, 159), Some("job"));
        assert_eq!(at(&spans, 170), None);
        assert_eq!(at(&spans, 210), Some("new"));
        assert!(spans.has(ADDRESS, "new") && !spans.has(ADDRESS, "job"));
    }

    #[test]
    fn an_address_that_came_back_is_a_new_ownership() {
        let mut spans = Spans::default();
        spans.claim(ADDRESS, &uid("a"), 100 * SECOND);
        spans.end(ADDRESS, "a", 200 * SECOND);
        spans.claim(ADDRESS, &uid("b"), 200 * SECOND);
        spans.end(ADDRESS, "b", 300 * SECOND);
        assert!(spans.claim(ADDRESS, &uid("a"), 300 * SECOND));
        for (second, holder) in [(150, "a"), (250, "b"), (350, "a")] {
            assert_eq!(at(&spans, second), Some(holder));
        }
    }

    #[test]
    fn a_beginning_that_was_rounded_down_does_not_go_before_whom_it_followed() {
        let mut spans = Spans::default();
        spans.claim(ADDRESS, &uid("short"), 200 * SECOND + 300);
        spans.end(ADDRESS, "short", 200 * SECOND + 600);
        spans.claim(ADDRESS, &uid("long"), 200 * SECOND + 900);
        spans.claim(ADDRESS, &uid("long"), 200 * SECOND);
        assert_eq!(at(&spans, 205), Some("long"));
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
                spans.claim(ADDRESS, &uid(&begin.to_string()), begin * SECOND);
            }
            let expected = begins.iter().rev().find(|begin| **begin <= time)
                .or_else(|| begins.iter().find(|begin| **begin <= time + 3))
                .map(u64::to_string);
            prop_assert_eq!(at(&spans, time).map(str::to_owned), expected);
        }
    }
}
