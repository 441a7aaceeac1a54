//! A page of dcgm-exporter, made into devices.
//!
//! # Whose value a row tells
//! An exporter that knows pods repeats a device's row for each pod that shares it, with the device's value; or leaves the
//! device's own row and adds one for each pod, with what it measured at the pod's processes, or 0 where it measured none. So
//! of one field of one device:
//! 1. the row that names no pod is the device's, whatever others say;
//! 2. without one, rows of pods that agree are copies of the device's;
//! 3. rows that disagree say nothing of the device: the value is not known, and counted as rejected;
//! 4. nor do rows of values per process ([`Field::is_per_process`], with the pod's UID, which the exporter adds to these
//!    unasked), if its other rows have no UID, or if they say 0 of several pods.
//!
//! # Instances
//! An exporter asks DCGM for every field of each instance, and DCGM answers fields that only a whole GPU has with the GPU's
//! value. Such a value is the GPU's here, once; the instance has none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    time::{Duration, SystemTime},
};

use super::{
    fields::{self, Field},
    labels::{self, Facts, Owner, Subject},
    text::{self, Sample, Value},
};
use crate::{
    id::DeviceKey,
    sample::{Claim, Device, Mig, Snapshot, Source},
};

/// GPUs and instances of one page. A node has 16 GPUs with 7 instances each at most.
const MAX_DEVICES: usize = 1024;
/// Pods that claim one device.
const MAX_CLAIMS: usize = 256;
/// Values of one device. DCGM has some 600 fields, and 18 links for some.
const MAX_VALUES: usize = 1024;
/// Of a field's name, in bytes; DCGM's longest has 60.
const MAX_NAME: usize = 128;
/// A row with a timestamp is a federating Prometheus', which repeats values for so long after their end.
const MAX_AGE: Duration = Duration::from_secs(300);

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The page tells nothing of DCGM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page holds no DCGM_FI_ metric: is it dcgm-exporter's, with its /metrics path?")]
pub struct NotDcgm;

/// Reads a page that came at `time`.
///
/// A line that cannot be used is counted and passed over. Text after the last newline is not used: of a page that was cut
/// off, `10` may have been `100`.
///
/// # Errors
/// If the page holds no `DCGM_FI_` metric at all.
pub fn read(page: &[u8], time: SystemTime) -> Result<Snapshot, NotDcgm> {
    let mut assembly = Assembly::default();
    let page = page.strip_prefix(BYTE_ORDER_MARK).unwrap_or(page);
    let now = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let oldest = now.saturating_sub(i64::try_from(MAX_AGE.as_millis()).unwrap_or(i64::MAX));
    let mut lines = page.split(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let last = lines.peek().is_none();
        if last && !line.is_empty() {
            assembly
                .rejected
                .add(|| format!("line {}: the page ends within it", number + 1));
            break;
        }
        let refuse = match text::sample(line) {
            Ok(Some(mut sample)) => {
                sample.name = fields::current(sample.name);
                assembly.row(&sample, oldest).err()
            }
            Ok(None) => None,
            Err(error) => Some(Refused(error.to_string())),
        };
        if let Some(Refused(reason)) = refuse {
            assembly.rejected.add(|| format!("line {}: {reason}", number + 1));
        }
    }
    assembly.finish(time)
}

/// Why a row cannot be used.
struct Refused(String);

impl<T: std::error::Error> From<T> for Refused {
    fn from(error: T) -> Self {
        Self(error.to_string())
    }
}

fn refused(reason: impl Display) -> Refused {
    Refused(reason.to_string())
}

#[derive(Default)]
struct Rejected {
    count: u64,
    first: Option<String>,
}

impl Rejected {
    fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        self.first.get_or_insert_with(what);
    }
}

#[derive(Default)]
struct Assembly {
    devices: BTreeMap<DeviceKey, Draft>,
    /// Of any field, of whatever device.
    found: bool,
    rejected: Rejected,
}

