//! The flow table: which flow a small id stands for.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    hash::{BuildHasher, RandomState},
};

use hashbrown::HashTable;
use orb8_common::network::{FlowKey, TcpKey, kind, protocol};

use super::{
    Direction,
    interned::{PointId, PointTable, ViaId, ViaTable},
};
use crate::identity::owner::OwnerId;

const CHUNK: usize = 1024;
/// Connections with translated addresses, or Services and their backends, that flows refer to.
const MAX_VIAS: usize = 65_536;

/// One flow: 88 bytes, for a hundred thousand of them are normal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    /// Who reported it.
    pub(crate) owner: OwnerId,
    /// Who is at the other end.
    pub(crate) peer: OwnerId,
    /// Last known smoothed round-trip time; 0 unknown.
    pub(crate) rtt_us: u32,
    /// Last known time from `connect()` to established; 0 unknown.
    pub(crate) connect_us: u32,
    pub(crate) point: PointId,
    /// The Service that it goes through, and what its addresses were translated from.
    pub(crate) via: ViaId,
    /// The last drain interval in which it did anything.
    pub(crate) last_seq: u32,
    /// Unix milliseconds of its last packet, the low 32 bits.
    pub(crate) last_ms: u32,
    /// Tells this flow from earlier ones with the same id.
    pub(crate) generation: u32,
    flags: u8,
}

const USED: u8 = 1;
const EGRESS: u8 = 1 << 1;
const REMAINDER: u8 = 1 << 2;
/// Its key means another flow by now: another pod has got the address of its peer.
const SUPERSEDED: u8 = 1 << 3;

impl Flow {
    /// A flow that no table holds: one packet's.
    pub(crate) fn of_packet(identity: &Identity) -> Self {
        Self {
            key: identity.key,
            owner: identity.owner,
            peer: OwnerId::UNKNOWN,
            rtt_us: 0,
            connect_us: 0,
            point: PointId::UNNAMED,
            via: ViaId::STRAIGHT,
            last_seq: 0,
            last_ms: 0,
            generation: 0,
            flags: identity.flags(),
        }
    }

    pub(crate) const fn is_remainder(&self) -> bool {
        self.flags & REMAINDER != 0
    }

    pub(crate) const fn direction(&self) -> Direction {
        if self.flags & EGRESS != 0 {
            Direction::Egress
        } else {
            Direction::Ingress
        }
    }

    /// Whether it has ports: a TCP, UDP, … packet whose header was seen.
    pub(crate) const fn has_ports(&self) -> bool {
        has_ports(&self.key)
    }
}

pub(crate) const fn has_ports(key: &FlowKey) -> bool {
    key.kind & (kind::IPV4 | kind::IPV6) != 0
        && key.kind & kind::FRAGMENT == 0
        && matches!(
            key.protocol,
            protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP
        )
}

/// What makes a flow of the history one flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) key: FlowKey,
    pub(crate) owner: OwnerId,
    pub(crate) direction: Direction,
    pub(crate) remainder: bool,
}

impl Identity {
    const fn flags(&self) -> u8 {
        let egress = if matches!(self.direction, Direction::Egress) {
            EGRESS
        } else {
            0
        };
        USED | egress | if self.remainder { REMAINDER } else { 0 }
    }

    fn is(&self, flow: &Flow) -> bool {
        flow.key == self.key && flow.owner == self.owner && flow.flags == self.flags()
    }
}

/// Flows by id and by identity. Ids are small, and low ones are given out first.
#[derive(Debug)]
pub(crate) struct FlowTable {
    chunks: Vec<Box<[Flow]>>,
    /// Hashed by what a packet of the flow says on the wire, so that all observations of it are neighbours.
    index: HashTable<u32>,
    hasher: RandomState,
    free: BinaryHeap<Reverse<u32>>,
    next: u32,
    generation: u32,
    /// How many flows name an owner at either end, by its index.
    owners: Vec<u32>,
    pub(crate) points: PointTable,
    pub(crate) vias: ViaTable,
    detail: usize,
    remainders: usize,
    max_detail: usize,
    max_remainders: usize,
}

impl FlowTable {
    pub(crate) fn new(max_detail: usize, max_points: usize) -> Self {
        Self {
            chunks: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            free: BinaryHeap::new(),
            next: 0,
            generation: 0,
            owners: Vec::new(),
            points: PointTable::new(max_points),
            vias: ViaTable::new(MAX_VIAS),
            detail: 0,
            remainders: 0,
            max_detail,
            // Each owner needs one a direction and point; beyond this bound they share the last resort.
            max_remainders: max_detail / 8 + 64,
        }
    }

