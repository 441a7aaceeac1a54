//! A dcgm-exporter that serves the page it is told to, well or badly.
//!
//! [`Exporter`] is one that runs until it is dropped, for tests; the program of the same name serves files. The README says
//! how to use it from outside, and what the [`Fault`]s do.

mod compressed;
mod fault;
mod serve;

pub use fault::{Fault, FaultError};
pub use serve::{Exporter, Page};

/// A page of a node with three GPUs: held by one pod, cut into instances, and shared by two pods.
pub const EXAMPLE: &str = include_str!("../example.prom");
