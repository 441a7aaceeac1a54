//! Connections, findable by each of the tuples that their packets have on the way.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use hashbrown::{HashTable, hash_table::Entry as IndexEntry};

use super::{Endpoint, Translation, Tuple, message::Connection};

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

    fn of(connection: &Connection, form: Self) -> (Endpoint, Endpoint) {
        match form {
            Self::Original => (connection.client, connection.asked),
            Self::Final => (connection.reply_to, connection.backend),
            Self::Middle => (connection.client, connection.backend),
        }
    }

    fn key(self, connection: &Connection) -> Key {
        let (from, to) = Self::of(connection, self);
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

#[derive(Clone, Copy, Debug)]
struct Entry {
    connection: Connection,
    /// A notification will tell of its end.
    followed: bool,
    ended: Option<Instant>,
    /// When the kernel last said that it is there.
    checked: Instant,
    generation: u32,
    /// Neighbours in the list of ended ones.
    previous: u32,
    next: u32,
}

/// A found connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    place: Place,
    connection: Connection,
    /// The tuple is one that the kernel itself knows the connection by.
    pub(super) exact: bool,
    /// And the one before any translation.
    pub(super) original: bool,
    pub(super) ended: bool,
    pub(super) followed: bool,
    pub(super) checked: Instant,
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
    pub(super) fn new(most: usize) -> Self {
        Self {
            // Numbers have 30 bits beside a form.
            most: most.clamp(1, (1 << 30) - 1),
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

    /// What a packet with `tuple`, which found `hit`, belongs to.
    pub(super) fn translation(&self, hit: &Hit, tuple: &Tuple) -> Translation {
        let connection = &hit.connection;
        let (from, to) = Form::of(connection, hit.place.form());
        Translation {
            client: connection.client,
            asked: connection.asked,
            backend: connection.backend,
            reply_to: connection.reply_to,
            towards_backend: ((tuple.src, tuple.sport), (tuple.dst, tuple.dport)) == (from, to),
        }
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
            checked: now,
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

    /// Notes the end of all that the listing `generation` did not name.
    pub(super) fn end_unlisted(&mut self, generation: u32, now: Instant) {
        for number in 0..self.entries.len() as u32 {
            if self
                .entry(number)
                .is_some_and(|entry| entry.generation != generation)
            {
                self.end_number(number, now);
            }
        }
    }

    /// Forgets what ended at least `keep` before `now`.
    pub(super) fn expire(&mut self, now: Instant, keep: Duration) {
        while let Some(entry) = self.entry(self.first_ended)
            && entry
                .ended
                .is_some_and(|ended| now.saturating_duration_since(ended) >= keep)
        {
            self.remove(self.first_ended);
        }
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
