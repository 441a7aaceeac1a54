//! The history: takes in what each drain interval brought, and stays within its bounds.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use orb8_common::network::{FlowCounters, FlowKey, RemainderKey, TcpHealth, TcpKey, kind};
use orb8_proto::v1;

use super::{
    Direction,
    delta::{Delta, Reader, Writer},
    filter::octets,
    flows::{Flow, FlowTable, Identity},
    health::PendingHealth,
    interned::{PointId, Via, ViaId},
    segment::{SEGMENT_OVERHEAD, Segment, sum},
    totals::{Dimensions, Protocol, Totals},
};
use crate::{
    identity::owner::{Kind, OwnerId, OwnerTable},
    ledger,
};

const MILLISECOND: u64 = 1_000_000;

/// Bounds of a [`History`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryLimits {
    /// How far back it goes.
    pub span: Duration,
    /// Memory of all that it keeps, flow table and indices included; 1 MiB at least. Half of it bounds the flow
    /// table.
    pub bytes: usize,
    /// Flows known at a time.
    pub flows: usize,
    /// Series of totals: an owner has one for each direction, protocol and kind of peer that it has.
    pub series: usize,
    /// Pods get names from an API server, and count as not attributed until they have them.
    pub kubernetes: bool,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            span: Duration::from_secs(300),
            bytes: 40 << 20,
            flows: 1_000_000,
            series: 2000,
            kubernetes: false,
        }
    }
}

/// One drained record of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// The flow.
    pub key: &'a FlowKey,
    /// Its counters, with times since the Unix epoch.
    pub counters: &'a FlowCounters,
    /// Who reports it: the owner of the interface or socket.
    pub owner: OwnerId,
    /// Who is at the other end.
    pub peer: OwnerId,
    /// What kind of end the peer is, for the totals: known even where its name has no room.
    pub peer_kind: Kind,
    /// Which way it goes, seen from `owner`.
    pub direction: Direction,
    /// Name of the interface, from [`History::point`].
    pub point: PointId,
    /// The Service and translation, from [`History::via`].
    pub via: ViaId,
}

/// What a drain interval brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Committed {
    /// Flows with a packet in it.
    pub flows_active: u64,
    /// Wire segments.
    pub packets: u64,
    /// Layer-3 bytes.
    pub bytes: u64,
}

/// What the history no longer holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Forgotten {
    /// Segments.
    pub segments: u64,
    /// Records: one a flow and segment.
    pub records: u64,
    /// Wire segments.
    pub packets: u64,
    /// Layer-3 bytes.
    pub bytes: u64,
}

impl Forgotten {
    fn count(&mut self, segment: &Segment) {
        self.segments += 1;
        self.records += u64::from(segment.entries);
        self.packets = self.packets.saturating_add(segment.packets);
        self.bytes = self.bytes.saturating_add(segment.bytes);
    }
}

/// Segments that memory alone may merge.
const RECENT: usize = 10;
/// Deltas collected before they are sorted and encoded.
const BATCH: usize = 2048;
/// More segments than these are merged whatever their size.
const MAX_SEGMENTS: usize = 1024;
const MAX_POINTS: usize = 16_384;
const MAX_PENDING: usize = 4096;
/// The least a history can do its work in.
const MIN_BYTES: usize = 1 << 20;

/// The interval that is being filled.
#[derive(Debug, Default)]
struct Open {
    from_ns: Option<u64>,
    batch: Vec<(u32, Delta)>,
    /// Sorted, encoded batches.
    runs: Vec<Box<[u8]>>,
    run_bytes: usize,
    /// Whether room was made in the flow table already: once an interval, for it costs a look at all flows.
    made_room: bool,
}

