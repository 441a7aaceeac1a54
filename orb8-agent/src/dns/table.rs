//! Names by observation point and address, the least recently used given up first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::DnsLimits;

const SECOND: u64 = 1_000_000_000;
/// Programs keep connections, and addresses, for longer than a short TTL says.
const LEAST_SECONDS: u64 = 5 * 60;
const MOST_SECONDS: u64 = 24 * 60 * 60;

/// When a name held.
#[derive(Clone, Debug)]
struct Span {
    name: Arc<str>,
    from: u64,
    until: u64,
}

impl Span {
    fn holds(&self, time: u64) -> bool {
        (self.from..=self.until).contains(&time)
    }
}

#[derive(Debug)]
struct Names {
    latest: Span,
    /// The one before, for what began before the latest was learnt.
    earlier: Option<Span>,
    /// Key in [`Point::order`].
    used: u64,
}

#[derive(Debug, Default)]
struct Point {
    names: HashMap<IpAddr, Names>,
    /// Least recently used first.
    order: BTreeMap<u64, IpAddr>,
}

impl Point {
    fn touch(&mut self, address: IpAddr, used: u64) -> Option<&mut Names> {
        let names = self.names.get_mut(&address)?;
        self.order.remove(&names.used);
        names.used = used;
        self.order.insert(used, address);
        Some(names)
    }

    /// Returns whether there was one.
    fn give_up_oldest(&mut self) -> bool {
        self.order
            .pop_first()
            .and_then(|(_, address)| self.names.remove(&address))
            .is_some()
    }
}

#[derive(Debug)]
pub(super) struct Table {
    limits: DnsLimits,
    points: HashMap<u64, Point>,
    /// Points by how many names they have, so that the one with the most gives way.
    sizes: BTreeSet<(usize, u64)>,
    len: usize,
    /// Counts uses.
    clock: u64,
}

impl Table {
    pub(super) fn new(limits: DnsLimits) -> Self {
        Self {
            limits: DnsLimits {
                names: limits.names.max(1),
                names_per_point: limits.names_per_point.max(1),
            },
            points: HashMap::new(),
            sizes: BTreeSet::new(),
            len: 0,
            clock: 0,
        }
    }

