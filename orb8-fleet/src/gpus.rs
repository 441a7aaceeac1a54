//! GPUs of many nodes.
//!
//! A device is of one node, and each node's agent is the only one to tell of it: the answer of all is that of each, in one
//! order. Devices are held until all have answered: bounded in sum, and for each node, by what they take in memory. An
//! answer that is too large is cut, and the node is named.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::atomic::{AtomicUsize, Ordering},
};

use futures::StreamExt as _;
use orb8_proto::{
    Responses,
    v1::{
        CudaBatch, CudaCalls, GpuBatch, GpuDevice, GpuHolder, GpuQuery, GpuSource, GpuSummary, GpuWait,
        LedgerRow, NodeAnswer, NodeState, QueryGpusResponse, State, query_gpus_response::Part,
    },
};
use prost::Message as _;
use prost_types::Timestamp;
use tonic::{Code, Status};

use crate::{
    ask::{Asked, Selection, ToldBy as _, in_order, nobody},
    hosts::name_node,
    hub::{Hub, Wanted},
    ledger::trimmed,
    times::{earlier_by, earliest, latest, shift, shift_device},
};

/// Devices, or rows of calls, of one message of the answer.
const BATCH: usize = 128;
/// What counts as one of [`Limits::max_rows`](crate::Limits::max_rows): bytes of memory.
const ROW: usize = 256;
/// What one node may tell, in the same unit: 16 MiB. A hundred instances, shared by fifty each, take half of it.
const ROWS_OF_A_NODE: usize = 65_536;
/// A node's whole answer, which is a few messages, may take so many times what each of them may.
const DEADLINES: u32 = 4;
/// Sources of readings. Others tell of who holds what.
const OF_READINGS: [&str; 2] = ["dcgm", "nvml"];

/// Room for what members tell. In rows of [`ROW`] bytes.
#[derive(Debug)]
struct Room {
    all: AtomicUsize,
    most: usize,
}

impl Room {
    const fn new(most: usize) -> Self {
        Self {
            all: AtomicUsize::new(most),
            most,
        }
    }

    /// Takes what is left `of_node` and of all.
    fn take(&self, bytes: usize, of_node: &mut usize) -> Result<(), Status> {
        let rows = bytes.div_ceil(ROW);
        let Some(left) = of_node.checked_sub(rows) else {
            return Err(Status::resource_exhausted(format!(
                "it told more than the {} MiB that one node may take",
                (ROWS_OF_A_NODE.min(self.most) * ROW) >> 20
            )));
        };
        let taken = self
            .all
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| all.checked_sub(rows));
        if taken.is_err() {
            return Err(Status::resource_exhausted(format!(
                "all nodes together told more than the {} MiB that an answer may take: ask for less, by nodes or namespaces",
                (self.most * ROW) >> 20
            )));
        }
        *of_node = left;
        Ok(())
    }
}

/// What a device takes in memory, bytes.
fn size_of_device(device: &GpuDevice) -> usize {
    let other = device
        .readings
        .as_ref()
        .map_or(0, |readings| readings.other.len());
    let holders: usize = device
        .holders
        .iter()
        .map(|holder| {
            let waits = holder.idle.as_ref().map_or(0, |idle| idle.waits.len());
            size_of::<GpuHolder>()
                + holder.device_ids.len() * size_of::<String>()
                + size_of_val(holder.pids.as_slice())
                + waits * size_of::<GpuWait>()
        })
        .sum();
    size_of::<GpuDevice>()
        + device.encoded_len()
        + holders
        + device.sources.len() * size_of::<String>()
        + other * size_of::<(String, f64)>() * 2
}

fn size_of_calls(calls: &CudaCalls) -> usize {
    size_of::<CudaCalls>() + calls.encoded_len()
}

fn size_of_summary(summary: &GpuSummary) -> usize {
    summary.encoded_len()
        + summary.notes.len() * size_of::<String>()
        + summary.ledger.len() * size_of::<LedgerRow>()
        + summary.sources.len() * size_of::<GpuSource>()
        + summary.nodes.len() * size_of::<NodeAnswer>()
}

