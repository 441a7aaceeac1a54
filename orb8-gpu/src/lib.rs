//! What the GPUs of a node do, and for whom.
//!
//! A source samples devices ([`sample`]); the kubelet says who holds which ([`allocation`]).

pub mod allocation;
pub mod dcgm;
pub mod id;
pub mod nvml;
pub mod sample;
