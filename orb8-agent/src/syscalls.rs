//! System calls: their names, whose they are, recent history, totals, and what has changed.
//!
//! The probe family's programs count; here is everything from the drained numbers on.

mod arguments;
pub mod baseline;
pub mod call;
pub mod category;
pub mod errno;
mod event;
mod family;
mod filter;
pub mod history;
mod live;
mod query;
pub(crate) mod state;
mod store;
pub mod totals;
pub mod workload;

pub(crate) use family::{ProbeSlot, SyscallReader, Syscalls, read_events};
pub(crate) use filter::CallFilter;
pub use filter::CallQueryError;
pub(crate) use live::{CallSubscription, LiveCall, LiveCallFilter, ReceivedCall, SyscallLive};
pub(crate) use query::CallQuery;
pub(crate) use store::SyscallStore;
