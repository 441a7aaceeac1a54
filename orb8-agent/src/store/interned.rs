//! Small ids for what many flows have in common: the interface they were observed at, the Service they went through.

use std::{borrow::Borrow, collections::HashMap, hash::Hash, marker::PhantomData, net::IpAddr, sync::Arc};

use crate::identity::owner::Attribution;

/// Id of an interface's name in a history; valid for flows of the current interval.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PointId(u32);

impl PointId {
    /// A socket, or an interface whose name is not known.
    pub const UNNAMED: Self = Self(0);
}

impl From<u32> for PointId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

impl From<PointId> for u32 {
    fn from(id: PointId) -> Self {
        id.0
    }
}

/// Id of a [`Via`] in a history; valid for flows of the current interval.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ViaId(u32);

impl ViaId {
    /// Straight: no Service, no translation.
    pub const STRAIGHT: Self = Self(0);
}

impl From<u32> for ViaId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

impl From<ViaId> for u32 {
    fn from(id: ViaId) -> Self {
        id.0
    }
}

/// How a connection went where it is not what its packets say.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Via {
    /// The Service: `namespace/name`; empty if none is known.
    pub service: Arc<str>,
    /// How the Service was found.
    pub attribution: Attribution,
    /// What the client asked for.
    pub asked: Option<(IpAddr, u16)>,
    /// The real source of the packets, where they carry another.
    pub src: Option<(IpAddr, u16)>,
    /// The real destination of the packets, where they carry another.
    pub dst: Option<(IpAddr, u16)>,
}

#[derive(Debug)]
struct Entry<T: ?Sized> {
    value: Arc<T>,
    flows: u32,
    /// Sequence number of the interval that asked for it last.
    seq: u32,
}

/// Bounded table of values, each stored once. Id 0 stands for none.
#[derive(Debug)]
pub(crate) struct Interned<T: ?Sized, Id> {
    entries: Vec<Option<Entry<T>>>,
    ids: HashMap<Arc<T>, u32>,
    free: Vec<u32>,
    max: usize,
    turned_away: u64,
    id: PhantomData<Id>,
}

/// Names of interfaces.
pub(crate) type PointTable = Interned<str, PointId>;
/// Services and translations.
pub(crate) type ViaTable = Interned<Via, ViaId>;

impl<T: ?Sized + Hash + Eq, Id: Copy + From<u32> + Into<u32>> Interned<T, Id> {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            entries: vec![None],
            ids: HashMap::new(),
            free: Vec::new(),
            max,
            turned_away: 0,
            id: PhantomData,
        }
    }

    /// The id of `value`; 0 if there is no room.
    pub(crate) fn intern<V>(&mut self, value: V, seq: u32) -> Id
    where
        V: Borrow<T> + Into<Arc<T>>,
    {
        if let Some(&id) = self.ids.get(value.borrow()) {
            if let Some(entry) = &mut self.entries[id as usize] {
                entry.seq = seq;
            }
            return Id::from(id);
        }
        if self.free.is_empty() && self.entries.len() >= self.max {
            self.drop_unused(seq);
        }
        let value: Arc<T> = value.into();
        let entry = Some(Entry {
            value: value.clone(),
            flows: 0,
            seq,
        });
        let id = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None if self.entries.len() < self.max => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
            None => {
                self.turned_away += 1;
                return Id::from(0);
            }
        };
        self.ids.insert(value, id);
        Id::from(id)
    }

    fn drop_unused(&mut self, seq: u32) {
        for (index, slot) in self.entries.iter_mut().enumerate() {
            if let Some(entry) = slot.take_if(|entry| entry.flows == 0 && entry.seq != seq) {
                self.ids.remove(&entry.value);
                self.free.push(index as u32);
            }
        }
    }

    pub(crate) fn acquire(&mut self, id: Id) {
        if let Some(Some(entry)) = self.entries.get_mut(id.into() as usize) {
            entry.flows += 1;
        }
    }

    pub(crate) fn release(&mut self, id: Id) {
        if let Some(Some(entry)) = self.entries.get_mut(id.into() as usize) {
            entry.flows = entry.flows.saturating_sub(1);
        }
    }

    pub(crate) fn get(&self, id: Id) -> Option<&T> {
        self.entries
            .get(id.into() as usize)?
            .as_ref()
            .map(|entry| &*entry.value)
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) const fn max(&self) -> usize {
        self.max
    }

    pub(crate) const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Bytes, values taken to be some tens of bytes: as long as Linux lets interface names be.
    pub(crate) fn memory(&self) -> usize {
        self.entries.capacity() * size_of::<Option<Entry<T>>>()
            + self.ids.len() * (32 + 64)
            + self.free.capacity() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_gives_up_unused_names_only() {
        let mut points = PointTable::new(3);
        let used = points.intern("veth0", 1);
        points.acquire(used);
        let unused = points.intern("veth1", 1);
        assert_eq!(points.intern("veth2", 1), PointId::UNNAMED);
        assert_eq!(points.turned_away(), 1);
        assert_eq!(points.intern("veth2", 2), unused);
        assert_eq!(points.get(used), Some("veth0"));
        assert_eq!(points.get(unused), Some("veth2"));
        assert_eq!(points.get(PointId::UNNAMED), None);
    }
}
