//! A GPU as JSON: the contract with scripts. Fields are only ever added; unknown ones are left out, so that no zero is
//! one that was not measured.

use std::{collections::BTreeMap, fmt};

use orb8_proto::v1::{CudaCalls, GpuDevice, GpuEvent, GpuHolder, GpuIdle, GpuMig, GpuReadings};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::syscall_json::OwnerRecord;
use crate::{
    gpu::{self, Waste},
    humanise, timestamp,
};

/// A measured number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Number {
    Whole(u64),
    Real(f64),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
        }
    }
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// 0 to 1.
    Share,
    Bytes,
    Celsius,
    Watts,
    Joules,
    Hertz,
    /// A number of things, or one that only names.
    Plain,
}

/// One of a device's readings: its name in data, its title in tables, and where it stands in the protocol.
pub(crate) struct Reading {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    field: fn(&GpuReadings) -> Option<Number>,
}

impl Reading {
    const fn real(
        name: &'static str,
        title: &'static str,
        unit: Unit,
        field: fn(&GpuReadings) -> Option<Number>,
    ) -> Self {
        Self {
            name,
            title,
            unit,
            field,
        }
    }

    /// The value, if it was measured and is a number.
    pub(crate) fn of(&self, readings: Option<&GpuReadings>) -> Option<Number> {
        (self.field)(readings?).filter(|value| match value {
            Number::Whole(_) => true,
            Number::Real(value) => value.is_finite(),
        })
    }

    /// The value for people.
    pub(crate) fn text(&self, readings: Option<&GpuReadings>, utf8: bool) -> Option<String> {
        let value = self.of(readings)?;
        match (self.unit, value) {
            (Unit::Share, Number::Real(value)) => humanise::share(value),
            (Unit::Celsius, Number::Real(value)) => humanise::celsius(value, utf8),
            (Unit::Watts, Number::Real(value)) => humanise::quantity(value, "W"),
            (Unit::Joules, Number::Real(value)) => humanise::quantity(value, "J"),
            (Unit::Hertz, Number::Real(value)) => humanise::quantity(value, "Hz"),
            (Unit::Bytes, Number::Whole(value)) => Some(humanise::bytes(value)),
            (_, value) => Some(value.to_string()),
        }
    }
}

macro_rules! readings {
    ($($field:ident $title:literal $unit:ident $kind:ident;)+) => {
        /// All readings, in the order in which they are told.
        pub(crate) const READINGS: &[Reading] = &[$(Reading::real(
            stringify!($field),
            $title,
            Unit::$unit,
            |readings| readings.$field.map(|value| Number::$kind(value.into())),
        )),+];
    };
}

readings! {
    utilization "USE" Share Real;
    memory_copy "COPY" Share Real;
    memory_used_bytes "USED" Bytes Whole;
    memory_free_bytes "FREE" Bytes Whole;
    memory_total_bytes "TOTAL" Bytes Whole;
    temperature_celsius "TEMP" Celsius Real;
    power_watts "POWER" Watts Real;
    energy_joules "ENERGY" Joules Real;
    sm_clock_hertz "SM-CLOCK" Hertz Real;
    memory_clock_hertz "MEM-CLOCK" Hertz Real;
    pcie_tx_bytes "PCIE-TX" Bytes Whole;
    pcie_rx_bytes "PCIE-RX" Bytes Whole;
    nvlink_bytes "NVLINK" Bytes Whole;
    xid "XID" Plain Whole;
    graphics_active "GRAPHICS" Share Real;
    sm_active "SM" Share Real;
    sm_occupancy "OCCUPANCY" Share Real;
    tensor_active "TENSOR" Share Real;
    memory_active "DRAM" Share Real;
    fp64_active "FP64" Share Real;
    fp32_active "FP32" Share Real;
    fp16_active "FP16" Share Real;
    ecc_corrected "ECC-CORRECTED" Plain Whole;
    ecc_uncorrected "ECC-UNCORRECTED" Plain Whole;
}

/// The readings that there are.
#[derive(Clone, Copy, Debug)]
struct ReadingsRecord<'a>(Option<&'a GpuReadings>);

impl Serialize for ReadingsRecord<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for reading in READINGS {
            if let Some(value) = reading.of(self.0) {
                map.serialize_entry(reading.name, &value)?;
            }
        }
        map.end()
    }
}

/// A device, in the order in which its fields are written.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceRecord<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uuid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    model: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    driver: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pci: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mig: Option<MigRecord<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    holders: Vec<HolderRecord<'a>>,
    /// Those that who asks may not see.
    #[serde(skip_serializing_if = "is_zero")]
    hidden_holders: u32,
    #[serde(flatten)]
    readings: ReadingsRecord<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    other: BTreeMap<&'a str, f64>,
    /// The first of `sources`.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    sources: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    trouble: &'a str,
}

/// An instance of a GPU.
#[derive(Debug, Serialize)]
pub(crate) struct MigRecord<'a> {
    instance: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    uuid: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    profile: &'a str,
}

