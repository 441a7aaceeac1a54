//! Connections, findable by each of the tuples that their packets have on the way.

use std::{
    hash::{BuildHasher, RandomState},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use hashbrown::{HashTable, hash_table::Entry as IndexEntry};

use super::{Endpoint, Tuple, message::Connection};

/// No entry.
const NONE: u32 = u32::MAX;

/// Protocol and both ends of a packet, whatever its direction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    protocol: u8,
    low: Endpoint,
    high: Endpoint,
}

impl Key {
    fn new(protocol: u8, a: Endpoint, b: Endpoint) -> Self {
        Self {
            protocol,
            low: a.min(b),
            high: a.max(b),
        }
    }

    pub(super) fn of(tuple: &Tuple) -> Self {
        Self::new(tuple.protocol, (tuple.src, tuple.sport), (tuple.dst, tuple.dport))
    }
}

/// Where on its way a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// Before any translation: client and asked. A key of the kernel's.
    Original = 0,
    /// Behind all: reply-to and backend. A key of the kernel's, reversed.
    Final = 1,
    /// The destination is translated, the source is not yet: client and backend.
    Middle = 2,
}

impl Form {
    const ALL: [Self; 3] = [Self::Original, Self::Final, Self::Middle];

    fn key(self, connection: &Connection) -> Key {
        let (from, to) = match self {
            Self::Original => connection.original(),
            Self::Final => connection.last(),
            Self::Middle => connection.middle(),
        };
        Key::new(connection.protocol, from, to)
    }
}

/// An entry's number and one of its forms, in four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place(u32);

impl Place {
    fn new(entry: u32, form: Form) -> Self {
        Self(entry << 2 | form as u32)
    }

    fn entry(self) -> u32 {
        self.0 >> 2
    }

    fn form(self) -> Form {
        Form::ALL[(self.0 & 3).min(2) as usize]
    }
}

/// Tenths of a second since the table was made, and one: time in four bytes, for 13 years.
type Tick = NonZeroU32;

const TICK: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
struct Entry {
    connection: Connection,
    /// A notification will tell of its end.
    followed: bool,
    ended: Option<Tick>,
    /// When the kernel last said that it is there.
    checked: Tick,
    generation: u32,
    /// Neighbours in the list of ended ones.
    previous: u32,
    next: u32,
}

/// A found connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    place: Place,
    pub(super) connection: Connection,
    /// The tuple is one that the kernel itself knows the connection by.
    pub(super) exact: bool,
    /// And the one before any translation.
    pub(super) original: bool,
    pub(super) ended: bool,
    pub(super) followed: bool,
    /// See [`Table::age`].
    checked: Tick,
}

/// What became of a connection given to [`Table::insert`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inserted {
    Kept,
    /// Kept; the one that had ended first was forgotten for it.
    InsteadOfEnded,
    TurnedAway,
}

#[derive(Debug)]
pub(super) struct Table {
    most: usize,
    began: Instant,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    index: HashTable<Place>,
    hasher: RandomState,
    len: usize,
    unfollowed: usize,
    /// List of ended entries, by the time of their end.
    first_ended: u32,
    last_ended: u32,
}

