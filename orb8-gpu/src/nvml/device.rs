//! One GPU, value by value.

use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper::{
    Nvml,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    error::{nvml_sym, nvml_try},
};
use nvml_wrapper_sys::bindings::{
    field_id::{
        NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
        NVML_FI_DEV_PCIE_COUNT_RX_BYTES, NVML_FI_DEV_PCIE_COUNT_TX_BYTES,
    },
    nvmlFieldValue_t, nvmlValue_t, nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UINT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG as ULONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as ULONGLONG,
};

use super::{
    Known,
    call::{self, Answers, Failure, raw},
    mig::{self, Instance},
    process::{self, Running, Seen},
};
use crate::{
    id::{DeviceKey, Uuid},
    sample::{Device, Readings},
};

/// NVML's mark for a value that is not available.
const NOT_AVAILABLE: u32 = u32::MAX;
/// The same of long values.
const NOT_AVAILABLE_LONG: u64 = u64::MAX;

/// Beyond this a reading is taken for a mistake: °C.
const HOTTEST: u32 = 250;
/// As above: milliwatts.
const STRONGEST: u32 = 100_000_000;
/// As above: megahertz.
const FASTEST: u32 = 100_000;

/// A field that counts bytes of all links.
const ALL_LINKS: u32 = u32::MAX;

/// A GPU that is being read.
pub(super) struct Gpu<'a> {
    pub(super) nvml: &'a Nvml,
    pub(super) handle: &'a nvml_wrapper::Device<'a>,
    index: u32,
    uuid: Uuid,
    answers: &'a mut Answers,
    /// Why it is asked no more.
    gone: Option<String>,
    library: Option<Failure>,
    refused: BTreeSet<&'static str>,
}

impl<'a> Gpu<'a> {
    pub(super) const fn new(
        nvml: &'a Nvml,
        handle: &'a nvml_wrapper::Device<'a>,
        index: u32,
        uuid: Uuid,
        answers: &'a mut Answers,
    ) -> Self {
        Self {
            nvml,
            handle,
            index,
            uuid,
            answers,
            gone: None,
            library: None,
            refused: BTreeSet::new(),
        }
    }

    /// That of the whole library, which showed while this GPU was read.
    pub(super) const fn failure_of_library(&mut self) -> Option<Failure> {
        self.library.take()
    }

    /// A value, unless it is not known; a GPU that is lost is not asked again.
    pub(super) fn ask<T>(
        &mut self,
        what: &'static str,
        call: impl FnOnce() -> Result<T, Failure>,
    ) -> Option<T> {
        self.try_ask(what, call).ok()
    }