/// Recent flows of this machine. Not `Sync` by itself: one writer and its readers share it behind a lock, which
/// need be held for one batch or one query only.
///
/// An interval is [`History::begin`], any number of [`History::add_flow`] and the like, and
/// [`History::commit`]. Queries see committed intervals.
#[derive(Debug)]
pub struct History {
    limits: HistoryLimits,
    pub(super) flows: FlowTable,
    pub(super) segments: VecDeque<Segment>,
    open: Open,
    /// Sequence number of the open interval.
    seq: u32,
    /// End of the last interval.
    last_to_ns: u64,
    pending: PendingHealth,
    totals: Totals,
    /// Memory of `segments`.
    segment_bytes: usize,
    active: u64,
    counts: Counts,
}

/// Cumulative counters behind the ledger.
#[derive(Debug, Default)]
struct Counts {
    /// Of all that was added.
    seen: Size,
    /// Of flows (not remainders of the kernel).
    flows_seen: Size,
    /// Of flows that had no room in the flow table.
    turned_away: Size,
    /// Of flows whose detail was given up later.
    folded: Size,
    folded_flows: u64,
    evicted: Forgotten,
    expired: Forgotten,
    health_matched: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Size {
    packets: u64,
    bytes: u64,
}

impl Size {
    fn add(&mut self, packets: u64, bytes: u64) {
        self.packets = self.packets.saturating_add(packets);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl History {
    /// An empty history.
    #[must_use]
    pub fn new(limits: HistoryLimits) -> Self {
        Self::bounded(HistoryLimits {
            bytes: limits.bytes.max(MIN_BYTES),
            ..limits
        })
    }

    /// As [`History::new`], however small the bound on memory.
    pub(super) fn bounded(limits: HistoryLimits) -> Self {
        let bytes = limits.bytes;
        let flows = limits
            .flows
            .clamp(1, (bytes / 4 * 3 / FlowTable::memory_of(1)).max(1));
        let quiet = u32::try_from(limits.span.as_secs()).unwrap_or(u32::MAX);
        Self {
            limits: HistoryLimits {
                bytes,
                flows,
                ..limits
            },
            flows: FlowTable::new(flows, MAX_POINTS),
            segments: VecDeque::new(),
            open: Open::default(),
            seq: 1,
            last_to_ns: 0,
            pending: PendingHealth::new(MAX_PENDING),
            totals: Totals::new(limits.series, quiet, limits.kubernetes),
            segment_bytes: 0,
            active: 0,
            counts: Counts::default(),
        }
    }

    /// Starts an interval at `from_ns` (Unix time); if the clock went back, where the last one ended.
    pub fn begin(&mut self, from_ns: u64) {
        self.open.from_ns = Some(from_ns.max(self.last_to_ns));
    }

    /// Id of an interface's name, for this interval's observations. Cost: one hash look-up.
    pub fn point(&mut self, name: &str) -> PointId {
        let seq = self.seq;
        self.flows.points.intern(name, seq)
    }

    /// Id of a Service and translation, for this interval's observations. Cost: one hash look-up.
    pub fn via(&mut self, via: Via) -> ViaId {
        let seq = self.seq;
        self.flows.vias.intern(via, seq)
    }

    /// Adds a flow's counters to the open interval. Cost: one hash look-up; now and then the sorting of a batch.
    ///
    /// A flow may come any number of times. One that has no room is counted in the remainder of its owner,
    /// direction and point. One whose peer's address has got another pod, of `owners`, or that goes to another backend
    /// now, is a new flow: what was counted before keeps its name.
    pub fn add_flow(&mut self, observation: &Observation<'_>, owners: &OwnerTable) {
        let &Observation {
            key,
            counters,
            owner,
            peer,
            peer_kind,
            direction,
            point,
            via,
        } = observation;
        let delta = Delta::from_counters(counters);
        self.counts.seen.add(delta.packets, delta.bytes);
        self.counts.flows_seen.add(delta.packets, delta.bytes);
        let dimensions = Dimensions {
            direction,
            protocol: Protocol::of(key),
            peer: Some(peer_kind),
        };
        self.totals.add(owner, dimensions, delta.packets, delta.bytes);
        let identity = Identity {
            key: *key,
            owner,
            direction,
            remainder: false,
        };
        let mut known = self.flows.find(&identity);
        if let Some(id) = known
            && self.is_another(id, peer, via, owners)
        {
            self.flows.supersede(id);
            known = None;
        }
        let id = match known {
            Some(id) => {
                let flow = self.flows.get(id);
                let (before, via_before) = (flow.peer, flow.via);
                if peer != OwnerId::UNKNOWN && before != peer {
                    self.flows.set_peer(id, peer);
                }
                if via != ViaId::STRAIGHT && via_before != via {
                    self.flows.set_via(id, via);
                }
                Some(id)
            }
            None => self.insert(&identity, peer, point).inspect(|&id| {
                if via != ViaId::STRAIGHT {
                    self.flows.set_via(id, via);
                }
            }),
        };
        let Some(id) = id else {
            self.counts.turned_away.add(delta.packets, delta.bytes);
            self.add_remainder_of(key, owner, direction, point, &delta.without_link(key.link_len));
            return;
        };
        self.record(id, &delta);
    }

    /// Whether a flow's key means another connection than before.
    fn is_another(&self, id: u32, peer: OwnerId, via: ViaId, owners: &OwnerTable) -> bool {
        let flow = self.flows.get(id);
        if via != ViaId::STRAIGHT && flow.via != ViaId::STRAIGHT && via != flow.via {
            let (before, now) = (self.flows.vias.get(flow.via), self.flows.vias.get(via));
            let ends = |via: Option<&Via>| via.map(|via| (via.src, via.dst));
            // The same translation under a better name is the same connection.
            if ends(before) != ends(now) {
                return true;
            }
        }
        flow.peer != peer
            && flow.peer != OwnerId::UNKNOWN
            && peer != OwnerId::UNKNOWN
            && owners.get(flow.peer).contradicts(&owners.get(peer))
    }

    /// Flows of the last `intervals` intervals whose peer has no name, and has an address that is `wanted`: by the id that
    /// [`History::name_peer`] takes, with that address and the Unix time of the flow's last packet (in nanoseconds, to a
    /// millisecond, seen from `now_ns`). Cost: a look at all flows.
    pub fn nameless_peers(
        &self,
        intervals: u32,
        now_ns: u64,
        owners: &OwnerTable,
        wanted: impl Fn(&[u8; 16]) -> bool,
    ) -> Vec<(u32, [u8; 16], u64)> {
        let oldest = self.seq.saturating_sub(intervals);
        self.flows
            .iter()
            .filter(|(_, flow)| flow.last_seq >= oldest && !flow.is_remainder())
            .filter_map(|(id, flow)| {
                let address = self.peer_address(flow);
                let nameless = || flow.peer == OwnerId::UNKNOWN || owners.get(flow.peer).name().is_empty();
                let now_ms = (now_ns / MILLISECOND) as u32;
                let age = u64::from(now_ms.wrapping_sub(flow.last_ms));
                // The next whole millisecond: not before the packet.
                let time = now_ns.saturating_sub(age.saturating_mul(MILLISECOND));
                (wanted(&address) && nameless()).then_some((id, address, time))
            })
            .collect()
    }

    /// Names the peer of a flow of the history, also for what was counted before.
    pub fn name_peer(&mut self, flow: u32, peer: OwnerId) {
        self.flows.set_peer(flow, peer);
    }

    /// The real address of a flow's peer.
    fn peer_address(&self, flow: &Flow) -> [u8; 16] {
        let via = self.flows.vias.get(flow.via);
        let (real, wire) = match flow.direction() {
            Direction::Egress => (via.and_then(|via| via.dst), flow.key.dst),
            Direction::Ingress => (via.and_then(|via| via.src), flow.key.src),
        };
        real.map_or(wire, |(address, _)| octets(address))
    }

    /// Drops the totals of owners that have ended and been quiet for as long as the history goes back.
    pub fn remove_ended(&mut self, ended: impl FnMut(&super::Labels) -> bool) {
        self.totals.remove_ended(self.seq, ended);
    }

    fn insert(&mut self, identity: &Identity, peer: OwnerId, point: PointId) -> Option<u32> {
        let mut id = self.flows.insert(identity, peer, point);
        if id.is_none() && !self.open.made_room {
            self.open.made_room = true;
            self.fold(self.flows.max_detail() / 8, self.segments.len());
            id = self.flows.insert(identity, peer, point);
        }
        let id = id?;
        if identity.direction == Direction::Egress
            && identity.key.protocol == orb8_common::network::protocol::TCP
            && let Some((health, records)) = self.pending.take(&identity.key)
        {
            self.counts.health_matched += records;
            self.record_health(id, &health);
        }
        Some(id)
    }

    /// Adds what the kernel's flow map had no room for. Cost: as [`History::add_flow`].
    pub fn add_remainder(
        &mut self,
        key: &RemainderKey,
        counters: &FlowCounters,
        owner: OwnerId,
        direction: Direction,
        point: PointId,
    ) {
        let delta = Delta::from_counters(counters);
        self.counts.seen.add(delta.packets, delta.bytes);
        let dimensions = Dimensions {
            direction,
            protocol: Protocol::Unknown,
            peer: None,
        };
        self.totals.add(owner, dimensions, delta.packets, delta.bytes);
        let at = FlowKey {
            point: key.point,
            kind: key.kind,
            ..FlowKey::default()
        };
        self.add_remainder_of(&at, owner, direction, point, &delta.without_link(key.link_len));
    }

    fn add_remainder_of(
        &mut self,
        at: &FlowKey,
        owner: OwnerId,
        direction: Direction,
        point: PointId,
        delta: &Delta,
    ) {
        if let Some(id) = remainder(&mut self.flows, at, owner, direction, point) {
            self.record(id, delta);
        }
    }

    /// Adds a connection's health to what its socket sends. Cost: one hash look-up.
    ///
    /// Where several points see the connection leave, each of these flows gets it. Without a flow it waits until
    /// the end of the next interval.
    pub fn add_tcp(&mut self, key: &TcpKey, health: &TcpHealth) {
        let ids = self.flows.sent_by(key);
        if ids.is_empty() {
            self.pending.wait(key, health, self.seq);
            return;
        }
        self.counts.health_matched += 1;
        for id in ids {
            self.record_health(id, health);
        }
    }

    fn record_health(&mut self, id: u32, health: &TcpHealth) {
        let flow = self.flows.get_mut(id);
        if health.srtt_us != 0 {
            flow.rtt_us = health.srtt_us;
        }
        if health.connect_us != 0 {
            flow.connect_us = health.connect_us;
        }
        if health.retransmits != 0 || health.failed_connects != 0 {
            let delta = Delta {
                retransmits: health.retransmits,
                failed_connects: health.failed_connects,
                ..Delta::default()
            };
            self.record(id, &delta);
        }
    }

    fn record(&mut self, id: u32, delta: &Delta) {
        let flow = self.flows.get_mut(id);
        flow.last_seq = self.seq;
        if delta.has_packets() {
            flow.last_ms = (delta.last_ns / MILLISECOND) as u32;
        }
        self.open.batch.push((id, *delta));
        if self.open.batch.len() >= BATCH {
            self.encode_batch();
        }
    }

    fn encode_batch(&mut self) {
        if self.open.batch.is_empty() {
            return;
        }
        let base = self.open_from_ns();
        let Open {
            batch,
            runs,
            run_bytes,
            ..
        } = &mut self.open;
        batch.sort_unstable_by_key(|&(id, _)| id);
        let mut writer = Writer::new(base, batch.len() * 20);
        for same in batch.chunk_by(|a, b| a.0 == b.0) {
            let mut delta = same[0].1;
            for (_, more) in &same[1..] {
                delta.add(more);
            }
            writer.push(same[0].0, &delta);
        }
        batch.clear();
        let run = writer.finish();
        *run_bytes += run.len();
        runs.push(run);
        // Flows that come again and again within one interval must not fill the memory.
        if *run_bytes > self.limits.bytes / 4 && runs.len() > 64 {
            let mut readers: Vec<_> = runs.iter().map(|run| Reader::new(run, base)).collect();
            let mut writer = Writer::new(base, *run_bytes / 2);
            sum(&mut readers, |id, delta| writer.push(id, delta));
            let run = writer.finish();
            *run_bytes = run.len();
            *runs = vec![run];
        }
    }

    fn open_from_ns(&mut self) -> u64 {
        let batch = &self.open.batch;
        *self.open.from_ns.get_or_insert_with(|| {
            let first = batch
                .iter()
                .map(|(_, delta)| delta.first_ns)
                .filter(|&first| first != 0)
                .min();
            first.unwrap_or(self.last_to_ns).max(self.last_to_ns)
        })
    }

    /// Ends the interval at `to_ns` (Unix time): its flows can be queried, and the bounds hold again.
    ///
    /// `owners` gives the names for the totals. Cost: linear in the interval's flows; now and then in the
    /// history's.
    pub fn commit(&mut self, to_ns: u64, owners: &OwnerTable) -> Committed {
        if self.open.from_ns.is_none() && self.open.batch.is_empty() && self.last_to_ns == 0 {
            // Nothing says where the first interval began.
            self.begin(to_ns.saturating_sub(1));
        }
        let from_ns = self.open_from_ns();
        self.encode_batch();
        let open = std::mem::take(&mut self.open);
        // The batch keeps its memory for the next interval.
        self.open.batch = open.batch;
        let to_ns = to_ns.max(from_ns.saturating_add(1));
        let mut readers: Vec<_> = open.runs.iter().map(|run| Reader::new(run, from_ns)).collect();
        let mut active = 0;
        let seqs = (self.seq, self.seq);
        let segment = Segment::build((from_ns, to_ns), seqs, open.run_bytes, |push| {
            sum(&mut readers, |id, delta| {
                active += u64::from(delta.packets != 0);
                push(id, delta);
            });
        });
        drop(readers);
        drop(open.runs);
        let committed = Committed {
            flows_active: active,
            packets: segment.packets,
            bytes: segment.bytes,
        };
        self.active = active;
        self.last_to_ns = to_ns;
        self.segment_bytes += segment.memory();
        self.segments.push_back(segment);
        self.totals.end_interval(owners, self.seq);
        self.pending.end_interval(self.seq);
        self.seq = self.seq.wrapping_add(1);
        self.expire();
        self.merge_old();
        self.relieve();
        committed
    }

    fn span_ns(&self) -> u64 {
        u64::try_from(self.limits.span.as_nanos()).unwrap_or(u64::MAX)
    }

    fn expire(&mut self) {
        let horizon = self.last_to_ns.saturating_sub(self.span_ns());
        while self.segments.len() > 1
            && let Some(segment) = self.segments.pop_front_if(|segment| segment.to_ns <= horizon)
        {
            self.counts.expired.count(&segment);
            self.forget(&segment);
        }
    }

    /// Frees what only a dropped segment, the oldest one, referred to.
    fn forget(&mut self, segment: &Segment) {
        self.segment_bytes -= segment.memory();
        let mut reader = segment.read();
        while let Some((id, _)) = reader.take() {
            if self.flows.get(id).last_seq <= segment.last_seq {
                self.flows.remove(id);
            }
        }
        self.flows.shrink();
    }

    /// Makes segments older than a fifth of the span a thirtieth of it long: by whole buckets, so that each
    /// record is merged once.
    fn merge_old(&mut self) {
        let span = self.span_ns();
        let bucket = (span / 30).max(1);
        let fine_from = self.last_to_ns.saturating_sub(span / 5);
        let old = self.segments.len().saturating_sub(RECENT);
        let mut start = 0;
        while start < old {
            let number = self.segments[start].from_ns / bucket;
            let end_ns = (number + 1).saturating_mul(bucket);
            let len = self
                .segments
                .range(start..old)
                .take_while(|segment| segment.from_ns / bucket == number)
                .count();
            if end_ns > fine_from {
                break;
            }
            if len > 1 && start + len < old {
                self.merge(start, len);
                // One bucket a commit is enough, but after a jump of the clock.
                break;
            }
            start += len;
        }
    }

    fn merge(&mut self, start: usize, len: usize) {
        let Some(merged) = Segment::merge(self.segments.range(start..start + len)) else {
            return;
        };
        let before: usize = self.segments.range(start..start + len).map(Segment::memory).sum();
        self.segment_bytes = self.segment_bytes - before + merged.memory();
        self.segments.drain(start + 1..start + len);
        self.segments[start] = merged;
    }

    /// Brings memory below its bound: by merging in time, then by giving up the detail of flows that ended, then
    /// by forgetting; old before recent.
    fn relieve(&mut self) {
        // Flows go before fine steps of time: segments get a third of the memory as long as they can be merged.
        while self.segment_bytes > self.limits.bytes / 3 {
            let old = self.segments.len().saturating_sub(RECENT);
            let recent = self.segments.len().saturating_sub(1);
            if !self.merge_best(old) && !self.merge_best(recent) {
                break;
            }
        }
        while self.memory() > self.limits.bytes || self.segments.len() > MAX_SEGMENTS {
            let old = self.segments.len().saturating_sub(RECENT);
            let batch = (self.flows.detail() / 8).max(1024);
            if self.merge_best(old) || self.fold(batch, old) > 0 {
                continue;
            }
            // The newest one is kept apart for those who poll.
            let recent = self.segments.len().saturating_sub(1);
            if self.merge_best(recent) || self.fold(batch, self.segments.len()) > 0 {
                continue;
            }
            if self.segments.len() <= 1 {
                return;
            }
            if let Some(segment) = self.segments.pop_front() {
                self.counts.evicted.count(&segment);
                self.forget(&segment);
            }
        }
    }

    /// Merges, of the first `among` segments, the two neighbours that are shortest for their age.
    fn merge_best(&mut self, among: usize) -> bool {
        let longest = self.span_ns() / 5;
        let now = self.last_to_ns;
        let best = (1..among.min(self.segments.len()))
            .filter_map(|second| {
                let (a, b) = (&self.segments[second - 1], &self.segments[second]);
                let length = a.duration_ns().saturating_add(b.duration_ns());
                let age = now.saturating_sub(a.from_ns).max(1);
                (length <= longest).then_some((length as f64 / age as f64, second - 1))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, start)) = best {
            self.merge(start, 2);
        }
        best.is_some()
    }

    /// Gives up the detail of at least `wanted` flows, those that ended longest ago, as far as they ended within
    /// the first `among` segments: their counts go to remainders in the same segments. How many flows.
    ///
    /// Cost: a look at all flows, and a copy of the segments concerned.
    fn fold(&mut self, wanted: usize, among: usize) -> usize {
        let among = among.min(self.segments.len());
        let mut ended = vec![0usize; among];
        for (_, flow) in self.flows.iter() {
            if !flow.is_remainder() {
                let segment = self
                    .segments
                    .partition_point(|segment| segment.last_seq < flow.last_seq);
                if let Some(count) = ended.get_mut(segment) {
                    *count += 1;
                }
            }
        }
        let mut enough = 0;
        let mut last = 0;
        for (segment, count) in ended.iter().enumerate() {
            enough += count;
            if *count > 0 {
                last = segment;
            }
            if enough >= wanted {
                break;
            }
        }
        if enough == 0 {
            return 0;
        }
        let cutoff = self.segments[last].last_seq;
        let mut victims = Vec::with_capacity(enough);
        for index in 0..=last {
            self.fold_segment(index, cutoff, &mut victims);
        }
        for &id in &victims {
            self.flows.remove(id);
        }
        self.counts.folded_flows += victims.len() as u64;
        self.flows.shrink();
        victims.len()
    }

    fn fold_segment(&mut self, index: usize, cutoff: u32, victims: &mut Vec<u32>) {
        let Self {
            segments,
            flows,
            counts,
            ..
        } = self;
        let segment = &segments[index];
        let mut kept = Writer::new(segment.from_ns, segment.memory());
        let mut remainders: BTreeMap<u32, Delta> = BTreeMap::new();
        let mut folded = 0;
        let mut reader = segment.read();
        while let Some((id, delta)) = reader.take() {
            let flow = *flows.get(id);
            if flow.is_remainder() || flow.last_seq > cutoff {
                kept.push(id, &delta);
                continue;
            }
            let to = remainder(flows, &flow.key, flow.owner, flow.direction(), flow.point);
            let Some(to) = to else {
                kept.push(id, &delta);
                continue;
            };
            let target = flows.get_mut(to);
            target.last_seq = target.last_seq.max(segment.last_seq);
            remainders
                .entry(to)
                .or_default()
                .add(&delta.without_link(flow.key.link_len));
            counts.folded.add(delta.packets, delta.bytes);
            folded += 1;
            // Its last entry is in the segment that it ended in.
            if flow.last_seq <= segment.last_seq {
                victims.push(id);
            }
        }
        if folded == 0 {
            return;
        }
        let mut moved = Writer::new(segment.from_ns, remainders.len() * 24);
        for (id, delta) in &remainders {
            moved.push(*id, delta);
        }
        let (kept, moved) = (kept.finish(), moved.finish());
        let mut readers = [
            Reader::new(&kept, segment.from_ns),
            Reader::new(&moved, segment.from_ns),
        ];
        let mut smaller = Segment::build(
            (segment.from_ns, segment.to_ns),
            (segment.first_seq, segment.last_seq),
            kept.len() + moved.len(),
            |push| sum(&mut readers, push),
        );
        smaller.folded = segment.folded + folded;
        self.segment_bytes = self.segment_bytes - segment.memory() + smaller.memory();
        segments[index] = smaller;
    }

    /// Whether a flow of the history names an owner, or a total waits for its name: for [`OwnerTable::retain`], between
    /// intervals.
    pub fn owners_in_use(&self) -> impl Fn(OwnerId) -> bool + '_ {
        let waiting = self.totals.waiting_owners();
        move |owner| self.flows.names(owner) || waiting.contains(&owner)
    }

    /// Totals since the start, as of the last committed interval.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Flows with a packet in the last interval.
    #[must_use]
    pub const fn flows_active(&self) -> u64 {
        self.active
    }

    /// The span that the history covers (Unix time in nanoseconds), if it has any interval.
    #[must_use]
    pub fn covered(&self) -> Option<(u64, u64)> {
        Some((self.segments.front()?.from_ns, self.segments.back()?.to_ns))
    }

    /// End of the last interval (Unix time in nanoseconds); 0 before the first.
    #[must_use]
    pub const fn last_to_ns(&self) -> u64 {
        self.last_to_ns
    }

    /// Memory allocated, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.segment_bytes
            + self.segments.capacity().saturating_sub(self.segments.len()) * SEGMENT_OVERHEAD
            + self.flows.memory()
            + self.open.batch.capacity() * size_of::<(u32, Delta)>()
            + self.open.run_bytes
            + self.pending.memory()
            + self.totals.memory()
    }