    /// Bytes that `flows` flows take at most, index included.
    pub(crate) const fn memory_of(flows: usize) -> usize {
        // Index: 5 bytes a slot, at most 7/8 full and at least half of that.
        flows * (size_of::<Flow>() + 12)
    }

    #[inline]
    pub(crate) fn get(&self, id: u32) -> &Flow {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: u32) -> &mut Flow {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    /// The flow of this id and generation, if it is still there.
    pub(crate) fn get_live(&self, id: u32, generation: u32) -> Option<&Flow> {
        let flow = self.chunks.get(id as usize / CHUNK)?.get(id as usize % CHUNK)?;
        (flow.flags & USED != 0 && flow.generation == generation).then_some(flow)
    }

    pub(crate) fn find(&self, identity: &Identity) -> Option<u32> {
        let hash = hash(&self.hasher, &identity.key, identity.owner, identity.remainder);
        self.index.find(hash, |&id| identity.is(self.get(id))).copied()
    }

    /// Stores a flow that [`FlowTable::find`] did not find; `None` if the table is full.
    pub(crate) fn insert(&mut self, identity: &Identity, peer: OwnerId, point: PointId) -> Option<u32> {
        let (count, max) = if identity.remainder {
            (&mut self.remainders, self.max_remainders)
        } else {
            (&mut self.detail, self.max_detail)
        };
        if *count >= max {
            return None;
        }
        *count += 1;
        let id = self.allocate();
        self.generation = self.generation.wrapping_add(1);
        *self.get_mut(id) = Flow {
            key: identity.key,
            owner: identity.owner,
            peer,
            rtt_us: 0,
            connect_us: 0,
            point,
            via: ViaId::STRAIGHT,
            last_seq: 0,
            last_ms: 0,
            generation: self.generation,
            flags: identity.flags(),
        };
        let Self {
            index,
            chunks,
            hasher,
            ..
        } = self;
        let rehash = |&id: &u32| {
            let flow = &chunks[id as usize / CHUNK][id as usize % CHUNK];
            hash(hasher, &flow.key, flow.owner, flow.is_remainder())
        };
        index.insert_unique(rehash(&id), id, rehash);
        self.acquire(identity.owner);
        self.acquire(peer);
        self.points.acquire(point);
        Some(id)
    }

    /// Stores a remainder flow even if the table has no room for more of them: for the last resort, of which
    /// there are only as many as directions.
    pub(crate) fn insert_last_resort(&mut self, identity: &Identity) -> Option<u32> {
        self.max_remainders += 1;
        let id = self.insert(identity, OwnerId::UNKNOWN, PointId::UNNAMED);
        self.max_remainders -= 1;
        id
    }

    fn allocate(&mut self) -> u32 {
        if let Some(Reverse(id)) = self.free.pop() {
            return id;
        }
        if self.next as usize == self.chunks.len() * CHUNK {
            let empty = Flow {
                key: FlowKey::default(),
                owner: OwnerId::UNKNOWN,
                peer: OwnerId::UNKNOWN,
                rtt_us: 0,
                connect_us: 0,
                point: PointId::UNNAMED,
                via: ViaId::STRAIGHT,
                last_seq: 0,
                last_ms: 0,
                generation: 0,
                flags: 0,
            };
            self.chunks.push(vec![empty; CHUNK].into_boxed_slice());
        }
        self.next += 1;
        self.next - 1
    }

    /// Forgets a flow.
    pub(crate) fn remove(&mut self, id: u32) {
        let flow = *self.get(id);
        if flow.flags & SUPERSEDED == 0 && !self.unlink(&flow, id) {
            debug_assert!(false, "a flow is removed once");
            return;
        }
        if flow.is_remainder() {
            self.remainders -= 1;
        } else {
            self.detail -= 1;
        }
        self.get_mut(id).flags = 0;
        self.free.push(Reverse(id));
        self.release(flow.owner);
        self.release(flow.peer);
        self.points.release(flow.point);
        self.vias.release(flow.via);
    }

    fn unlink(&mut self, flow: &Flow, id: u32) -> bool {
        let hash = hash(&self.hasher, &flow.key, flow.owner, flow.is_remainder());
        let Ok(entry) = self.index.find_entry(hash, |&other| other == id) else {
            return false;
        };
        entry.remove();
        true
    }

    /// Keeps a flow as what it was, and lets its key mean a new one.
    pub(crate) fn supersede(&mut self, id: u32) {
        let flow = *self.get(id);
        if self.unlink(&flow, id) {
            self.get_mut(id).flags |= SUPERSEDED;
        }
    }

    /// Changes how the flow is known to go.
    pub(crate) fn set_via(&mut self, id: u32, via: ViaId) {
        let before = std::mem::replace(&mut self.get_mut(id).via, via);
        self.vias.acquire(via);
        self.vias.release(before);
    }

    /// Gives memory of flows that are gone back, as far as no flow has a higher id. Cost: of the freed ids.
    pub(crate) fn shrink(&mut self) {
        let mut next = self.next;
        while next > 0 && self.get(next - 1).flags & USED == 0 {
            next -= 1;
        }
        let chunks = (next as usize).div_ceil(CHUNK);
        // With one chunk to spare, a table whose size swings a little does not come and go.
        if chunks + 1 < self.chunks.len() {
            self.next = next;
            self.chunks.truncate(chunks);
            self.chunks.shrink_to_fit();
            self.free.retain(|&Reverse(id)| id < next);
            self.free.shrink_to(next as usize / 8);
            let Self {
                index,
                chunks,
                hasher,
                ..
            } = self;
            index.shrink_to(index.len() * 2, |&id| {
                let flow = &chunks[id as usize / CHUNK][id as usize % CHUNK];
                hash(hasher, &flow.key, flow.owner, flow.is_remainder())
            });
        }
    }

    /// Changes who is at the other end.
    pub(crate) fn set_peer(&mut self, id: u32, peer: OwnerId) {
        let before = std::mem::replace(&mut self.get_mut(id).peer, peer);
        self.acquire(peer);
        self.release(before);
    }

    fn acquire(&mut self, owner: OwnerId) {
        let index = owner.0 as usize;
        if self.owners.len() <= index {
            self.owners.resize(index + 1, 0);
        }
        self.owners[index] += 1;
    }

    fn release(&mut self, owner: OwnerId) {
        if let Some(count) = self.owners.get_mut(owner.0 as usize) {
            *count = count.saturating_sub(1);
        }
    }

    /// Whether a flow names this owner.
    pub(crate) fn names(&self, owner: OwnerId) -> bool {
        self.owners.get(owner.0 as usize).is_some_and(|&count| count > 0)
    }

    /// Other observations of the packets of a flow: same addresses, ports and protocol.
    pub(crate) fn observations<'a>(
        &'a self,
        key: &FlowKey,
    ) -> impl Iterator<Item = (u32, &'a Flow)> + use<'a> {
        let key = *key;
        let hash = self.hasher.hash_one(Wire(&key));
        self.index
            .iter_hash(hash)
            .map(|&id| (id, self.get(id)))
            .filter(move |(_, flow)| {
                let other = &flow.key;
                !flow.is_remainder()
                    && other.src == key.src
                    && other.dst == key.dst
                    && other.sport == key.sport
                    && other.dport == key.dport
                    && other.protocol == key.protocol
                    && (other.kind ^ key.kind) & (kind::IPV4 | kind::IPV6 | kind::FRAGMENT) == 0
            })
    }

    /// Flows of what the socket of this connection sends, as its own workload reports them.
    pub(crate) fn sent_by(&self, tcp: &TcpKey) -> Vec<u32> {
        let mut key = tcp_flow(tcp);
        let ids = |key: &FlowKey| -> Vec<u32> {
            self.observations(key)
                .filter(|(_, flow)| flow.direction() == Direction::Egress)
                .map(|(id, _)| id)
                .collect()
        };
        key.kind = if tcp.local.starts_with(&MAPPED) {
            kind::IPV4
        } else {
            kind::IPV6
        };
        ids(&key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Flow)> {
        (0u32..)
            .zip(self.chunks.iter().flat_map(|chunk| chunk.iter()))
            .filter(|(_, flow)| flow.flags & USED != 0)
    }

    /// Flows with detail of their own.
    pub(crate) const fn detail(&self) -> usize {
        self.detail
    }

    pub(crate) const fn max_detail(&self) -> usize {
        self.max_detail
    }

    /// Bytes allocated.
    pub(crate) fn memory(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<Flow>()
            + self.index.allocation_size()
            + self.free.capacity() * 4
            + self.owners.capacity() * 4
            + self.points.memory()
            + self.vias.memory()
    }
}

/// First 12 bytes of an IPv4-mapped address (RFC 4291, 2.5.5.2).
pub(crate) const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// The key, but for point and direction, of what a socket sends.
pub(crate) fn tcp_flow(tcp: &TcpKey) -> FlowKey {
    FlowKey {
        src: tcp.local,
        dst: tcp.remote,
        sport: tcp.local_port,
        dport: tcp.remote_port,
        protocol: protocol::TCP,
        ..FlowKey::default()
    }
}

/// The part of a key that every observation of a packet has in common.
struct Wire<'a>(&'a FlowKey);

impl std::hash::Hash for Wire<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let key = self.0;
        let mut wire = [0; 37];
        wire[..16].copy_from_slice(&key.src);
        wire[16..32].copy_from_slice(&key.dst);
        wire[32..34].copy_from_slice(&key.sport.to_ne_bytes());
        wire[34..36].copy_from_slice(&key.dport.to_ne_bytes());
        wire[36] = key.protocol;
        state.write(&wire);
    }
}