    /// As [`Self::ask`], telling those who have to know whether a value is missing for good.
    pub(super) fn try_ask<T>(
        &mut self,
        what: &'static str,
        call: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Missing> {
        if self.gone.is_some() || self.library.is_some() {
            return Err(Missing::Unknown);
        }
        call().map_err(|failure| {
            if failure.is_unsupported() {
                return Missing::Unsupported;
            }
            if failure.is_of_gpu() {
                self.gone = Some(failure.to_string());
            } else if failure.is_of_library() {
                self.library = Some(failure);
            } else if failure.is_refused() {
                self.refused.insert(what);
            } else {
                self.reject(what, &failure);
            }
            Missing::Unknown
        })
    }

    pub(super) fn reject(&mut self, what: &str, why: impl std::fmt::Display) {
        self.answers
            .reject(format!("{} (index {}): {what}: {why}", self.uuid, self.index));
    }

    /// The number, unless it is NVML's mark for none or out of all reason.
    fn number(
        &mut self,
        what: &'static str,
        most: u32,
        call: impl FnOnce() -> Result<u32, Failure>,
    ) -> Option<u32> {
        let told = self.ask(what, call).filter(|told| *told != NOT_AVAILABLE)?;
        if told > most {
            self.reject(what, told);
            return None;
        }
        Some(told)
    }

    /// A counter, unless it is NVML's mark for none.
    fn counter(&mut self, what: &'static str, call: impl FnOnce() -> Result<u64, Failure>) -> Option<u64> {
        self.ask(what, call).filter(|told| *told != NOT_AVAILABLE_LONG)
    }

    /// The GPU, and the instances that MIG cut of it.
    pub(super) fn read(
        &mut self,
        driver: Option<&str>,
        known: Option<&Known>,
        seen: &mut Seen,
        now: u64,
    ) -> Vec<Device> {
        let (nvml, handle) = (self.nvml, self.handle);
        let mut whole = Device::new(DeviceKey {
            uuid: self.uuid.clone(),
            instance: None,
        });
        whole.index = Some(self.index);
        whole.driver = driver.map(str::to_owned);
        // What can't be told now is what it was.
        whole.model = self
            .ask("name", || call::name(nvml, handle))
            .or_else(|| known.and_then(|known| known.model.clone()));
        whole.pci = self
            .ask("PCI id", || call::pci(nvml, handle))
            .or_else(|| known.and_then(|known| known.pci.clone()));
        whole.minor = self
            .ask("number of the device node", || Ok(handle.minor_number()?))
            .or_else(|| known.and_then(|known| known.minor));
        whole.readings = self.readings();

        let (cut, instances) = mig::instances(self);
        let mut running = process::running(self, cut, &instances, whole.readings.memory_total, driver);
        whole.processes = running.take(None);
        if let Some(processes) = &mut whole.processes {
            process::utilization(self, seen, now, processes);
        }

        let mut devices = vec![whole];
        for (id, instance) in instances {
            devices.push(self.instance(&devices[0], id, instance, &mut running));
        }
        // Instances that nobody listed, and that processes are on nevertheless.
        for id in running.instances() {
            devices.push(self.instance(&devices[0], id, Instance::default(), &mut running));
        }
        let trouble = self.trouble();
        for device in &mut devices {
            device.trouble.clone_from(&trouble);
        }
        if let (Some(why), Some(known)) = (&self.gone, known) {
            let missing = known.lost(self.index, driver, why);
            let there: BTreeSet<_> = devices.iter().map(|device| device.key.clone()).collect();
            devices.extend(missing.into_iter().filter(|device| !there.contains(&device.key)));
        }
        devices
    }

    fn instance(&self, whole: &Device, id: u32, instance: Instance<'_>, running: &mut Running) -> Device {
        let mut device = Device::new(DeviceKey {
            uuid: self.uuid.clone(),
            instance: Some(id),
        });
        device.index = whole.index;
        device.minor = whole.minor;
        device.model.clone_from(&whole.model);
        device.driver.clone_from(&whole.driver);
        device.pci.clone_from(&whole.pci);
        device.mig = Some(instance.mig);
        device.readings = instance.readings;
        device.processes = running.take(Some(id));
        device
    }

    fn trouble(&self) -> Option<String> {
        if let Some(why) = &self.gone {
            return Some(why.clone());
        }
        if self.refused.is_empty() {
            return None;
        }
        let what: Vec<_> = self.refused.iter().copied().collect();
        Some(format!(
            "not permitted to read: {}; this may take root",
            what.join(", ")
        ))
    }

    fn readings(&mut self) -> Readings {
        let (nvml, handle) = (self.nvml, self.handle);
        let mut readings = Readings::NONE;
        if let Some(rates) = self.ask("utilisation", || Ok(handle.utilization_rates()?)) {
            readings.utilization = self.share("utilisation", rates.gpu);
            readings.memory_copy = self.share("utilisation of memory", rates.memory);
        }
        self.memory(handle, "memory", &mut readings);
        let temperature = self.number("temperature", HOTTEST, || {
            Ok(handle.temperature(TemperatureSensor::Gpu)?)
        });
        readings.temperature = temperature.map(f64::from);
        let milliwatts = self.number("power", STRONGEST, || Ok(handle.power_usage()?));
        readings.power = milliwatts.map(|milliwatts| f64::from(milliwatts) / 1e3);
        let millijoules = self.counter("energy", || Ok(handle.total_energy_consumption()?));
        readings.energy = millijoules.map(|millijoules| millijoules as f64 / 1e3);
        let hertz = |megahertz: u32| f64::from(megahertz) * 1e6;
        readings.sm_clock = self
            .number("SM clock", FASTEST, || Ok(handle.clock_info(Clock::SM)?))
            .map(hertz);
        readings.memory_clock = self
            .number("memory clock", FASTEST, || Ok(handle.clock_info(Clock::Memory)?))
            .map(hertz);
        let errors = |kind| Ok(handle.total_ecc_errors(kind, EccCounter::Volatile)?);
        readings.ecc_corrected = self.counter("ECC errors", || errors(MemoryError::Corrected));
        readings.ecc_uncorrected = self.counter("ECC errors", || errors(MemoryError::Uncorrected));
        if let Some(values) = self.ask("fields", || fields(nvml, handle)) {
            self.transfers(&values, &mut readings);
        }
        readings
    }

    fn share(&mut self, what: &'static str, percent: u32) -> Option<f64> {
        match percent {
            0..=100 => Some(f64::from(percent) / 100.0),
            NOT_AVAILABLE => None,
            more => {
                self.reject(what, format_args!("{more} %"));
                None
            }
        }
    }

    /// Memory of the GPU, or of an instance by its own handle.
    pub(super) fn memory(&mut self, of: &nvml_wrapper::Device<'_>, what: &'static str, into: &mut Readings) {
        let nvml = self.nvml;
        let Some((total, free, used)) = self.ask(what, || call::memory(nvml, of)) else {
            return;
        };
        let known = |bytes: u64| Some(bytes).filter(|bytes| *bytes != NOT_AVAILABLE_LONG);
        let Some(total) = known(total) else { return };
        if [free, used]
            .into_iter()
            .filter_map(known)
            .any(|part| part > total)
        {
            self.reject(what, format_args!("{used} used and {free} free of {total} bytes"));
            return;
        }
        into.memory_total = Some(total);
        into.memory_free = known(free);
        into.memory_used = known(used);
    }

    /// Bytes over PCIe and NVLink, from the fields that count them.
    fn transfers(&mut self, values: &[nvmlFieldValue_t], readings: &mut Readings) {
        let mut counters = BTreeMap::new();
        for ((id, name), value) in FIELDS.into_iter().zip(values) {
            if value.fieldId != id {
                self.reject(
                    name,
                    format_args!("field {} was told in its place", value.fieldId),
                );
                continue;
            }
            if self.ask(name, || Ok(nvml_try(value.nvmlReturn)?)).is_none() {
                continue;
            }
            // SAFETY: NVML names the member of the union that it wrote, and all its members are plain numbers.
            let told = unsafe {
                match value.valueType {
                    ULONGLONG => value.value.ullVal,
                    #[cfg(target_pointer_width = "64")]
                    ULONG => value.value.ulVal,
                    // 32 bits wrap more often than they are read: no counter can be made of it.
                    UINT => {
                        readings
                            .other
                            .insert(name.to_owned(), f64::from(value.value.uiVal));
                        continue;
                    }
                    other => {
                        self.reject(name, format_args!("a value of type {other}"));
                        continue;
                    }
                }
            };
            if told != NOT_AVAILABLE_LONG {
                counters.insert(id, told);
            }
        }
        readings.pcie_tx = counters.get(&NVML_FI_DEV_PCIE_COUNT_TX_BYTES).copied();
        readings.pcie_rx = counters.get(&NVML_FI_DEV_PCIE_COUNT_RX_BYTES).copied();
        let sent = counters.get(&NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX);
        let received = counters.get(&NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX);
        if let (Some(sent), Some(received)) = (sent, received) {
            readings.nvlink = sent.checked_add(*received).and_then(|kib| kib.checked_mul(1024));
            if readings.nvlink.is_none() {
                self.reject("NVLink", format_args!("{sent} and {received} KiB"));
            }
        }
    }
}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// There is none here.
    Unsupported,
    /// There may be one.
    Unknown,
}