    /// What was dropped before its time, for want of memory.
    #[must_use]
    pub const fn evicted(&self) -> Forgotten {
        self.counts.evicted
    }

    /// What was dropped since it was older than the span.
    #[must_use]
    pub const fn expired(&self) -> Forgotten {
        self.counts.expired
    }

    /// Ledger rows of this stage, each `seen = counted + filtered + lost`:
    /// `flow_table` (packets that have, or had, a flow of their own in the history; lost is detail, for the
    /// counts are in remainders), `history` (packets kept for the whole span) and `tcp_health` (records that
    /// found their flow; filtered are those of connections that pass no observed point).
    #[must_use]
    pub fn ledger(&self) -> Vec<v1::LedgerRow> {
        let Counts {
            seen,
            flows_seen,
            turned_away,
            folded,
            evicted,
            ..
        } = &self.counts;
        let row =
            |stage: &str, unit: &str, seen: u64, lost: u64, lost_bytes: u64, advice: &str| v1::LedgerRow {
                lost_bytes,
                ..ledger::row("network", stage, unit, [seen, 0, lost], advice)
            };
        let unmatched = self.pending.unmatched();
        vec![
            row(
                "flow_table",
                "packets",
                flows_seen.packets,
                turned_away.packets.saturating_add(folded.packets),
                turned_away.bytes.saturating_add(folded.bytes),
                "these packets are counted by owner and direction, without their flow; raise the history's memory",
            ),
            row(
                "history",
                "packets",
                seen.packets,
                evicted.packets,
                evicted.bytes,
                "the history is shorter than asked for, totals are exact; raise the history's memory",
            ),
            // Sockets of every network namespace report; connections inside one never pass a point.
            v1::LedgerRow {
                family: "network".to_owned(),
                stage: "tcp_health".to_owned(),
                unit: "records".to_owned(),
                seen: self.counts.health_matched + unmatched,
                counted: self.counts.health_matched,
                filtered: unmatched,
                ..v1::LedgerRow::default()
            },
        ]
    }