/// Who holds a device, or uses it.
#[derive(Debug, Serialize)]
pub(crate) struct HolderRecord<'a> {
    #[serde(flatten)]
    pub(crate) owner: OwnerRecord,
    pub(crate) method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) utilization: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) energy_joules: Option<f64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(crate) device_ids: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) claim: &'a str,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    pub(crate) pids: &'a [u32],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) idle: Option<IdleRecord<'a>>,
}

/// What a holder did while its device did nothing.
#[derive(Debug, Serialize)]
pub(crate) struct IdleRecord<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) held_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unknown_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_share: Option<f64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) cause: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) evidence: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waits: Vec<WaitRecord<'a>>,
}

#[derive(Debug, Serialize)]
struct WaitRecord<'a> {
    class: &'a str,
    seconds: f64,
    share: Option<f64>,
}

/// A device that was held and did nothing.
#[derive(Debug, Serialize)]
pub(crate) struct WasteRecord<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uuid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mig: Option<MigRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wasted_gpu_hours: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wasted_instance_hours: Option<f64>,
    holders: Vec<HolderRecord<'a>>,
    /// Those that who asks may not see.
    #[serde(skip_serializing_if = "is_zero")]
    hidden_holders: u32,
}

/// Calls of one function.
#[derive(Debug, Serialize)]
pub(crate) struct CallsRecord<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) node: &'a str,
    #[serde(flatten)]
    pub(crate) owner: OwnerRecord,
    pub(crate) function: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) library: &'a str,
    pub(crate) count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) errors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_ns: Option<u64>,
}

/// What happened to a GPU.
#[derive(Debug, Serialize)]
pub(crate) struct EventRecord<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    event: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uuid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mig: Option<MigRecord<'a>>,
    xid: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    meaning: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    holders: Vec<HolderRecord<'a>>,
    /// Those that who asks may not see.
    #[serde(skip_serializing_if = "is_zero")]
    hidden_holders: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Of a number that may be none: JSON has no word for these.
fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

impl<'a> From<&'a GpuDevice> for DeviceRecord<'a> {
    fn from(device: &'a GpuDevice) -> Self {
        let readings = device.readings.as_ref();
        let other = readings.into_iter().flat_map(|readings| &readings.other);
        Self {
            node: &device.node,
            uuid: &device.uuid,
            index: device.index,
            model: &device.model,
            driver: &device.driver,
            pci: &device.pci,
            mig: device.mig.as_ref().map(MigRecord::from),
            holders: device.holders.iter().map(HolderRecord::from).collect(),
            hidden_holders: device.hidden_holders,
            readings: ReadingsRecord(readings),
            other: other
                .filter(|(_, value)| value.is_finite())
                .map(|(name, value)| (name.as_str(), *value))
                .collect(),
            source: device.sources.first().map(String::as_str),
            sources: &device.sources,
            samples: (device.samples > 0).then_some(device.samples),
            last: timestamp::rfc3339(device.last.as_ref()),
            trouble: &device.trouble,
        }
    }
}

impl<'a> From<&'a GpuMig> for MigRecord<'a> {
    fn from(mig: &'a GpuMig) -> Self {
        Self {
            instance: mig.instance,
            uuid: &mig.uuid,
            profile: &mig.profile,
        }
    }
}

impl<'a> From<&'a GpuHolder> for HolderRecord<'a> {
    fn from(holder: &'a GpuHolder) -> Self {
        Self {
            owner: OwnerRecord::from(holder.owner.as_ref()),
            method: gpu::method(holder.method()),
            utilization: finite(holder.utilization),
            memory_bytes: holder.memory_bytes,
            energy_joules: finite(holder.energy_joules),
            device_ids: &holder.device_ids,
            resource: &holder.resource,
            claim: &holder.claim,
            pids: &holder.pids,
            since: timestamp::rfc3339(holder.since.as_ref()),
            until: timestamp::rfc3339(holder.until.as_ref()),
            idle: holder.idle.as_ref().map(IdleRecord::from),
        }
    }
}

impl<'a> From<&'a GpuIdle> for IdleRecord<'a> {
    fn from(idle: &'a GpuIdle) -> Self {
        let seconds = |time: &Option<_>| time.as_ref().map(|time| gpu::span(Some(time)));
        Self {
            held_seconds: seconds(&idle.held),
            idle_seconds: seconds(&idle.idle),
            unknown_seconds: seconds(&idle.unknown),
            idle_share: gpu::idle_share(idle),
            cause: &idle.cause,
            evidence: &idle.evidence,
            waits: idle
                .waits
                .iter()
                .map(|wait| WaitRecord {
                    class: &wait.class,
                    seconds: gpu::span(wait.time.as_ref()),
                    share: finite(Some(wait.share)),
                })
                .collect(),
        }
    }
}