/// One member's part.
#[derive(Debug)]
struct PartOf {
    asked: Asked,
    devices: Vec<GpuDevice>,
    calls: Vec<CudaCalls>,
    summary: Option<GpuSummary>,
    error: Option<Status>,
}

impl PartOf {
    /// All that one member says, in time.
    async fn take(asked: Asked, query: GpuQuery, room: &Room, whole: std::time::Duration) -> Self {
        let mut part = Self {
            asked,
            devices: Vec::new(),
            calls: Vec::new(),
            summary: None,
            error: None,
        };
        let read = tokio::time::timeout(whole, part.read(query, room)).await;
        part.error = match read {
            Ok(read) => read.err(),
            Err(_) => Some(Status::deadline_exceeded(format!(
                "its answer had not ended after {} s",
                whole.as_secs_f64()
            ))),
        };
        part
    }

    async fn read(&mut self, query: GpuQuery, room: &Room) -> Result<(), Status> {
        let (mut stream, mut message) = self
            .asked
            .try_within(|mut client| {
                let query = query.clone();
                async move {
                    let mut stream = client.query_gpus(query).await?.into_inner();
                    let first = stream.message().await?;
                    Ok((stream, first))
                }
            })
            .await?;
        let correction = self.asked.member.clock.correction_ns();
        let mut left = ROWS_OF_A_NODE.min(room.most);
        while let Some(QueryGpusResponse { part }) = message.take() {
            match part {
                Some(Part::Batch(batch)) => {
                    for mut device in batch.devices {
                        room.take(size_of_device(&device), &mut left)?;
                        shift_device(&mut device, correction);
                        self.devices.push(device);
                    }
                }
                Some(Part::Cuda(batch)) => {
                    for calls in batch.calls {
                        room.take(size_of_calls(&calls), &mut left)?;
                        self.calls.push(calls);
                    }
                }
                Some(Part::Summary(summary)) => {
                    room.take(size_of_summary(&summary), &mut left)?;
                    self.summary = Some(summary);
                }
                None => {}
            }
            message = self.asked.within(stream.message()).await?;
        }
        Ok(())
    }

    /// What its agent calls its node.
    fn own_name(&self) -> &str {
        self.summary.as_ref().map_or("", |summary| &summary.node)
    }

    /// Names the node in all that it told.
    fn name_nodes(&mut self) {
        let own = self.own_name().to_owned();
        let member = self.asked.member.name.clone();
        let devices = self.devices.iter_mut().map(|device| &mut device.node);
        let calls = self.calls.iter_mut().map(|calls| &mut calls.node);
        devices
            .chain(calls)
            .for_each(|node| name_node(node, &member, &own));
    }

    /// Whether it has nothing to do with GPUs: then there is nothing to know about its part.
    fn is_without_gpu(&self) -> bool {
        let off = |source: &GpuSource| {
            !OF_READINGS.contains(&source.name.as_str())
                || matches!(source.state(), State::Off | State::Unspecified)
        };
        self.devices.is_empty()
            && self.calls.is_empty()
            && self
                .summary
                .as_ref()
                .is_some_and(|summary| summary.sources.iter().all(off))
    }

    /// What became of it; `items`: devices that it gave; `without_gpu`: it has none.
    fn answer(&self, items: u64, without_gpu: bool) -> NodeAnswer {
        if let Some(status) = &self.error {
            let mut answer = self.asked.failed(status, items);
            if items > 0 || !self.calls.is_empty() {
                answer.set_state(NodeState::Partial);
                answer.reason = format!("its answer broke off after {items} devices: {}", answer.reason);
            }
            return answer;
        }
        let mut answer = NodeAnswer {
            items,
            ..self.asked.answered()
        };
        let Some(summary) = &self.summary else {
            answer
                .notes
                .push("the answer ended without its summary: it may be partial".to_owned());
            return answer;
        };
        let correction = self.asked.member.clock.correction_ns();
        answer.from = summary.from.map(|time| earlier_by(time, correction));
        answer.to = summary.to.map(|time| earlier_by(time, correction));
        answer.cursor = summary.to;
        answer.told_by(&summary.node);
        if !without_gpu {
            (answer.ledger, answer.notes) = trimmed(&summary.ledger, &summary.notes);
            let failed = summary
                .sources
                .iter()
                .filter(|source| source.state() == State::Failed);
            answer
                .notes
                .extend(failed.map(|source| format!("{} can't be used: {}", source.name, source.reason)));
        }
        answer
    }
}

