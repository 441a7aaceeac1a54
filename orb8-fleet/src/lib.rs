//! Many agents asked as one.
//!
//! A [`Hub`] serves [`OrbitService`](orb8_proto::v1::orbit_service_server::OrbitService) over a changing set of
//! [`Member`]s: one file each for flows, edges, system calls, events, pods and states says how their answers are joined.
//! Whoever does not answer is named in the answer, with the reason.

mod hub;
mod member;

pub use hub::{Hub, Limits, PodNodes, Wanted};
pub use member::{Clock, Member, Members, Reach, Trouble, innermost};