impl<'a> From<&'a Waste<'a>> for WasteRecord<'a> {
    fn from(waste: &'a Waste<'a>) -> Self {
        let device = waste.device;
        let whole = device.mig.is_none();
        Self {
            node: &device.node,
            uuid: &device.uuid,
            index: device.index,
            model: &device.model,
            mig: device.mig.as_ref().map(MigRecord::from),
            wasted_gpu_hours: (whole && waste.is_known).then_some(waste.hours),
            wasted_instance_hours: (!whole && waste.is_known).then_some(waste.hours),
            holders: waste
                .holders
                .iter()
                .map(|(holder, _)| HolderRecord::from(*holder))
                .collect(),
            hidden_holders: device.hidden_holders,
        }
    }
}

impl<'a> From<&'a CudaCalls> for CallsRecord<'a> {
    fn from(calls: &'a CudaCalls) -> Self {
        Self {
            node: &calls.node,
            owner: OwnerRecord::from(calls.owner.as_ref()),
            function: &calls.function,
            library: &calls.library,
            count: calls.count,
            errors: calls.errors,
            bytes: calls.bytes,
            total_ns: calls.total_ns,
        }
    }
}

impl<'a> From<&'a GpuEvent> for EventRecord<'a> {
    fn from(event: &'a GpuEvent) -> Self {
        Self {
            time: timestamp::rfc3339(event.time.as_ref()),
            event: "xid",
            node: &event.node,
            uuid: &event.uuid,
            index: event.index,
            mig: event.mig.as_ref().map(MigRecord::from),
            xid: event.xid,
            meaning: &event.meaning,
            holders: event.holders.iter().map(HolderRecord::from).collect(),
            hidden_holders: event.hidden_holders,
        }
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::Endpoint;

    use super::*;
    use crate::{render::flow_json, sanitise};

    #[test]
    fn only_what_is_known_is_written_and_zero_is_known() {
        let line = |device: &GpuDevice| flow_json::line(&DeviceRecord::from(device)).unwrap();
        assert_eq!(line(&GpuDevice::default()), "{}\n");
        let device = GpuDevice {
            uuid: "GPU-a".into(),
            holders: vec![GpuHolder::default()],
            readings: Some(GpuReadings {
                utilization: Some(0.0),
                power_watts: Some(f64::NAN),
                xid: Some(0),
                other: [("a".to_owned(), 1.5), ("b".to_owned(), f64::INFINITY)].into(),
                ..GpuReadings::default()
            }),
            sources: vec!["dcgm".into(), "nvml".into()],
            ..GpuDevice::default()
        };
        assert_eq!(
            line(&device),
            "{\"uuid\":\"GPU-a\",\"holders\":[{\"method\":\"unknown\"}],\"utilization\":0.0,\"xid\":0,\
             \"other\":{\"a\":1.5},\"source\":\"dcgm\",\"sources\":[\"dcgm\",\"nvml\"]}\n"
        );
    }

    #[test]
    fn every_reading_of_the_protocol_is_told() {
        let readings = GpuReadings {
            utilization: Some(0.1),
            memory_copy: Some(0.2),
            memory_used_bytes: Some(3),
            memory_free_bytes: Some(4),
            memory_total_bytes: Some(5),
            temperature_celsius: Some(6.0),
            power_watts: Some(7.0),
            energy_joules: Some(8.0),
            sm_clock_hertz: Some(9.0),
            memory_clock_hertz: Some(10.0),
            pcie_tx_bytes: Some(11),
            pcie_rx_bytes: Some(12),
            nvlink_bytes: Some(13),
            xid: Some(14),
            graphics_active: Some(0.15),
            sm_active: Some(0.16),
            sm_occupancy: Some(0.17),
            tensor_active: Some(0.18),
            memory_active: Some(0.19),
            fp64_active: Some(0.2),
            fp32_active: Some(0.21),
            fp16_active: Some(0.22),
            ecc_corrected: Some(23),
            ecc_uncorrected: Some(24),
            other: Default::default(),
        };
        for reading in READINGS {
            assert!(reading.of(Some(&readings)).is_some(), "{}", reading.name);
            assert!(reading.text(Some(&readings), true).is_some(), "{}", reading.name);
            assert_eq!(reading.of(Some(&GpuReadings::default())), None);
        }
        let value = serde_json::to_value(ReadingsRecord(Some(&readings))).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 24);
    }

    #[test]
    fn hostile_names_stay_data() {
        let device = GpuDevice {
            model: "\x1b[2J\u{202e}".into(),
            holders: vec![GpuHolder {
                owner: Some(Endpoint {
                    pod: "\u{9b}".into(),
                    ..Endpoint::default()
                }),
                ..GpuHolder::default()
            }],
            ..GpuDevice::default()
        };
        let text = flow_json::line(&DeviceRecord::from(&device)).unwrap();
        assert!(!text.trim_end().contains(sanitise::is_hostile));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["model"], "\x1b[2J\u{202e}");
        assert_eq!(value["holders"][0]["pod"], "\u{9b}");
    }
}
