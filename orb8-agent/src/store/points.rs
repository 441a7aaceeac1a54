//! Names of the interfaces that flows were observed at.

use std::{collections::HashMap, sync::Arc};

/// Id of an interface's name in a history; valid for flows of the current interval.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PointId(u32);

impl PointId {
    /// A socket, or an interface whose name is not known.
    pub const UNNAMED: Self = Self(0);
}

#[derive(Debug)]
struct Point {
    name: Arc<str>,
    flows: u32,
    /// Sequence number of the interval that asked for it last.
    seq: u32,
}

/// Bounded table of names, each stored once.
#[derive(Debug)]
pub(crate) struct PointTable {
    points: Vec<Option<Point>>,
    ids: HashMap<Arc<str>, PointId>,
    free: Vec<u32>,
    max: usize,
    turned_away: u64,
}

impl PointTable {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            points: vec![None],
            ids: HashMap::new(),
            free: Vec::new(),
            max,
            turned_away: 0,
        }
    }

    /// The id of `name`; [`PointId::UNNAMED`] if there is no room.
    pub(crate) fn intern(&mut self, name: &str, seq: u32) -> PointId {
        if let Some(&id) = self.ids.get(name) {
            if let Some(point) = &mut self.points[id.0 as usize] {
                point.seq = seq;
            }
            return id;
        }
        if self.free.is_empty() && self.points.len() >= self.max {
            self.drop_unused(seq);
        }
        let name: Arc<str> = name.into();
        let point = Some(Point {
            name: name.clone(),
            flows: 0,
            seq,
        });
        let id = match self.free.pop() {
            Some(index) => {
                self.points[index as usize] = point;
                PointId(index)
            }
            None if self.points.len() < self.max => {
                self.points.push(point);
                PointId(self.points.len() as u32 - 1)
            }
            None => {
                self.turned_away += 1;
                return PointId::UNNAMED;
            }
        };
        self.ids.insert(name, id);
        id
    }

    fn drop_unused(&mut self, seq: u32) {
        for (index, slot) in self.points.iter_mut().enumerate() {
            if let Some(point) = slot.take_if(|point| point.flows == 0 && point.seq != seq) {
                self.ids.remove(&point.name);
                self.free.push(index as u32);
            }
        }
    }

    pub(crate) fn acquire(&mut self, id: PointId) {
        if let Some(Some(point)) = self.points.get_mut(id.0 as usize) {
            point.flows += 1;
        }
    }

    pub(crate) fn release(&mut self, id: PointId) {
        if let Some(Some(point)) = self.points.get_mut(id.0 as usize) {
            point.flows = point.flows.saturating_sub(1);
        }
    }

    pub(crate) fn name(&self, id: PointId) -> Option<&str> {
        self.points.get(id.0 as usize)?.as_ref().map(|point| &*point.name)
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

    /// Bytes, names taken as long as Linux lets interface names be.
    pub(crate) fn memory(&self) -> usize {
        self.points.capacity() * size_of::<Option<Point>>()
            + self.ids.capacity() * 64
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
        assert_eq!(points.name(used), Some("veth0"));
        assert_eq!(points.name(unused), Some("veth2"));
        assert_eq!(points.name(PointId::UNNAMED), None);
    }
}