/// Flows that any number of workloads have alike, such as ARP or a broadcast, are told apart by the hash as
/// well; nobody looks for other observations of them.
fn hash(hasher: &RandomState, key: &FlowKey, owner: OwnerId, remainder: bool) -> u64 {
    let shared = remainder
        || key.kind & (kind::IPV4 | kind::IPV6) == 0
        || key.protocol != protocol::TCP && !unicast(key);
    if shared {
        hasher.hash_one((key, owner))
    } else {
        hasher.hash_one(Wire(key))
    }
}

fn unicast(key: &FlowKey) -> bool {
    let specified = |address: &[u8; 16]| {
        if address.starts_with(&MAPPED) {
            address[12..] != [0; 4]
        } else {
            *address != [0; 16]
        }
    };
    let to_many = if key.dst.starts_with(&MAPPED) {
        key.dst[12] >= 224
    } else {
        key.dst[0] == 0xff
    };
    specified(&key.src) && specified(&key.dst) && !to_many
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(n: u16) -> Identity {
        let mut key = FlowKey {
            sport: n,
            protocol: protocol::TCP,
            kind: kind::IPV4 | kind::EGRESS,
            point: u64::from(n),
            ..FlowKey::default()
        };
        key.src[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
        key.dst[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 2]);
        Identity {
            key,
            owner: OwnerId(u32::from(n % 3)),
            direction: Direction::Egress,
            remainder: false,
        }
    }

    #[test]
    fn a_flow_is_eighty_eight_bytes() {
        assert_eq!(size_of::<Flow>(), 88);
    }

    #[test]
    fn ids_are_reused_low_ones_first_and_memory_is_given_back() {
        let mut flows = FlowTable::new(10_000, 10);
        for n in 0..5000 {
            let id = flows.insert(&identity(n), OwnerId(7), PointId::UNNAMED);
            assert_eq!(id, Some(u32::from(n)));
        }
        let full = flows.memory();
        assert!(flows.names(OwnerId(7)));
        for n in 1..5000 {
            assert_eq!(flows.find(&identity(n)), Some(u32::from(n)));
            flows.remove(u32::from(n));
        }
        flows.shrink();
        assert!(flows.memory() < full / 4, "{} of {full}", flows.memory());
        assert_eq!(
            flows.insert(&identity(9), OwnerId::UNKNOWN, PointId::UNNAMED),
            Some(1)
        );
        assert_eq!(flows.find(&identity(0)), Some(0));
        assert!(!flows.names(OwnerId(1)));
    }

    #[test]
    fn every_observation_of_a_connection_is_found() {
        let mut flows = FlowTable::new(100, 10);
        let sender = identity(3);
        let mut receiver = sender;
        receiver.key.point = 99;
        receiver.key.kind &= !kind::EGRESS;
        receiver.direction = Direction::Ingress;
        receiver.owner = OwnerId(5);
        let sent = flows.insert(&sender, OwnerId::UNKNOWN, PointId::UNNAMED);
        let received = flows.insert(&receiver, OwnerId::UNKNOWN, PointId::UNNAMED);
        flows.insert(&identity(4), OwnerId::UNKNOWN, PointId::UNNAMED);
        let mut found: Vec<_> = flows.observations(&sender.key).map(|(id, _)| Some(id)).collect();
        found.sort_unstable();
        assert_eq!(found, [sent, received]);
        let tcp = TcpKey {
            local: sender.key.src,
            remote: sender.key.dst,
            local_port: 3,
            ..TcpKey::default()
        };
        assert_eq!(flows.sent_by(&tcp), [sent.unwrap_or_default()]);
    }
}