impl Assembly {
    fn row(&mut self, sample: &Sample<'_>, oldest: i64) -> Result<(), Refused> {
        if !sample.name.starts_with("DCGM_FI_") {
            return Ok(());
        }
        self.found = true;
        let Subject::Device(key) = labels::subject(sample)? else {
            return Ok(());
        };
        if sample.name.len() > MAX_NAME {
            return Err(refused("has a name longer than any field's"));
        }
        if sample.timestamp.is_some_and(|time| time < oldest) {
            return Err(refused("has a value from long ago"));
        }
        let owner = labels::owner(sample);
        let facts = labels::facts(sample);
        let of_gpu = key.instance.is_some() && fields::is_of_whole_gpu(sample.name);
        let parent = DeviceKey {
            uuid: key.uuid.clone(),
            instance: None,
        };
        let draft = self.draft(key)?;
        let claimed = draft.claim(&owner);
        draft.know(&facts);
        let draft = if of_gpu {
            let draft = self.draft(parent)?;
            draft.know(&Facts {
                profile: None,
                ..facts
            });
            draft
        } else {
            draft
        };
        draft.tell(sample, &owner, of_gpu)?;
        claimed
    }

    fn draft(&mut self, key: DeviceKey) -> Result<&mut Draft, Refused> {
        if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&key) {
            return Err(refused("is of one device more than are read"));
        }
        Ok(self.devices.entry(key).or_default())
    }

    fn finish(mut self, time: SystemTime) -> Result<Snapshot, NotDcgm> {
        if !self.found {
            return Err(NotDcgm);
        }
        let devices = std::mem::take(&mut self.devices)
            .into_iter()
            .map(|(key, draft)| draft.finish(key, &mut self.rejected))
            .collect();
        Ok(Snapshot {
            source: Source::Dcgm,
            time,
            devices,
            rejected: self.rejected.count,
            first_rejected: self.rejected.first,
            unnamed: Vec::new(),
        })
    }
}

/// What the rows of one device said so far.
#[derive(Default)]
struct Draft {
    facts: Facts,
    claims: BTreeSet<Claim>,
    values: BTreeMap<Slot, Told>,
    /// Pods' rows of values that are not told per process have the pod's UID: it was asked for.
    uids: bool,
}

/// Which value of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Field(Field),
    Other(String),
}

/// What rows said of one value.
#[derive(Default)]
struct Told {
    /// Rows without a pod.
    own: Rows,
    /// Rows with one.
    pods: Rows,
    /// Some of those had the pod's UID.
    uid: bool,
    /// More than one of those.
    several: bool,
    /// The GPU's value, repeated with its instances: the last one, for DCGM may have measured in between.
    repeated: Option<Value>,
    /// The same of rows with a pod.
    repeated_for_pods: Option<Value>,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Rows {
    #[default]
    None,
    Agree(Value),
    Differ,
}

impl Rows {
    fn add(&mut self, value: Value) {
        *self = match *self {
            Self::None => Self::Agree(value),
            Self::Agree(other) if other == value => Self::Agree(other),
            Self::Agree(_) | Self::Differ => Self::Differ,
        };
    }
}

impl Draft {
    fn claim(&mut self, owner: &Owner) -> Result<(), Refused> {
        let Some(claim) = &owner.claim else { return Ok(()) };
        if self.claims.contains(claim) {
            return Ok(());
        }
        if self.claims.len() == MAX_CLAIMS {
            return Err(refused("names one pod more than are read for a device"));
        }
        self.claims.insert(claim.clone());
        Ok(())
    }

    fn know(&mut self, facts: &Facts) {
        fn take<T: Clone>(place: &mut Option<T>, fact: &Option<T>) {
            if place.is_none() {
                place.clone_from(fact);
            }
        }
        take(&mut self.facts.index, &facts.index);
        take(&mut self.facts.minor, &facts.minor);
        take(&mut self.facts.model, &facts.model);
        take(&mut self.facts.driver, &facts.driver);
        take(&mut self.facts.pci, &facts.pci);
        take(&mut self.facts.host, &facts.host);
        take(&mut self.facts.profile, &facts.profile);
    }

