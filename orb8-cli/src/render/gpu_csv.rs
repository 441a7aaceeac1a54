//! GPUs as CSV (RFC 4180): the fields of the JSON form, flat; unknown is empty. A device and each of its holders have a
//! line of their own, so that no sum over a column has anything twice.

use orb8_proto::v1::{CudaCalls, GpuDevice, GpuHolder};

use super::{
    flow_csv::{line, optional},
    gpu_json::{CallsRecord, HolderRecord, READINGS},
    syscall_json::OwnerRecord,
};
use crate::timestamp;

/// Columns that say which device it is.
const DEVICE: [&str; 10] = [
    "row",
    "node",
    "uuid",
    "instance",
    "index",
    "mig_uuid",
    "mig_profile",
    "model",
    "driver",
    "pci",
];

/// Columns after the readings.
const SAMPLES: [&str; 5] = ["sources", "samples", "last", "trouble", "hidden_holders"];

/// Columns of an owner.
const OWNER: [&str; 9] = [
    "namespace",
    "pod",
    "pod_uid",
    "container",
    "workload",
    "unit",
    "process",
    "cgroup",
    "attribution",
];

/// Columns of a holder, after `holder_` and those of its owner.
const HOLDER: [&str; 10] = [
    "method",
    "utilization",
    "memory_bytes",
    "energy_joules",
    "device_ids",
    "resource",
    "claim",
    "pids",
    "since",
    "until",
];

/// Columns of a holder's idle time, after `idle_`.
const IDLE: [&str; 6] = [
    "held_seconds",
    "idle_seconds",
    "unknown_seconds",
    "share",
    "cause",
    "evidence",
];

/// Columns of calls, after those of the owner.
const CALLS: [&str; 6] = ["function", "library", "count", "errors", "bytes", "total_ns"];

/// The header line; `idle`: with what holders did while the device did nothing.
pub(crate) fn header(idle: bool) -> anyhow::Result<Vec<u8>> {
    let readings = READINGS.iter().map(|reading| reading.name);
    let device = DEVICE
        .into_iter()
        .chain(readings)
        .chain(SAMPLES)
        .map(str::to_owned);
    let holder = OWNER
        .into_iter()
        .chain(HOLDER)
        .map(|column| format!("holder_{column}"));
    let idle = IDLE
        .iter()
        .filter(|_| idle)
        .map(|column| format!("idle_{column}"));
    line(device.chain(holder).chain(idle))
}

/// The lines of a device and its holders.
pub(crate) fn rows(device: &GpuDevice, idle: bool) -> anyhow::Result<Vec<u8>> {
    let holder_columns = OWNER.len() + HOLDER.len() + if idle { IDLE.len() } else { 0 };
    let readings = READINGS
        .iter()
        .map(|reading| optional(reading.of(device.readings.as_ref())));
    let samples = [
        device.sources.join("+"),
        optional((device.samples > 0).then_some(device.samples)),
        timestamp::rfc3339(device.last.as_ref()).unwrap_or_default(),
        device.trouble.clone(),
        optional((device.hidden_holders > 0).then_some(device.hidden_holders)),
    ];
    let mut text = line(
        key("device", device)
            .into_iter()
            .chain(readings)
            .chain(samples)
            .chain(blank(holder_columns)),
    )?;
    for told in &device.holders {
        let fields = key("holder", device)
            .into_iter()
            .chain(blank(READINGS.len() + SAMPLES.len()))
            .chain(holder(told, idle));
        text.extend(line(fields)?);
    }
    Ok(text)
}

fn blank(columns: usize) -> impl Iterator<Item = String> {
    std::iter::repeat_n(String::new(), columns)
}

/// Which device it is.
fn key(row: &str, device: &GpuDevice) -> [String; 10] {
    let mig = device.mig.as_ref();
    [
        row.to_owned(),
        device.node.clone(),
        device.uuid.clone(),
        optional(mig.map(|mig| mig.instance)),
        optional(device.index),
        mig.map(|mig| mig.uuid.clone()).unwrap_or_default(),
        mig.map(|mig| mig.profile.clone()).unwrap_or_default(),
        device.model.clone(),
        device.driver.clone(),
        device.pci.clone(),
    ]
}

