//! Whom a question goes to, and what becomes of each.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use futures::StreamExt as _;
use orb8_proto::v1::{NodeAnswer, NodeState, orbit_service_client::OrbitServiceClient};
use tokio::time::Instant;
use tonic::{Code, Status, transport::Channel};

use crate::{
    hub::Hub,
    member::{Member, Reach, innermost},
};

/// The protocol's client.
pub(crate) type Client = OrbitServiceClient<Channel>;

/// Names that an error lists at most.
const NAMES: usize = 10;
/// A broken connection is tried once more after this.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A member that a question is put to.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) member: Member,
    pub(crate) client: Client,
    deadline: Duration,
}

/// Whom to ask, and those of whom it is known already what becomes of them. Together these are all members.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) asked: Vec<Asked>,
    /// Away, or not asked.
    pub(crate) others: Vec<NodeAnswer>,
    /// Names of all of these, in the order of the members.
    pub(crate) order: Vec<String>,
}

/// Puts answers into the order of the members.
pub(crate) fn in_order(order: &[String], answers: &mut [NodeAnswer]) {
    let place: HashMap<&str, usize> = order.iter().map(String::as_str).zip(0..).collect();
    answers.sort_by_cached_key(|answer| place.get(answer.name.as_str()).copied());
}

/// How an agent's own name is told.
pub(crate) trait ToldBy {
    /// The agent says that it is on `node`.
    fn told_by(&mut self, node: &str);
}

impl ToldBy for NodeAnswer {
    fn told_by(&mut self, node: &str) {
        // Where it was found under a name, that is what it goes by.
        if self.name != node && self.name.contains(':') {
            node.clone_into(&mut self.node);
        }
    }
}

impl Asked {
    /// The result of `work`, within the deadline.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        self.until(Instant::now() + self.deadline, work).await
    }

    /// As [`Asked::within`]; a connection that breaks is tried once more, if the deadline allows it. Only for work that can
    /// be done again from its beginning.
    pub(crate) async fn try_within<T, F>(&self, work: impl Fn(Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let end = Instant::now() + self.deadline;
        match self.until(end, work(self.client.clone())).await {
            Err(status) if is_broken(&status) && Instant::now() + RETRY_AFTER < end => {
                tokio::time::sleep(RETRY_AFTER).await;
                self.until(end, work(self.client.clone())).await
            }
            result => result,
        }
    }

    async fn until<T>(
        &self,
        end: Instant,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout_at(end, work).await {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded(format!(
                "nothing heard for {} s",
                self.deadline.as_secs_f64()
            ))),
        }
    }

    /// What it answered to the end.
    pub(crate) fn answered(&self) -> NodeAnswer {
        NodeAnswer {
            name: self.member.name.clone(),
            state: NodeState::Answered.into(),
            ..NodeAnswer::default()
        }
    }

    /// What became of a question that ended with `status`, after `items` were given.
    pub(crate) fn failed(&self, status: &Status, items: u64) -> NodeAnswer {
        let state = match status.code() {
            _ if items > 0 => NodeState::Partial,
            Code::DeadlineExceeded => NodeState::Silent,
            _ if is_broken(status) => NodeState::Unreachable,
            _ => NodeState::Refused,
        };
        NodeAnswer {
            name: self.member.name.clone(),
            state: state.into(),
            reason: self.why(status),
            items,
            ..NodeAnswer::default()
        }
    }

    /// What a gRPC error of this member means, for the user.
    fn why(&self, status: &Status) -> String {
        match status.code() {
            _ if is_broken(status) => self
                .member
                .trouble
                .get()
                .or_else(|| std::error::Error::source(status).map(innermost))
                .unwrap_or_else(|| status.message().to_owned()),
            Code::Unimplemented => {
                let version = match self.member.info.version.as_str() {
                    "" => "another version".to_owned(),
                    version => format!("version {version}"),
                };
                format!(
                    "does not know this request: its agent is of {version}, this is {}",
                    env!("CARGO_PKG_VERSION")
                )
            }
            Code::DeadlineExceeded | Code::InvalidArgument => status.message().to_owned(),
            code => format!("{} ({code:?})", status.message()),
        }
    }
}

/// Whether a connection broke, or none could be made: nothing that the agent said.
fn is_broken(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal
    )
}