    fn tell(&mut self, sample: &Sample<'_>, owner: &Owner, repeated: bool) -> Result<(), Refused> {
        let field = Field::of(sample.name);
        let slot = match (field, sample.label("nvlink")) {
            (Some(field), None) => Slot::Field(field),
            (None, None) => Slot::Other(sample.name.to_owned()),
            // Each link of the device has its row.
            (_, Some(link)) if link.len() <= 8 && link.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Slot::Other(format!("{}{{nvlink=\"{link}\"}}", sample.name))
            }
            (_, Some(_)) => return Err(refused("is of a link whose number cannot be read")),
        };
        self.uids |= owner.uid && !field.is_some_and(Field::is_per_process);
        if fields::is_missing(sample.value) {
            return Ok(());
        }
        if !sample.value.number.is_finite() {
            return Err(refused("has an infinite value"));
        }
        if self.values.len() >= MAX_VALUES && !self.values.contains_key(&slot) {
            return Err(refused("has one value more than are read of a device"));
        }
        let told = self.values.entry(slot).or_default();
        if repeated && owner.of_pod {
            told.uid |= owner.uid;
            told.repeated_for_pods = Some(sample.value);
        } else if repeated {
            told.repeated = Some(sample.value);
        } else if owner.of_pod {
            told.several |= told.pods != Rows::None;
            told.uid |= owner.uid;
            told.pods.add(sample.value);
        } else {
            told.own.add(sample.value);
        }
        Ok(())
    }

    fn finish(self, key: DeviceKey, rejected: &mut Rejected) -> Device {
        let mut device = Device::new(key);
        let name = match device.key.instance {
            Some(instance) => format!("instance {instance} of {}", device.key.uuid),
            None => device.key.uuid.to_string(),
        };
        let mut links = [None; 2];
        for (slot, told) in self.values {
            let field = match &slot {
                Slot::Field(field) => Some(*field),
                Slot::Other(_) => None,
            };
            let value = match told.device(field.is_some_and(Field::is_per_process), self.uids) {
                Ok(value) => value,
                Err(reason) => {
                    rejected.add(|| format!("{slot:?} of {name}: {reason}"));
                    continue;
                }
            };
            match slot {
                Slot::Field(Field::NvlinkTx) => links[0] = Some(value),
                Slot::Field(Field::NvlinkRx) => links[1] = Some(value),
                Slot::Field(field) => {
                    if !field.set(value, &mut device.readings) {
                        rejected.add(|| format!("{field:?} of {name} cannot be {}", value.number));
                    }
                }
                Slot::Other(other) => {
                    device.readings.other.insert(other, value.number);
                }
            }
        }
        match links {
            [Some(sent), Some(received)] => {
                let readings = &mut device.readings;
                if !(Field::NvlinkTx.set(sent, readings) && Field::NvlinkRx.set(received, readings)) {
                    readings.nvlink = None;
                    rejected.add(|| format!("bytes by NVLink of {name} cannot be a counter"));
                }
            }
            // One direction is not both.
            [sent, received] => {
                let other = &mut device.readings.other;
                other
                    .extend(sent.map(|value| ("DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES".to_owned(), value.number)));
                other.extend(
                    received.map(|value| ("DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES".to_owned(), value.number)),
                );
            }
        }
        device.index = self.facts.index;
        device.minor = self.facts.minor;
        device.model = self.facts.model;
        device.driver = self.facts.driver;
        device.pci = self.facts.pci;
        device.host = self.facts.host;
        device.mig = device.key.instance.map(|_| Mig {
            profile: self.facts.profile,
            ..Mig::default()
        });
        device.claims = self.claims.into_iter().collect();
        device
    }
}

impl Told {
    /// The device's value, by the rules above.
    fn device(&self, per_process: bool, uids: bool) -> Result<Value, &'static str> {
        // A pod's row of an instance may be the GPU's value, or 0 for want of any.
        let is_filled = |value: &Value| per_process && self.uid && value.number == 0.0;
        let of_pods = self.repeated_for_pods.filter(|value| !is_filled(value));
        match (self.own, self.pods, self.repeated.or(of_pods)) {
            (Rows::Agree(value), ..) => Ok(value),
            (Rows::Differ, ..) => Err("rows contradict one another"),
            (Rows::None, Rows::Agree(value), _) => {
                if per_process && self.uid && (!uids || self.several && value.number == 0.0) {
                    Err("pods' processes are told, and the device is not")
                } else {
                    Ok(value)
                }
            }
            (Rows::None, Rows::Differ, _) => Err("pods' rows differ, and none is the device's"),
            (Rows::None, Rows::None, Some(value)) => Ok(value),
            (Rows::None, Rows::None, None) => Err("no row tells it"),
        }
    }
}

#[cfg(test)]
mod tests;
