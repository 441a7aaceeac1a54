//! DCGM's fields: their names, units and what they are of.
//!
//! DCGM 4.6 gave many fields new names; old ones stay valid, and both are read.
//!
//! What is not here stays under its own name in [`Readings::other`], among it:
//! - `DCGM_FI_PROF_PCIE_TX_BYTES` and `_RX_BYTES`, `DCGM_FI_PROF_NVLINK_TX_BYTES` and `_RX_BYTES`: rates in bytes a second
//!   whatever their names say, and whatever an exporter's `# TYPE` line says, which was `counter` for a long time;
//! - `DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL` (since 4.6 `…_THROUGHPUT_TOTAL`): a rate in MB/s, although the exporter calls it
//!   a counter;
//! - `DCGM_FI_DEV_PCIE_TX_THROUGHPUT` and `_RX_THROUGHPUT`: rates in kB/s.

use super::text::Value;
use crate::sample::Readings;

/// DCGM's blanks say that there is no value, and why: the first and those that follow.
const INT32_BLANKS: std::ops::RangeInclusive<f64> = 2_147_483_632.0..=2_147_483_647.0;
const FP64_BLANKS: std::ops::RangeInclusive<f64> = 140_737_488_355_328.0..=140_737_488_355_343.0;
/// As a float the first is 2^63, as are all others.
const INT64_BLANK: f64 = 9_223_372_036_854_775_792.0;

/// Whether it stands for no value: a blank of DCGM, or NaN, by which a Prometheus says that a series has ended.
pub(super) fn is_missing(value: Value) -> bool {
    let number = value.number;
    number.is_nan()
        || number >= INT64_BLANK
        || INT32_BLANKS.contains(&number)
        || FP64_BLANKS.contains(&number)
}

/// The name of a field that the first exporter, and later ones with its list of metrics, call otherwise.
pub(super) fn current(name: &str) -> &str {
    match name {
        "dcgm_sm_clock" => "DCGM_FI_DEV_SM_CLOCK",
        "dcgm_memory_clock" => "DCGM_FI_DEV_MEM_CLOCK",
        "dcgm_memory_temp" => "DCGM_FI_DEV_MEMORY_TEMP",
        "dcgm_gpu_temp" => "DCGM_FI_DEV_GPU_TEMP",
        "dcgm_power_usage" => "DCGM_FI_DEV_POWER_USAGE",
        "dcgm_total_energy_consumption" => "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "dcgm_pcie_replay_counter" => "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
        "dcgm_gpu_utilization" => "DCGM_FI_DEV_GPU_UTIL",
        "dcgm_mem_copy_utilization" => "DCGM_FI_DEV_MEM_COPY_UTIL",
        "dcgm_enc_utilization" => "DCGM_FI_DEV_ENC_UTIL",
        "dcgm_dec_utilization" => "DCGM_FI_DEV_DEC_UTIL",
        "dcgm_xid_errors" => "DCGM_FI_DEV_XID_ERRORS",
        "dcgm_fb_free" => "DCGM_FI_DEV_FB_FREE",
        "dcgm_fb_used" => "DCGM_FI_DEV_FB_USED",
        "dcgm_nvlink_bandwidth_total" => "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",
        "dcgm_fi_prof_gr_engine_active" => "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        "dcgm_fi_prof_pipe_tensor_active" => "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        "dcgm_fi_prof_dram_active" => "DCGM_FI_PROF_DRAM_ACTIVE",
        "dcgm_fi_prof_pcie_tx_bytes" => "DCGM_FI_PROF_PCIE_TX_BYTES",
        "dcgm_fi_prof_pcie_rx_bytes" => "DCGM_FI_PROF_PCIE_RX_BYTES",
        name => name,
    }
}

/// A field that [`Readings`] has a place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Utilization,
    MemoryCopy,
    MemoryUsed,
    MemoryFree,
    MemoryTotal,
    Temperature,
    Power,
    Energy,
    SmClock,
    MemoryClock,
    Xid,
    NvlinkTx,
    NvlinkRx,
    EccCorrected,
    EccUncorrected,
    GraphicsActive,
    SmActive,
    SmOccupancy,
    TensorActive,
    DramActive,
    Fp64Active,
    Fp32Active,
    Fp16Active,
}