impl Table {
    pub(super) fn new(most: usize, now: Instant) -> Self {
        Self {
            // Numbers have 30 bits beside a form.
            most: most.clamp(1, (1 << 30) - 1),
            began: now,
            entries: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            len: 0,
            unfollowed: 0,
            first_ended: NONE,
            last_ended: NONE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Live connections whose end no notification will tell.
    pub(super) fn unfollowed(&self) -> usize {
        self.unfollowed
    }

    pub(super) fn find(&self, key: &Key) -> Option<Hit> {
        let place = *self
            .index
            .find(self.hasher.hash_one(key), |place| self.has(*place, key))?;
        let entry = self.entry(place.entry())?;
        Some(Hit {
            place,
            connection: entry.connection,
            exact: place.form() != Form::Middle,
            original: place.form() == Form::Original,
            ended: entry.ended.is_some(),
            followed: entry.followed,
            checked: entry.checked,
        })
    }

    /// How long ago the kernel last said that it is there, to a tenth of a second.
    pub(super) fn age(&self, hit: &Hit, now: Instant) -> Duration {
        TICK * (self.tick(now).get().saturating_sub(hit.checked.get()))
    }

    /// Adds a connection that exists, or notes that it still does.
    pub(super) fn insert(
        &mut self,
        connection: Connection,
        followed: bool,
        generation: u32,
        now: Instant,
    ) -> Inserted {
        // The kernel has each of its keys once: whoever else has one here is gone there.
        for form in [Form::Original, Form::Final] {
            let key = form.key(&connection);
            let hash = self.hasher.hash_one(key);
            let Some(&place) = self.index.find(hash, |place| self.has(*place, &key)) else {
                continue;
            };
            if place.form() == Form::Middle {
                self.unindex(place);
                continue;
            }
            let number = place.entry();
            if self
                .entry(number)
                .is_some_and(|entry| same(&entry.connection, &connection))
            {
                self.renew(number, &connection, followed, generation, now);
                return Inserted::Kept;
            }
            self.remove(number);
        }
        let mut inserted = Inserted::Kept;
        if self.len >= self.most {
            if self.first_ended == NONE {
                return Inserted::TurnedAway;
            }
            self.remove(self.first_ended);
            inserted = Inserted::InsteadOfEnded;
        }
        let entry = Some(Entry {
            connection,
            followed,
            ended: None,
            checked: self.tick(now),
            generation,
            previous: NONE,
            next: NONE,
        });
        let number = if let Some(number) = self.free.pop() {
            self.entries[number as usize] = entry;
            number
        } else {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        };
        self.len += 1;
        self.unfollowed += usize::from(!followed);
        // The middle comes last: it takes only a free place.
        for form in Form::ALL {
            self.enter(Place::new(number, form));
        }
        inserted
    }

    /// Notes the end that a notification told. That of an earlier connection of the same addresses is ignored.
    pub(super) fn destroyed(&mut self, connection: &Connection, now: Instant) {
        if let Some(hit) = self.find(&Form::Original.key(connection))
            && hit.original
            && hit.connection.id == connection.id
            && same(&hit.connection, connection)
        {
            self.end(&hit, now);
        }
    }

    /// Notes that a connection is no longer there.
    pub(super) fn end(&mut self, hit: &Hit, now: Instant) {
        self.end_number(hit.place.entry(), now);
    }

    /// Notes the end of all that the listing `generation` did not name; returns how many were thought alive.
    pub(super) fn end_unlisted(&mut self, generation: u32, now: Instant) -> usize {
        let mut ended = 0;
        for number in 0..self.entries.len() as u32 {
            if self
                .entry(number)
                .is_some_and(|entry| entry.generation != generation && entry.ended.is_none())
            {
                self.end_number(number, now);
                ended += 1;
            }
        }
        ended
    }

    /// Forgets what ended at least `keep` before `now`.
    pub(super) fn expire(&mut self, now: Instant, keep: Duration) {
        let now = self.tick(now).get();
        while let Some(entry) = self.entry(self.first_ended)
            && entry
                .ended
                .is_some_and(|ended| TICK * now.saturating_sub(ended.get()) >= keep)
        {
            self.remove(self.first_ended);
        }
    }

    fn tick(&self, now: Instant) -> Tick {
        let ticks = now.saturating_duration_since(self.began).as_millis() / TICK.as_millis();
        Tick::MIN.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    fn entry(&self, number: u32) -> Option<&Entry> {
        self.entries.get(number as usize)?.as_ref()
    }

    fn entry_mut(&mut self, number: u32) -> Option<&mut Entry> {
        self.entries.get_mut(number as usize)?.as_mut()
    }

    fn key(&self, place: Place) -> Option<Key> {
        Some(place.form().key(&self.entry(place.entry())?.connection))
    }

    fn has(&self, place: Place, key: &Key) -> bool {
        self.key(place).as_ref() == Some(key)
    }

    fn enter(&mut self, place: Place) {
        let Some(key) = self.key(place) else { return };
        let (entries, hasher) = (&self.entries, &self.hasher);
        let key_of = |place: Place| {
            let entry = entries.get(place.entry() as usize)?.as_ref()?;
            Some(place.form().key(&entry.connection))
        };
        let vacancy = self.index.entry(
            hasher.hash_one(key),
            |place| key_of(*place) == Some(key),
            |place| key_of(*place).map_or(0, |key| hasher.hash_one(key)),
        );
        if let IndexEntry::Vacant(vacancy) = vacancy {
            vacancy.insert(place);
        }
    }

    fn unindex(&mut self, place: Place) {
        let Some(key) = self.key(place) else { return };
        if let Ok(found) = self
            .index
            .find_entry(self.hasher.hash_one(key), |other| *other == place)
        {
            found.remove();
        }
    }

    fn renew(&mut self, number: u32, connection: &Connection, followed: bool, generation: u32, now: Instant) {
        self.unlink(number);
        let now = self.tick(now);
        let Some(entry) = self.entry_mut(number) else {
            return;
        };
        let was_unfollowed = entry.ended.is_none() && !entry.followed;
        entry.followed = followed || (entry.followed && entry.connection.id == connection.id);
        entry.connection = *connection;
        entry.ended = None;
        entry.checked = now;
        entry.generation = generation;
        let unfollowed = !entry.followed;
        self.unfollowed = self.unfollowed - usize::from(was_unfollowed) + usize::from(unfollowed);
    }

    fn end_number(&mut self, number: u32, now: Instant) {
        let last = self.last_ended;
        let now = self.tick(now);
        let Some(entry) = self.entry_mut(number) else {
            return;
        };
        if entry.ended.is_some() {
            return;
        }
        entry.ended = Some(now);
        entry.previous = last;
        entry.next = NONE;
        let unfollowed = !entry.followed;
        self.unfollowed -= usize::from(unfollowed);
        match self.entry_mut(last) {
            Some(before) => before.next = number,
            None => self.first_ended = number,
        }
        self.last_ended = number;
    }

    /// Takes an entry out of the list of ended ones, if it is there.
    fn unlink(&mut self, number: u32) {
        let Some(entry) = self.entry(number) else { return };
        if entry.ended.is_none() {
            return;
        }
        let (previous, next) = (entry.previous, entry.next);
        match self.entry_mut(previous) {
            Some(before) => before.next = next,
            None => self.first_ended = next,
        }
        match self.entry_mut(next) {
            Some(after) => after.previous = previous,
            None => self.last_ended = previous,
        }
    }

    fn remove(&mut self, number: u32) {
        let Some(entry) = self.entry(number) else { return };
        let unfollowed = entry.ended.is_none() && !entry.followed;
        for form in Form::ALL {
            self.unindex(Place::new(number, form));
        }
        self.unlink(number);
        self.entries[number as usize] = None;
        self.free.push(number);
        self.len -= 1;
        self.unfollowed -= usize::from(unfollowed);
    }
}

/// Whether the addresses are the same; the id is not asked for.
fn same(a: &Connection, b: &Connection) -> bool {
    (a.protocol, a.client, a.asked, a.backend, a.reply_to)
        == (b.protocol, b.client, b.asked, b.backend, b.reply_to)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn connection(client: u16, service: u8, backend: u8, reply_to: u16, id: u32) -> Connection {
        let at = |host: u8, port: u16| -> Endpoint { (Ipv4Addr::new(10, 0, 0, host).into(), port) };
        Connection {
            protocol: 6,
            client: at(1, client),
            asked: at(100 + service, 80),
            backend: at(200 + backend, 8080),
            reply_to: if reply_to == 0 {
                at(1, client)
            } else {
                at(2, reply_to)
            },
            id,
            status: 0x30,
        }
    }

    fn find(table: &Table, (from, to): (Endpoint, Endpoint)) -> Option<Hit> {
        let hit = table.find(&Key::new(6, from, to));
        let back = table.find(&Key::new(6, to, from));
        assert_eq!(hit.map(|hit| hit.connection), back.map(|hit| hit.connection));
        hit
    }

    /// Every entry is indexed, every place leads to its entry, and the list of ended ones is whole.
    fn check(table: &Table) {
        let live: Vec<u32> = (0..table.entries.len() as u32)
            .filter(|number| table.entry(*number).is_some())
            .collect();
        assert_eq!(live.len(), table.len);
        assert!(table.len <= table.most);
        assert_eq!(table.entries.len(), table.len + table.free.len());
        let unfollowed = live
            .iter()
            .filter_map(|number| table.entry(*number))
            .filter(|entry| entry.ended.is_none() && !entry.followed)
            .count();
        assert_eq!(unfollowed, table.unfollowed);
        for number in &live {
            for form in [Form::Original, Form::Final] {
                let key = table.key(Place::new(*number, form)).unwrap();
                let hit = table.find(&key).unwrap();
                assert_eq!(hit.place.entry(), *number);
            }
        }
        for place in &table.index {
            assert!(table.entry(place.entry()).is_some());
        }
        let mut ended = 0;
        let mut at = (NONE, table.first_ended);
        while let Some(entry) = table.entry(at.1) {
            assert_eq!(entry.previous, at.0);
            assert!(entry.ended.is_some());
            ended += 1;
            at = (at.1, entry.next);
        }
        assert_eq!(at.0, table.last_ended);
        let expected = live
            .iter()
            .filter_map(|number| table.entry(*number))
            .filter(|entry| entry.ended.is_some())
            .count();
        assert_eq!(ended, expected);
    }

    #[test]
    fn an_entry_is_small() {
        assert!(
            size_of::<Option<Entry>>() <= 120,
            "{}",
            size_of::<Option<Entry>>()
        );
        assert_eq!(size_of::<Place>(), 4);
    }

    #[test]
    fn is_found_by_each_form_until_it_has_been_gone_for_long() {
        let start = Instant::now();
        let mut table = Table::new(10, start);
        let one = connection(1000, 1, 1, 5000, 7);
        table.insert(one, true, 0, start);
        for form in [one.original(), one.last(), one.middle()] {
            assert_eq!(find(&table, form).unwrap().connection, one);
        }
        // Of an earlier connection of the same addresses.
        table.destroyed(&Connection { id: 6, ..one }, start);
        assert!(!find(&table, one.original()).unwrap().ended);
        table.destroyed(&one, start);
        assert!(find(&table, one.original()).unwrap().ended);
        let keep = Duration::from_secs(30);
        table.expire(start + keep - Duration::from_millis(1), keep);
        assert!(find(&table, one.last()).is_some());
        table.expire(start + keep, keep);
        for form in [one.original(), one.last(), one.middle()] {
            assert!(find(&table, form).is_none());
        }
        check(&table);
    }

    #[test]
    fn another_connection_with_the_clients_addresses_replaces() {
        let now = Instant::now();
        let mut table = Table::new(10, now);
        let (old, new) = (connection(1000, 1, 1, 0, 1), connection(1000, 1, 2, 0, 2));
        table.insert(old, true, 0, now);
        table.destroyed(&old, now);
        table.insert(new, true, 0, now);
        assert_eq!(find(&table, new.original()).unwrap().connection, new);
        assert!(find(&table, old.last()).is_none());
        // The old one's end, told late.
        table.destroyed(&old, now);
        assert!(!find(&table, new.original()).unwrap().ended);
        check(&table);
    }

    #[test]
    fn what_the_kernel_knows_comes_before_a_middle() {
        let now = Instant::now();
        let hidden = connection(1000, 1, 1, 5000, 1);
        // Asked for another service, and not hidden: its last form is the middle of the other.
        let open = connection(1000, 2, 1, 0, 2);
        assert_eq!(hidden.middle(), open.last());
        for order in [[hidden, open], [open, hidden]] {
            let mut table = Table::new(10, now);
            for connection in order {
                table.insert(connection, true, 0, now);
            }
            let hit = find(&table, open.last()).unwrap();
            assert_eq!((hit.connection, hit.exact), (open, true));
            assert_eq!(find(&table, hidden.last()).unwrap().connection, hidden);
            check(&table);
        }
    }

    #[test]
    fn ended_ones_give_way_and_live_ones_do_not() {
        let now = Instant::now();
        let mut table = Table::new(2, now);
        let connections: Vec<_> = (0..4).map(|i| connection(1000 + i, 1, 1, 0, 1)).collect();
        assert_eq!(table.insert(connections[0], true, 0, now), Inserted::Kept);
        assert_eq!(table.insert(connections[1], false, 0, now), Inserted::Kept);
        assert_eq!(table.unfollowed(), 1);
        assert_eq!(table.insert(connections[2], true, 0, now), Inserted::TurnedAway);
        table.destroyed(&connections[1], now);
        assert_eq!(table.unfollowed(), 0);
        assert_eq!(
            table.insert(connections[3], true, 0, now),
            Inserted::InsteadOfEnded
        );
        assert!(find(&table, connections[0].original()).is_some());
        assert!(find(&table, connections[1].original()).is_none());
        check(&table);
    }

    proptest! {
        /// Against a map by the client's form, in which connections of other forms' clashes are gone.
        #[test]
        fn is_what_was_put_in(
            operations in proptest::collection::vec((0u8..5, 0u16..8, 0u8..3, 0u8..3, 0u16..6, any::<bool>()), 1..200),
            most in 1usize..20,
        ) {
            let mut now = Instant::now();
            let mut table = Table::new(most, now);
            let mut latest: HashMap<(Endpoint, Endpoint), Connection> = HashMap::new();
            let mut generation = 0;
            for (id, (what, client, service, backend, reply_to, followed)) in operations.into_iter().enumerate() {
                let one = connection(client, service, backend, reply_to, id as u32);
                match what {
                    0 | 1 => {
                        if table.insert(one, followed, generation, now) != Inserted::TurnedAway {
                            latest.insert(one.original(), one);
                        }
                    }
                    2 => {
                        if let Some(hit) = find(&table, one.original()) {
                            table.destroyed(&hit.connection, now);
                        }
                    }
                    3 => {
                        now += Duration::from_secs(10);
                        table.expire(now, Duration::from_secs(30));
                    }
                    _ => {
                        generation += 1;
                        table.end_unlisted(generation, now);
                        prop_assert_eq!(table.unfollowed(), 0);
                    }
                }
                check(&table);
            }
            for (form, connection) in latest {
                if let Some(hit) = find(&table, form).filter(|hit| hit.original) {
                    prop_assert!(same(&hit.connection, &connection));
                }
            }
        }
    }
}
