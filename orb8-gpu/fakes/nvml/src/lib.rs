//! A `libnvidia-ml.so.1` that says what a file tells it to.
//!
//! Built as a shared library it stands in for NVIDIA's management library: same names, same structs, same ways to fail. What
//! it answers is read from a JSON file at each call ([`config`]). Built as a Rust library it sets such a file up for tests
//! ([`install`]). The README says how to use it from any other program.

pub mod config;
pub mod entry;
pub mod install;
mod layout;
mod state;

/// Sizes of the structs, to be compared with those of other bindings: utilisation, memory (1 and 2), PCI, process (1 and 2),
/// sample of a process, field value, GPU instance, event.
#[must_use]
pub const fn sizes() -> [usize; 10] {
    use layout::{
        EventData, FieldValue, GpuInstanceInfo, Memory, MemoryV2, PciInfo, ProcessSample, ProcessV1,
        ProcessV2, Utilization,
    };
    [
        size_of::<Utilization>(),
        size_of::<Memory>(),
        size_of::<MemoryV2>(),
        size_of::<PciInfo>(),
        size_of::<ProcessV1>(),
        size_of::<ProcessV2>(),
        size_of::<ProcessSample>(),
        size_of::<FieldValue>(),
        size_of::<GpuInstanceInfo>(),
        size_of::<EventData>(),
    ]
}
