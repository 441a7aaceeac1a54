//! Many agents asked as one.
//!
//! A [`Hub`] serves [`OrbitService`](orb8_proto::v1::orbit_service_server::OrbitService) over a changing set of
//! [`Member`]s: one file each for flows, edges, system calls, GPUs, events, pods and states says how their answers are joined.
//! Whoever does not answer is named in the answer, with the reason.

mod ask;
mod edges;
mod events;
mod flows;
mod gpus;
mod hosts;
mod hub;
mod in_process;
mod ledger;
mod member;
mod mode;
mod nodes;
mod pods;
mod status;
mod syscalls;
mod times;

pub use ask::called;
pub use hub::{Hub, HubCounts, Limits, OwnStatus, PodNodes, Wanted};
pub use member::{Clock, Member, Members, Reach, Trouble, innermost};
