//! gRPC protocol of orb8.
//!
//! The messages are generated from `proto/orb8/v1/*.proto`, where each field is documented; the conversions
//! that every user of the protocol needs are in [`v1`]'s submodules.

/// Version 1 of the protocol: additions only.
pub mod v1 {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        clippy::allow_attributes_without_reason,
        reason = "generated code; documentation is in the .proto files"
    )]
    tonic::include_proto!("orb8.v1");
}

mod answer;
pub mod edges;

pub use answer::{Responses, batches};

/// Encoded `FileDescriptorSet` of the protocol, for the gRPC reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