impl Field {
    /// Of this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name.strip_prefix("DCGM_FI_")? {
            // A percentage under its new name, too.
            "DEV_GPU_UTIL" | "DEV_GPU_UTIL_RATIO" => Self::Utilization,
            "DEV_MEM_COPY_UTIL" => Self::MemoryCopy,
            "DEV_FB_USED" => Self::MemoryUsed,
            "DEV_FB_FREE" => Self::MemoryFree,
            "DEV_FB_TOTAL" => Self::MemoryTotal,
            "DEV_GPU_TEMP" | "DEV_GPU_TEMP_CELSIUS" => Self::Temperature,
            "DEV_POWER_USAGE" | "DEV_BOARD_POWER_WATTS" => Self::Power,
            "DEV_TOTAL_ENERGY_CONSUMPTION" => Self::Energy,
            "DEV_SM_CLOCK" => Self::SmClock,
            "DEV_MEM_CLOCK" => Self::MemoryClock,
            "DEV_XID_ERRORS" | "DEV_XID_ERROR" => Self::Xid,
            // Counters of NVLink 5, sums over the device's links.
            "DEV_NVLINK_COUNT_TX_BYTES" | "DEV_NVLINK_TX_BYTES_TOTAL" => Self::NvlinkTx,
            "DEV_NVLINK_COUNT_RX_BYTES" | "DEV_NVLINK_RX_BYTES_TOTAL" => Self::NvlinkRx,
            "DEV_ECC_SBE_VOL_TOTAL" => Self::EccCorrected,
            "DEV_ECC_DBE_VOL_TOTAL" => Self::EccUncorrected,
            "PROF_GR_ENGINE_ACTIVE" | "PROF_GR_ENGINE_UTIL_RATIO" => Self::GraphicsActive,
            "PROF_SM_ACTIVE" | "PROF_SM_UTIL_RATIO" => Self::SmActive,
            "PROF_SM_OCCUPANCY" | "PROF_SM_OCCUPANCY_RATIO" => Self::SmOccupancy,
            "PROF_PIPE_TENSOR_ACTIVE" | "PROF_TENSOR_UTIL_RATIO" => Self::TensorActive,
            "PROF_DRAM_ACTIVE" | "PROF_DRAM_UTIL_RATIO" => Self::DramActive,
            "PROF_PIPE_FP64_ACTIVE" | "PROF_FP64_UTIL_RATIO" => Self::Fp64Active,
            "PROF_PIPE_FP32_ACTIVE" | "PROF_FP32_UTIL_RATIO" => Self::Fp32Active,
            "PROF_PIPE_FP16_ACTIVE" | "PROF_FP16_UTIL_RATIO" => Self::Fp16Active,
            _ => return None,
        })
    }

    /// Whether dcgm-exporter (4.8 and later) tells it per process for the pods that share a device, beside the device's own
    /// row: of a pod whose processes it knows nothing of it says 0.
    pub(super) const fn is_per_process(self) -> bool {
        matches!(self, Self::Utilization | Self::MemoryUsed)
    }

    /// Puts a value where it belongs, in the base unit; false: no such value can be.
    pub(super) fn set(self, value: Value, readings: &mut Readings) -> bool {
        const MIB: f64 = 1_048_576.0;
        const MHZ: f64 = 1e6;
        let profile = &mut readings.profile;
        match self {
            Self::Utilization => gauge(&mut readings.utilization, value, 0.01, 1.0),
            Self::MemoryCopy => gauge(&mut readings.memory_copy, value, 0.01, 1.0),
            Self::MemoryUsed => count(&mut readings.memory_used, value, MIB),
            Self::MemoryFree => count(&mut readings.memory_free, value, MIB),
            Self::MemoryTotal => count(&mut readings.memory_total, value, MIB),
            // What a thermometer on silicon that works could say.
            Self::Temperature => {
                (-100.0..=300.0).contains(&value.number) && {
                    readings.temperature = Some(value.number);
                    true
                }
            }
            Self::Power => gauge(&mut readings.power, value, 1.0, 1e5),
            Self::Energy => gauge(&mut readings.energy, value, 1e-3, f64::MAX),
            Self::SmClock => gauge(&mut readings.sm_clock, value, MHZ, 1e11),
            Self::MemoryClock => gauge(&mut readings.memory_clock, value, MHZ, 1e11),
            Self::Xid => {
                let mut code = None;
                count(&mut code, value, 1.0)
                    && code
                        .and_then(|code| u32::try_from(code).ok())
                        .is_some_and(|code| {
                            readings.xid = Some(code);
                            true
                        })
            }
            Self::NvlinkTx | Self::NvlinkRx => {
                let mut bytes = None;
                count(&mut bytes, value, 1.0) && {
                    readings.nvlink = readings.nvlink.unwrap_or(0).checked_add(bytes.unwrap_or(0));
                    readings.nvlink.is_some()
                }
            }
            Self::EccCorrected => count(&mut readings.ecc_corrected, value, 1.0),
            Self::EccUncorrected => count(&mut readings.ecc_uncorrected, value, 1.0),
            Self::GraphicsActive => ratio(&mut profile.graphics_active, value),
            Self::SmActive => ratio(&mut profile.sm_active, value),
            Self::SmOccupancy => ratio(&mut profile.sm_occupancy, value),
            Self::TensorActive => ratio(&mut profile.tensor_active, value),
            Self::DramActive => ratio(&mut profile.memory_active, value),
            Self::Fp64Active => ratio(&mut profile.fp64_active, value),
            Self::Fp32Active => ratio(&mut profile.fp32_active, value),
            Self::Fp16Active => ratio(&mut profile.fp16_active, value),
        }
    }
}