    pub(super) fn limits(&self) -> DnsLimits {
        self.limits
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns how many names were given up for it.
    pub(super) fn learn(&mut self, point: u64, address: IpAddr, name: &Arc<str>, time: u64, ttl: u32) -> u64 {
        let seconds = u64::from(ttl).clamp(LEAST_SECONDS, MOST_SECONDS);
        let span = Span {
            name: Arc::clone(name),
            from: time,
            until: time.saturating_add(seconds * SECOND),
        };
        self.clock += 1;
        let used = self.clock;
        if let Some(names) = self
            .points
            .get_mut(&point)
            .and_then(|point| point.touch(address, used))
        {
            names.renew(span);
            return 0;
        }
        let mut given_up = 0;
        let size = |table: &Self| table.points.get(&point).map_or(0, |point| point.names.len());
        if size(self) >= self.limits.names_per_point {
            given_up += self.give_up(point);
        }
        while self.len >= self.limits.names {
            let Some(&(_, largest)) = self.sizes.last() else {
                break;
            };
            given_up += self.give_up(largest);
        }
        let before = size(self);
        let entry = self.points.entry(point).or_default();
        entry.order.insert(used, address);
        entry.names.insert(
            address,
            Names {
                latest: span,
                earlier: None,
                used,
            },
        );
        self.len += 1;
        self.resized(point, before);
        given_up
    }

    pub(super) fn name(&mut self, point: u64, address: IpAddr, time: u64) -> Option<Arc<str>> {
        self.clock += 1;
        let names = self.points.get_mut(&point)?.touch(address, self.clock)?;
        [Some(&names.latest), names.earlier.as_ref()]
            .into_iter()
            .flatten()
            .find(|span| span.holds(time))
            .map(|span| Arc::clone(&span.name))
    }

    pub(super) fn forget(&mut self, point: u64) {
        if let Some(gone) = self.points.remove(&point) {
            self.sizes.remove(&(gone.names.len(), point));
            self.len -= gone.names.len();
        }
    }

    /// Returns how many names were given up.
    fn give_up(&mut self, point: u64) -> u64 {
        let Some(entry) = self.points.get_mut(&point) else {
            return 0;
        };
        let before = entry.names.len();
        let gone = entry.give_up_oldest();
        self.len -= usize::from(gone);
        self.resized(point, before);
        u64::from(gone)
    }

    fn resized(&mut self, point: u64, before: usize) {
        self.sizes.remove(&(before, point));
        match self.points.get(&point).map_or(0, |point| point.names.len()) {
            0 => {
                self.points.remove(&point);
            }
            size => {
                self.sizes.insert((size, point));
            }
        }
    }
}

impl Names {
    fn renew(&mut self, span: Span) {
        if span.from < self.latest.from {
            // Came late; what is known is newer.
            if self.latest.name == span.name {
                self.latest.from = span.from;
            } else if self
                .earlier
                .as_ref()
                .is_none_or(|earlier| earlier.from < span.from)
            {
                self.earlier = Some(span);
            }
        } else if self.latest.name == span.name && self.latest.holds(span.from) {
            self.latest.until = self.latest.until.max(span.until);
        } else {
            let before = std::mem::replace(&mut self.latest, span);
            self.earlier = Some(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(names: usize, names_per_point: usize) -> Table {
        Table::new(DnsLimits {
            names,
            names_per_point,
        })
    }

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    fn check(table: &Table) {
        let lengths: usize = table.points.values().map(|point| point.names.len()).sum();
        assert_eq!(lengths, table.len);
        assert!(table.len <= table.limits.names);
        let sizes: BTreeSet<_> = table
            .points
            .iter()
            .map(|(point, entry)| (entry.names.len(), *point))
            .collect();
        assert_eq!(sizes, table.sizes);
        for point in table.points.values() {
            assert!((1..=table.limits.names_per_point).contains(&point.names.len()));
            assert_eq!(point.order.len(), point.names.len());
            for (used, address) in &point.order {
                assert_eq!(point.names[address].used, *used);
            }
        }
    }

    #[test]
    fn a_name_holds_from_its_answer_for_its_ttl_and_at_least_five_minutes() {
        let mut table = table(10, 10);
        let name = Arc::from("a.example");
        table.learn(1, address(1), &name, 100 * SECOND, 0);
        table.learn(1, address(2), &name, 100 * SECOND, 3600);
        table.learn(1, address(3), &name, 100 * SECOND, u32::MAX);
        assert_eq!(table.name(1, address(1), 100 * SECOND - 1), None);
        for (last, seconds) in [(1, 300), (2, 3600), (3, 86400)] {
            let until = (100 + seconds) * SECOND;
            assert_eq!(table.name(1, address(last), until), Some(Arc::clone(&name)));
            assert_eq!(table.name(1, address(last), until + 1), None);
        }
        assert_eq!(table.name(2, address(1), 100 * SECOND), None, "another's name");
    }

    #[test]
    fn what_began_earlier_keeps_the_name_of_then() {
        let mut table = table(10, 10);
        let (old, new): (Arc<str>, Arc<str>) = (Arc::from("old.example"), Arc::from("new.example"));
        table.learn(1, address(1), &old, 10 * SECOND, 0);
        table.learn(1, address(1), &new, 20 * SECOND, 0);
        assert_eq!(table.name(1, address(1), 15 * SECOND), Some(Arc::clone(&old)));
        assert_eq!(table.name(1, address(1), 20 * SECOND), Some(Arc::clone(&new)));
        // Asked again: it held all the time.
        table.learn(1, address(1), &new, 30 * SECOND, 0);
        assert_eq!(table.name(1, address(1), 25 * SECOND), Some(Arc::clone(&new)));
        assert_eq!(table.name(1, address(1), 15 * SECOND), Some(Arc::clone(&old)));
        assert_eq!(table.name(1, address(1), 329 * SECOND), Some(new));
        // An older answer that comes late does not change what is known of now.
        table.learn(1, address(1), &old, 5 * SECOND, 0);
        assert_eq!(
            table.name(1, address(1), 40 * SECOND).as_deref(),
            Some("new.example")
        );
    }

    #[test]
    fn the_noisy_point_gives_way() {
        let mut table = table(10, 8);
        let name = Arc::from("a.example");
        for last in 0..4 {
            assert_eq!(table.learn(1, address(last), &name, 0, 0), 0);
        }
        let given_up: u64 = (0..1000)
            .map(|last| table.learn(2, address(last), &name, 0, 0))
            .sum();
        assert_eq!(given_up, 1000 - 6);
        check(&table);
        for last in 0..4 {
            assert!(table.name(1, address(last), 0).is_some());
        }
        // The least recently used of its own.
        assert!(table.name(2, address(994), 0).is_some());
        table.learn(2, address(1000), &name, 0, 0);
        assert!(table.name(2, address(994), 0).is_some());
        assert!(table.name(2, address(995), 0).is_none());
        table.forget(2);
        assert_eq!(table.len(), 4);
        check(&table);
    }

    proptest! {
        #[test]
        fn stays_within_its_limits(
            operations in proptest::collection::vec((0u8..8, 0u64..5, 0u32..12, 0u64..1000), 1..300),
            names in 0usize..20,
            names_per_point in 0usize..8,
        ) {
            let mut table = table(names, names_per_point);
            let mut time = 0;
            for (what, point, number, passed) in operations {
                time += passed;
                match what {
                    0 => table.forget(point),
                    1 | 2 => {
                        table.name(point, address(number), time * SECOND);
                    }
                    _ => {
                        let name: Arc<str> = format!("n{}.example", time % 3).into();
                        table.learn(point, address(number), &name, time * SECOND, 0);
                        let found = table.name(point, address(number), time * SECOND);
                        prop_assert!(found.is_some());
                    }
                }
                check(&table);
            }
        }
    }
}