const FIELD_COUNT: u8 = 4;

/// The fields that are read, by NVML's names.
const FIELDS: [(u32, &str); FIELD_COUNT as usize] = [
    (NVML_FI_DEV_PCIE_COUNT_TX_BYTES, "NVML_FI_DEV_PCIE_COUNT_TX_BYTES"),
    (NVML_FI_DEV_PCIE_COUNT_RX_BYTES, "NVML_FI_DEV_PCIE_COUNT_RX_BYTES"),
    (
        NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
        "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX",
    ),
    (
        NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
        "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX",
    ),
];

/// The wrapper leaves the scope at the first link.
fn fields(
    nvml: &Nvml,
    device: &nvml_wrapper::Device<'_>,
) -> Result<[nvmlFieldValue_t; FIELD_COUNT as usize], Failure> {
    let get = nvml_sym(nvml.lib().nvmlDeviceGetFieldValues.as_ref())?;
    let mut values = FIELDS.map(|(id, _)| nvmlFieldValue_t {
        fieldId: id,
        scopeId: match id {
            NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX | NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX => ALL_LINKS,
            _ => 0,
        },
        timestamp: 0,
        latencyUsec: 0,
        valueType: 0,
        nvmlReturn: 0,
        value: nvmlValue_t { ullVal: 0 },
    });
    // SAFETY: the handle is of this library, and there are as many values as is said.
    nvml_try(unsafe { get(raw(device), FIELD_COUNT.into(), values.as_mut_ptr()) })?;
    Ok(values)
}