    /// The history's bounds and how full they are.
    #[must_use]
    pub fn usage(&self) -> Vec<v1::Limit> {
        let limit =
            |name: &str, unit: &str, used: usize, max: usize, turned_away: u64, setting: &str| v1::Limit {
                name: name.to_owned(),
                unit: unit.to_owned(),
                used: used as u64,
                max: max as u64,
                turned_away,
                setting: setting.to_owned(),
            };
        let counts = &self.counts;
        vec![
            limit(
                "history_memory",
                "bytes",
                self.memory(),
                self.limits.bytes,
                counts.evicted.bytes,
                "",
            ),
            limit(
                "history_flows",
                "flows",
                self.flows.detail(),
                self.flows.max_detail(),
                counts.folded_flows,
                "",
            ),
            limit(
                "interface_names",
                "names",
                self.flows.points.len(),
                self.flows.points.max(),
                self.flows.points.turned_away(),
                "",
            ),
            limit(
                "translations",
                "connections",
                self.flows.vias.len(),
                self.flows.vias.max(),
                self.flows.vias.turned_away(),
                "",
            ),
            limit(
                "total_series",
                "series",
                self.totals.len(),
                self.totals.max(),
                self.totals.turned_away(),
                "",
            ),
        ]
    }
}

/// The remainder of an owner, direction and point, made if need be; that of all owners and points if there are
/// too many.
fn remainder(
    flows: &mut FlowTable,
    at: &FlowKey,
    owner: OwnerId,
    direction: Direction,
    point: PointId,
) -> Option<u32> {
    let key = FlowKey {
        point: at.point,
        kind: at.kind & (kind::EGRESS | kind::SOCKET),
        ..FlowKey::default()
    };
    let identity = Identity {
        key,
        owner,
        direction,
        remainder: true,
    };
    if let Some(id) = flows.find(&identity) {
        return Some(id);
    }
    if let Some(id) = flows.insert(&identity, OwnerId::UNKNOWN, point) {
        return Some(id);
    }
    let identity = Identity {
        key: FlowKey::default(),
        owner: OwnerId::UNKNOWN,
        direction,
        remainder: true,
    };
    flows
        .find(&identity)
        .or_else(|| flows.insert_last_resort(&identity))
}