/// Whether a field is only of a whole GPU, so that what a row of an instance says is the value of its GPU, repeated: DCGM
/// answers for the GPU where it is asked for such a field of an instance.
pub(super) fn is_of_whole_gpu(name: &str) -> bool {
    const OF_INSTANCES: [&str; 16] = [
        "DEV_BAR1_",
        "DEV_FB_",
        "DEV_XID_ERROR",
        "PROF_GR_ENGINE_",
        "PROF_SM_",
        "PROF_PIPE_",
        "PROF_TENSOR_",
        "PROF_DRAM_",
        "PROF_FP64_",
        "PROF_FP32_",
        "PROF_FP16_",
        "PROF_IMMA_",
        "PROF_HMMA_",
        "PROF_DFMA_",
        "PROF_INT_",
        "CUDA_",
    ];
    let name = name.strip_prefix("DCGM_FI_").unwrap_or(name);
    !OF_INSTANCES.iter().any(|beginning| name.starts_with(beginning))
}

fn gauge(place: &mut Option<f64>, value: Value, unit: f64, most: f64) -> bool {
    let number = value.number * unit;
    let fits = (0.0..=most).contains(&number);
    if fits {
        *place = Some(number);
    }
    fits
}

/// A share; the profiler's rounding may exceed the whole by a little.
fn ratio(place: &mut Option<f64>, value: Value) -> bool {
    const ROUNDING: f64 = 1.005;
    let fits = (0.0..=ROUNDING).contains(&value.number);
    if fits {
        *place = Some(value.number.min(1.0));
    }
    fits
}