impl Hub {
    /// Whom to ask: of the members those in `nodes`, if any are named, and in `route`, if it is known who can hold the
    /// answer.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if a name in `nodes` is nobody's.
    pub(crate) fn select(
        &self,
        nodes: &[String],
        route: Option<&BTreeSet<String>>,
    ) -> Result<Selection, Status> {
        let members = self.members.borrow().clone();
        let unknown: Vec<&str> = nodes
            .iter()
            .filter(|node| !members.iter().any(|member| member.is_on(node)))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            let known: Vec<&str> = members
                .iter()
                .take(NAMES)
                .map(|member| member.name.as_str())
                .collect();
            let more = members.len() - known.len();
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            return Err(Status::invalid_argument(format!(
                "no agent runs on node {}: agents are on {}{more}",
                unknown.join(", "),
                known.join(", ")
            )));
        }
        let mut selection = Selection::default();
        for member in members.iter() {
            if !member.is_wanted(nodes) {
                continue;
            }
            selection.order.push(member.name.clone());
            let settled = |state: NodeState, reason: &str| NodeAnswer {
                name: member.name.clone(),
                state: state.into(),
                reason: reason.to_owned(),
                ..NodeAnswer::default()
            };
            if route.is_some_and(|route| !route.contains(&member.name)) {
                selection.others.push(settled(NodeState::NotAsked, ""));
                continue;
            }
            match &member.reach {
                Reach::Channel(channel) => selection.asked.push(Asked {
                    client: OrbitServiceClient::new(channel.clone())
                        .max_decoding_message_size(self.limits.max_message),
                    member: member.clone(),
                    deadline: self.limits.deadline,
                }),
                Reach::Away { state, reason } => selection.others.push(settled(*state, reason)),
            }
        }
        // Where the answer is, but nobody who could give it.
        let members: BTreeSet<&String> = members.iter().map(|member| &member.name).collect();
        for node in route.into_iter().flatten() {
            if !members.contains(node) && nodes.is_empty() {
                selection.order.push(node.clone());
                selection.others.push(NodeAnswer {
                    name: node.clone(),
                    state: NodeState::Unreachable.into(),
                    reason: "no agent is known there".to_owned(),
                    ..NodeAnswer::default()
                });
            }
        }
        Ok(selection)
    }

    /// Asks all of them at once, so many at a time, for one message each; in their order.
    pub(crate) async fn gather<T, F>(
        &self,
        asked: Vec<Asked>,
        ask: impl Fn(Client) -> F,
    ) -> Vec<(Asked, Result<T, Status>)>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        futures::stream::iter(asked)
            .map(|asked| {
                let ask = &ask;
                async move {
                    let answer = asked.try_within(ask).await.map(tonic::Response::into_inner);
                    if let Err(status) = &answer {
                        self.counts.failed(status);
                    }
                    (asked, answer)
                }
            })
            .buffered(self.limits.concurrency)
            .collect()
            .await
    }
}

/// A node's name in a sentence; what is an address goes by itself.
#[must_use]
pub fn called(name: &str) -> String {
    if name.contains(':') {
        name.to_owned()
    } else {
        format!("node {name}")
    }
}

/// The error of a question that nobody answered, or that makes no sense to anybody; `refused`: an agent's
/// INVALID_ARGUMENT.
pub(crate) fn nobody(answers: &[NodeAnswer], refused: Option<&Status>) -> Option<Status> {
    if let Some(refused) = refused {
        return Some(Status::invalid_argument(refused.message()));
    }
    let silent: Vec<&NodeAnswer> = answers
        .iter()
        .filter(|answer| answer.state() != NodeState::NotAsked)
        .collect();
    let came = |answer: &&&NodeAnswer| matches!(answer.state(), NodeState::Answered | NodeState::Partial);
    if silent.iter().any(|answer| came(&answer)) {
        return None;
    }
    let [first, others @ ..] = silent.as_slice() else {
        return answers
            .is_empty()
            .then(|| Status::unavailable("no agent is known: is one running on any node?"));
    };
    if others.is_empty() && answers.len() == 1 {
        let message = &first.reason;
        return Some(match first.state() {
            NodeState::Refused => Status::failed_precondition(message),
            NodeState::Silent => Status::deadline_exceeded(message),
            _ => Status::unavailable(message),
        });
    }
    // Whatever the number of agents, an error is a few lines.
    let shown = &silent[..silent.len().min(3)];
    let more = silent.len() - shown.len();
    let told = if others.iter().all(|other| other.reason == first.reason) {
        let names: Vec<String> = shown.iter().map(|answer| called(&answer.name)).collect();
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("no answer from {}{more}: {}", names.join(", "), first.reason)
    } else {
        let sentences: Vec<String> = shown
            .iter()
            .map(|answer| format!("no answer from {}: {}", called(&answer.name), answer.reason))
            .collect();
        let more = match more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        format!("{}{more}", sentences.join("; "))
    };
    Some(Status::unavailable(told))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent(n: usize, why: fn(usize) -> String) -> Vec<NodeAnswer> {
        (0..n)
            .map(|n| NodeAnswer {
                name: format!("n{n}"),
                state: NodeState::Unreachable.into(),
                reason: why(n),
                ..NodeAnswer::default()
            })
            .collect()
    }

    #[test]
    fn an_error_of_many_agents_is_short() {
        let text = |answers: &[NodeAnswer]| nobody(answers, None).unwrap().message().to_owned();
        assert_eq!(
            text(&silent(900, |_| "forbidden".into())),
            "no answer from node n0, node n1, node n2 and 897 more: forbidden"
        );
        let different = text(&silent(5, |n| format!("reason {n}")));
        assert!(
            different.ends_with("no answer from node n2: reason 2; and 2 more"),
            "{different}"
        );
        let refused = Status::invalid_argument("bad");
        let error = nobody(&silent(2, |_| "x".into()), Some(&refused)).unwrap();
        assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "bad"));
    }

    #[test]
    fn one_answer_is_enough_and_nobody_asked_is_no_error() {
        let mut answers = silent(2, |_| "x".into());
        answers[1].set_state(NodeState::Answered);
        assert!(nobody(&answers, None).is_none());
        for answer in &mut answers {
            answer.set_state(NodeState::NotAsked);
        }
        assert!(nobody(&answers, None).is_none());
        assert!(nobody(&[], None).is_some());
    }
}