/// Where a device stands in the answer; whoever has the same is the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    node: String,
    /// In small letters: case tells no devices apart.
    uuid: String,
    instance: Option<u32>,
}

impl Place {
    fn of(device: &GpuDevice) -> Self {
        Self {
            node: device.node.clone(),
            uuid: device.uuid.to_ascii_lowercase(),
            instance: device.mig.as_ref().map(|mig| mig.instance),
        }
    }
}

/// All that was told, in order.
#[derive(Debug, Default)]
struct Merged {
    devices: BTreeMap<Place, GpuDevice>,
    calls: Vec<CudaCalls>,
}

impl Merged {
    /// Adds one member's devices; how many are new, and how many were told before.
    fn add(&mut self, devices: Vec<GpuDevice>) -> (u64, u64) {
        let (mut new, mut again) = (0, 0);
        for device in devices {
            match self.devices.entry(Place::of(&device)) {
                Entry::Vacant(entry) => {
                    entry.insert(device);
                    new += 1;
                }
                Entry::Occupied(_) => again += 1,
            }
        }
        (new, again)
    }

    fn sort_calls(&mut self) {
        let names = |calls: &CudaCalls| {
            let owner = calls.owner.clone().unwrap_or_default();
            (
                calls.node.clone(),
                [
                    owner.namespace,
                    owner.pod,
                    owner.container,
                    owner.unit,
                    owner.process,
                ],
                calls.library.clone(),
                calls.function.clone(),
            )
        };
        self.calls.sort_by_cached_key(names);
    }
}

impl Hub {
    /// GPUs of all members. The answer is held: bounded by [`Limits::max_rows`](crate::Limits::max_rows).
    pub(crate) async fn gpus(&self, query: GpuQuery) -> Result<Responses<QueryGpusResponse>, Status> {
        let permit = self.query_permit()?;
        let filter = query.filter.clone().unwrap_or_default();
        let route = self.nodes_of(&Wanted {
            namespaces: filter.namespaces,
            pods: filter.pods,
            workloads: filter.workloads,
            since: query.since,
        });
        let Selection { asked, others, order } = self.select(&query.nodes, route.as_ref())?;
        let own = |asked: &Asked| {
            let correction = asked.member.clock.correction_ns();
            let to_theirs = |time: Timestamp| earlier_by(time, correction.saturating_neg());
            GpuQuery {
                since: query.since.map(to_theirs),
                until: query.until.map(to_theirs),
                nodes: Vec::new(),
                ..query.clone()
            }
        };
        let room = Room::new(self.limits.max_rows);
        let whole = self.limits.deadline.saturating_mul(DEADLINES);
        let mut parts = futures::stream::iter(asked)
            .map(|asked| {
                let query = own(&asked);
                PartOf::take(asked, query, &room, whole)
            })
            .buffered(self.limits.concurrency);
        let mut merged = Merged::default();
        let mut all = GpuSummary {
            nodes: others,
            ..GpuSummary::default()
        };
        let (mut refused, mut names, mut without) = (None, Vec::new(), 0_usize);
        while let Some(mut part) = parts.next().await {
            part.name_nodes();
            let without_gpu = part.is_without_gpu();
            let (items, again) = merged.add(std::mem::take(&mut part.devices));
            let mut answer = part.answer(items, without_gpu);
            if again > 0 {
                answer.notes.push(format!(
                    "Of {again} devices it told that had been told before: only what came first is shown."
                ));
            }
            all.nodes.push(answer);
            merged.calls.append(&mut part.calls);
            if let Some(status) = &part.error {
                self.counts.failed(status);
                if status.code() == Code::InvalidArgument {
                    refused = Some(status.clone());
                }
            }
            if let Some(mut summary) = part.summary {
                let correction = part.asked.member.clock.correction_ns();
                shift(&mut summary.from, correction);
                shift(&mut summary.to, correction);
                all.from = earliest([all.from, summary.from]);
                all.to = latest([all.to, summary.to]);
                all.sampling = longest(all.sampling, summary.sampling);
                without += usize::from(without_gpu);
                names.push(summary.node);
            }
        }
        drop(parts);
        if let Some(error) = nobody(&all.nodes, refused.as_ref()) {
            return Err(error);
        }
        in_order(&order, &mut all.nodes);
        if without > 0 && without == names.len() {
            all.notes.push(no_source(without));
        }
        all.node = match names.as_slice() {
            [name] => name.clone(),
            names => format!("{} nodes", names.len()),
        };
        merged.sort_calls();
        Ok(self.deliver(permit, async move |sender| {
            let mut devices = merged.devices.into_values();
            loop {
                let devices: Vec<GpuDevice> = devices.by_ref().take(BATCH).collect();
                if devices.is_empty() {
                    break;
                }
                let part = Some(Part::Batch(GpuBatch { devices }));
                sender.send(QueryGpusResponse { part }).await?;
            }
            let mut calls = merged.calls.into_iter();
            loop {
                let calls: Vec<CudaCalls> = calls.by_ref().take(BATCH).collect();
                if calls.is_empty() {
                    break;
                }
                let part = Some(Part::Cuda(CudaBatch { calls }));
                sender.send(QueryGpusResponse { part }).await?;
            }
            let part = Some(Part::Summary(all));
            sender.send(QueryGpusResponse { part }).await
        }))
    }
}

