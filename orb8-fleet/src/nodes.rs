//! The members themselves.

use orb8_proto::{
    Responses,
    v1::{NodeInfo, NodeState},
};
use prost_types::Duration;
use tonic::Status;

use crate::{
    ask::nobody,
    hub::Hub,
    member::{Clock, Member, Reach},
};

impl Hub {
    /// All members, or those that are named, by name.
    pub(crate) fn nodes(&self, nodes: &[String]) -> Result<Responses<NodeInfo>, Status> {
        // Refuses names that are nobody's.
        let selection = self.select(nodes, None)?;
        let known = selection.asked.len() + selection.others.len();
        if known == 0
            && let Some(error) = nobody(&[], None)
        {
            return Err(error);
        }
        let members = self.members.borrow().clone();
        let infos: Vec<NodeInfo> = members
            .iter()
            .filter(|member| member.is_wanted(nodes))
            .map(info)
            .collect();
        Ok(Box::pin(futures::stream::iter(infos.into_iter().map(Ok))))
    }
}

/// What is known of a member.
fn info(member: &Member) -> NodeInfo {
    let (state, reason) = match &member.reach {
        Reach::Channel(_) => (NodeState::Answered, String::new()),
        Reach::Away { state, reason } => (*state, reason.clone()),
    };
    let measured = member.clock != Clock::default();
    NodeInfo {
        name: member.name.clone(),
        state: state.into(),
        reason: if reason.is_empty() {
            member.info.reason.clone()
        } else {
            reason
        },
        clock_offset: measured.then(|| duration(member.clock.offset_ns)),
        clock_error: measured.then(|| duration(i64::try_from(member.clock.error_ns).unwrap_or(i64::MAX))),
        ..member.info.clone()
    }
}

const fn duration(ns: i64) -> Duration {
    Duration {
        seconds: ns / 1_000_000_000,
        nanos: (ns % 1_000_000_000) as i32,
    }
}