fn holder(holder: &GpuHolder, idle: bool) -> Vec<String> {
    let record = HolderRecord::from(holder);
    let pids: Vec<String> = record.pids.iter().map(u32::to_string).collect();
    let mut fields = owner(record.owner).to_vec();
    fields.extend([
        record.method.to_owned(),
        optional(record.utilization),
        optional(record.memory_bytes),
        optional(record.energy_joules),
        record.device_ids.join("+"),
        record.resource.to_owned(),
        record.claim.to_owned(),
        pids.join("+"),
        record.since.unwrap_or_default(),
        record.until.unwrap_or_default(),
    ]);
    if idle {
        let told = record.idle.as_ref();
        fields.extend([
            optional(told.and_then(|idle| idle.held_seconds)),
            optional(told.and_then(|idle| idle.idle_seconds)),
            optional(told.and_then(|idle| idle.unknown_seconds)),
            optional(told.and_then(|idle| idle.idle_share)),
            told.map_or("", |idle| idle.cause).to_owned(),
            told.map_or("", |idle| idle.evidence).to_owned(),
        ]);
    }
    fields
}

fn owner(owner: OwnerRecord) -> [String; 9] {
    [
        owner.namespace,
        owner.pod,
        owner.pod_uid,
        owner.container,
        owner.workload,
        owner.unit,
        owner.process,
        owner.cgroup,
        owner.attribution.unwrap_or_default(),
    ]
}

/// The header line of calls.
pub(crate) fn calls_header() -> anyhow::Result<Vec<u8>> {
    line(["node"].into_iter().chain(OWNER).chain(CALLS).map(str::to_owned))
}

/// One row's line of calls.
pub(crate) fn calls(calls: &CudaCalls) -> anyhow::Result<Vec<u8>> {
    let record = CallsRecord::from(calls);
    let fields = [
        record.function.to_owned(),
        record.library.to_owned(),
        record.count.to_string(),
        optional(record.errors),
        optional(record.bytes),
        optional(record.total_ns),
    ];
    line(
        [record.node.to_owned()]
            .into_iter()
            .chain(owner(record.owner))
            .chain(fields),
    )
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::{GpuIdle, GpuReadings};

    use super::*;

    #[test]
    fn every_row_has_the_header_s_columns_and_values_stand_once() {
        let device = GpuDevice {
            model: "a,\"b\"\n".into(),
            readings: Some(GpuReadings {
                utilization: Some(0.5),
                ..GpuReadings::default()
            }),
            holders: vec![
                GpuHolder {
                    pids: vec![1, 2],
                    idle: Some(GpuIdle::default()),
                    ..GpuHolder::default()
                },
                GpuHolder::default(),
            ],
            hidden_holders: 2,
            ..GpuDevice::default()
        };
        for (idle, columns) in [(false, 58), (true, 64)] {
            let text = [header(idle).unwrap(), rows(&device, idle).unwrap()].concat();
            let mut reader = csv::Reader::from_reader(text.as_slice());
            let header = reader.headers().unwrap().clone();
            let rows: Vec<_> = reader.records().collect::<Result<_, _>>().unwrap();
            assert_eq!((header.len(), rows.len()), (columns, 3));
            let column = |name| header.iter().position(|column| column == name).unwrap();
            let of = |name| rows.iter().map(|row| &row[column(name)]).collect::<Vec<_>>();
            assert_eq!(of("utilization"), ["0.5", "", ""]);
            assert_eq!(of("holder_method"), ["", "unknown", "unknown"]);
            assert_eq!(of("holder_pids"), ["", "1+2", ""]);
            assert_eq!(of("hidden_holders"), ["2", "", ""]);
            assert_eq!(of("row"), ["device", "holder", "holder"]);
        }
    }

    #[test]
    fn calls_have_their_header_s_columns() {
        let text = [calls_header().unwrap(), calls(&CudaCalls::default()).unwrap()].concat();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        assert_eq!(reader.headers().unwrap().len(), 16);
        assert_eq!(reader.records().map(Result::unwrap).count(), 1);
    }
}
