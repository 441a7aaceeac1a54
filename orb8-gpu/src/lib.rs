//! What the GPUs of a node do, and for whom.
//!
//! A source samples devices ([`sample`]): dcgm-exporter ([`dcgm`]) or NVIDIA's management library ([`nvml`]). The kubelet says
//! who holds which ([`kubelet`], [`allocation`]). A [`Monitor`] keeps both for a while, and says of each device what it did and whose use
//! that was, as far as that is known.

pub mod allocation;
mod answer;
mod attribution;
pub mod dcgm;
pub mod driver;
mod foreign;
mod history;
pub mod id;
pub mod kubelet;
mod labelled;
mod merge;
mod monitor;
pub mod nvml;
mod owners;
mod resolve;
pub mod sample;
mod span;
mod xid;

pub use answer::{Answer, IdleSpan, QueryError, Totals, goes_by};
pub use foreign::Foreign;
pub use monitor::{Counted, Limits, Monitor};
pub use owners::{Owner, Owners, PodDetails};
pub use xid::meaning;