fn count(place: &mut Option<u64>, value: Value, unit: f64) -> bool {
    // Beyond, all numbers are blanks; so the cast does not saturate.
    const MOST: f64 = 9e18;
    let scaled = value.number * unit;
    let fits = (0.0..MOST).contains(&scaled);
    if fits {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked above"
        )]
        let rounded = scaled.round() as u64;
        *place = Some(if unit == 1.0 {
            value.whole.unwrap_or(rounded)
        } else {
            rounded
        });
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Value {
            number: text.parse().unwrap(),
            whole: text.parse().ok(),
        }
    }

    fn read(name: &str, text: &str) -> Option<Readings> {
        let mut readings = Readings::NONE;
        Field::of(name)
            .unwrap()
            .set(value(text), &mut readings)
            .then_some(readings)
    }

    #[test]
    fn units_are_base_units() {
        let none = Readings::NONE;
        for (name, text, expected) in [
            (
                "DCGM_FI_DEV_GPU_UTIL",
                "100",
                Readings {
                    utilization: Some(1.0),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_GPU_UTIL",
                "0",
                Readings {
                    utilization: Some(0.0),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_GPU_UTIL_RATIO",
                "25",
                Readings {
                    utilization: Some(0.25),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_FB_USED",
                "3",
                Readings {
                    memory_used: Some(3 << 20),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_POWER_USAGE",
                "61.500000",
                Readings {
                    power: Some(61.5),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
                "2500",
                Readings {
                    energy: Some(2.5),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_SM_CLOCK",
                "1410",
                Readings {
                    sm_clock: Some(1.41e9),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_GPU_TEMP",
                "-5",
                Readings {
                    temperature: Some(-5.0),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_XID_ERRORS",
                "79",
                Readings {
                    xid: Some(79),
                    ..none.clone()
                },
            ),
            (
                "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES",
                "9007199254740993",
                Readings {
                    nvlink: Some(9_007_199_254_740_993),
                    ..none.clone()
                },
            ),
        ] {
            assert_eq!(read(name, text), Some(expected), "{name} {text}");
        }
        let mut readings = Readings::NONE;
        assert!(Field::DramActive.set(value("1.000001"), &mut readings));
        assert_eq!(readings.profile.memory_active, Some(1.0));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (name, text) in [
            ("DCGM_FI_DEV_GPU_UTIL", "300"),
            ("DCGM_FI_DEV_GPU_UTIL", "-1"),
            ("DCGM_FI_DEV_GPU_UTIL", "+Inf"),
            ("DCGM_FI_DEV_FB_USED", "-1"),
            ("DCGM_FI_DEV_FB_USED", "1e16"),
            ("DCGM_FI_DEV_GPU_TEMP", "4000"),
            ("DCGM_FI_DEV_POWER_USAGE", "1e9"),
            ("DCGM_FI_DEV_XID_ERRORS", "4294967296"),
            ("DCGM_FI_PROF_SM_ACTIVE", "1.1"),
            ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "-Inf"),
        ] {
            assert_eq!(read(name, text), None, "{name} {text}");
        }
    }

    #[test]
    fn blanks_are_no_numbers() {
        for text in [
            "9223372036854775792",
            "9223372036854775793",
            "9223372036854775794",
            "9223372036854775795",
            "9.223372036854776e+18",
            "2147483632",
            "2147483633",
            "2147483634",
            "2147483635",
            "2.147483634e+09",
            "140737488355328.000000",
            "140737488355329.0",
            "1.4073748835533e+14",
            "140737488355331",
            "NaN",
            "+Inf",
        ] {
            assert!(is_missing(value(text)), "{text}");
        }
        for text in [
            "0",
            "2147483631",
            "2147483648",
            "140737488355327",
            "140737488355344",
            "9007199254740993",
            "-Inf",
        ] {
            assert!(!is_missing(value(text)), "{text}");
        }
    }

    #[test]
    fn temperature_and_power_are_never_an_instances() {
        for name in [
            "DCGM_FI_DEV_GPU_TEMP",
            "DCGM_FI_DEV_POWER_USAGE",
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "DCGM_FI_DEV_GPU_UTIL",
            "DCGM_FI_DEV_SM_CLOCK",
            "DCGM_FI_PROF_PCIE_TX_BYTES",
            "DCGM_FI_DEV_MADE_UP",
        ] {
            assert!(is_of_whole_gpu(name), "{name}");
        }
        for name in [
            "DCGM_FI_DEV_FB_USED",
            "DCGM_FI_DEV_XID_ERRORS",
            "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
            "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
            "DCGM_FI_PROF_DRAM_UTIL_RATIO",
        ] {
            assert!(!is_of_whole_gpu(name), "{name}");
        }
    }
}