/// That nobody who answered knows of a GPU.
fn no_source(nodes: usize) -> String {
    let of = match nodes {
        1 => "The node that answered has".to_owned(),
        nodes => format!("None of the {nodes} nodes that answered has"),
    };
    let not = if nodes == 1 { "no" } else { "a" };
    format!("{of} {not} source of GPU readings: neither dcgm-exporter nor NVML.")
}

/// The longer one of two durations.
fn longest(
    a: Option<prost_types::Duration>,
    b: Option<prost_types::Duration>,
) -> Option<prost_types::Duration> {
    [a, b]
        .into_iter()
        .flatten()
        .max_by_key(|duration| (duration.seconds, duration.nanos))
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::GpuMig;

    use super::*;

    fn device(node: &str, uuid: &str, instance: Option<u32>) -> GpuDevice {
        GpuDevice {
            node: node.into(),
            uuid: uuid.into(),
            mig: instance.map(|instance| GpuMig {
                instance,
                ..GpuMig::default()
            }),
            ..GpuDevice::default()
        }
    }

    #[test]
    fn a_device_is_there_once_and_its_instances_are_others() {
        let mut merged = Merged::default();
        let told = vec![
            device("n2", "GPU-a", None),
            device("n1", "GPU-b", Some(2)),
            device("n1", "GPU-B", None),
            device("n1", "gpu-b", None),
            device("n1", "GPU-b", Some(1)),
        ];
        assert_eq!(merged.add(told), (4, 1));
        let order: Vec<_> = merged
            .devices
            .values()
            .map(|device| (device.node.as_str(), device.mig.as_ref().map(|mig| mig.instance)))
            .collect();
        assert_eq!(
            order,
            [("n1", None), ("n1", Some(1)), ("n1", Some(2)), ("n2", None)]
        );
        assert_eq!(merged.add(vec![device("n2", "GPU-A", None)]), (0, 1));
    }

    #[test]
    fn room_is_for_each_node_and_for_all() {
        let room = Room::new(10);
        let (mut a, mut b) = (8, 8);
        room.take(5 * ROW, &mut a).unwrap();
        assert!(
            room.take(4 * ROW, &mut a)
                .unwrap_err()
                .message()
                .contains("one node")
        );
        let error = room.take(6 * ROW, &mut b).unwrap_err();
        assert!(error.message().contains("all nodes"), "{error}");
        // What had no room took none.
        room.take(5 * ROW, &mut b).unwrap();
        assert_eq!((a, b), (3, 3));
    }

    #[test]
    fn empty_messages_take_room_too() {
        assert!(size_of_device(&GpuDevice::default()) >= size_of::<GpuDevice>());
        let holders = GpuDevice {
            holders: vec![GpuHolder::default(); 1000],
            ..GpuDevice::default()
        };
        assert!(size_of_device(&holders) > 1000 * size_of::<GpuHolder>());
    }
}
