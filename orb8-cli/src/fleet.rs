//! Who answers: one agent, or many that are asked as one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use futures::StreamExt as _;
use orb8_proto::v1::orbit_service_client::OrbitServiceClient;
use tonic::{Code, Status, transport::Channel};

use crate::{exit::Usage, standalone::Standalone};

/// The protocol's client.
pub(crate) type Client = OrbitServiceClient<Channel>;

/// Largest message that is taken from an agent: bounds memory.
const MAX_MESSAGE: usize = 16 << 20;
/// Agents that are asked at the same time.
const CONCURRENCY: usize = 16;
/// How long one of many agents may keep the others' answer waiting.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// One agent.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Ready to be asked; connects by itself, and again after the connection is lost.
    pub(crate) client: Client,
    /// Short name, in front of what is said of it among others: its node, or its address.
    pub(crate) name: String,
    /// Who it is, as the subject of a sentence.
    title: String,
    /// How long to wait for each part of its answer.
    pub(crate) deadline: Option<Duration>,
    /// Why the last connection was refused, where the transport's error does not say it.
    trouble: Trouble,
}

/// What a connection's other end said before it was closed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(crate) fn set(&self, why: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Member {
    /// An agent at the other end of `channel`.
    pub(crate) fn new(channel: Channel, name: String, title: String) -> Self {
        Self {
            client: OrbitServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            name,
            title,
            deadline: None,
            trouble: Trouble::default(),
        }
    }

    /// Bounds each wait for a part of its answer.
    pub(crate) fn with_deadline(mut self, trouble: Trouble) -> Self {
        self.deadline = Some(DEADLINE);
        self.trouble = trouble;
        self
    }

    /// The result of `work`, within the deadline.
    ///
    /// # Errors
    /// The agent's, or that it took too long.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let Some(deadline) = self.deadline else {
            return work.await;
        };
        match tokio::time::timeout(deadline, work).await {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded(format!(
                "nothing heard for {} s",
                deadline.as_secs()
            ))),
        }
    }

    /// What a gRPC error means to the user.
    pub(crate) fn explain(&self, status: &Status) -> anyhow::Error {
        let who = &self.title;
        match status.code() {
            Code::InvalidArgument => Usage(format!("{who} refuses the query: {}", status.message())).into(),
            Code::Unimplemented => anyhow!(
                "{who} does not know this request: it is no orb8 agent, or one of another version than this orb8 \
                 ({})",
                env!("CARGO_PKG_VERSION")
            ),
            Code::Unavailable | Code::Cancelled | Code::Unknown if self.deadline.is_none() => anyhow!(
                "{who} went away before its answer was complete ({}); is it still running (`orb8 status`)?",
                status.message()
            ),
            _ => anyhow!("{who}: {}", self.why(status)),
        }
    }

    /// The part of [`Member::explain`] that does not say who.
    pub(crate) fn why(&self, status: &Status) -> String {
        match status.code() {
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal => self
                .trouble
                .get()
                .or_else(|| std::error::Error::source(status).map(innermost))
                .unwrap_or_else(|| status.message().to_owned()),
            Code::Unimplemented => format!(
                "does not know this request: it is of another version than this orb8 ({})",
                env!("CARGO_PKG_VERSION")
            ),
            Code::DeadlineExceeded => status.message().to_owned(),
            code => format!("{} ({code:?})", status.message()),
        }
    }
}

/// All agents that answer together.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// Whom to ask.
    pub(crate) members: Vec<Member>,
    /// Who should answer and cannot be asked: name and reason.
    pub(crate) missing: Vec<(String, String)>,
    /// Who they are together, for titles.
    pub(crate) name: String,
    /// The namespace of the kubeconfig's context, if the answer comes through one.
    pub(crate) namespace: Option<String>,
    standalone: Option<Standalone>,
}

impl Fleet {
    /// A single agent.
    pub(crate) fn one(member: Member) -> Self {
        Self {
            name: member.name.clone(),
            members: vec![member],
            missing: Vec::new(),
            namespace: None,
            standalone: None,
        }
    }

    /// Several agents.
    pub(crate) fn many(members: Vec<Member>, missing: Vec<(String, String)>, name: String) -> Self {
        Self {
            members,
            missing,
            name,
            namespace: None,
            standalone: None,
        }
    }

    /// The agent of this process.
    pub(crate) fn standalone(standalone: Standalone) -> Self {
        let member = Member::new(
            standalone.channel(),
            "standalone".to_owned(),
            "the agent in this process".to_owned(),
        );
        Self {
            standalone: Some(standalone),
            ..Self::one(member)
        }
    }

    /// The same, with the namespace that is meant where none is given.
    pub(crate) fn in_namespace(mut self, namespace: String) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// Whether more than one agent is to answer, so that each sentence must say whose it is.
    pub(crate) fn is_many(&self) -> bool {
        self.members.len() + self.missing.len() > 1
    }

    /// Whether the probes were loaded by this command: history begins now.
    pub(crate) const fn is_standalone(&self) -> bool {
        self.standalone.is_some()
    }

    /// Asks all, so many at a time; answers in the order of the members.
    pub(crate) async fn ask<T, F>(&self, ask: impl Fn(Member) -> F) -> Vec<Result<T, Status>>
    where
        F: Future<Output = Result<T, Status>>,
    {
        futures::stream::iter(self.members.iter().cloned())
            .map(ask)
            .buffered(CONCURRENCY)
            .collect()
            .await
    }

    /// As [`Fleet::ask`], for answers of one message: those that came, and a sentence for each that did not.
    ///
    /// # Errors
    /// If none came, or the query makes no sense.
    pub(crate) async fn gather<T, F>(
        &self,
        ask: impl Fn(Client) -> F + Copy,
    ) -> anyhow::Result<(Vec<(&Member, T)>, Vec<String>)>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let answers = self
            .ask(|member| async move { member.within(ask(member.client.clone())).await })
            .await;
        let mut came = Vec::new();
        let mut errors = Vec::new();
        let mut silent = self.missing.clone();
        for (member, answer) in self.members.iter().zip(answers) {
            match answer {
                Ok(answer) => came.push((member, answer.into_inner())),
                Err(status) => {
                    silent.push((member.name.clone(), member.why(&status)));
                    errors.push(member.explain(&status));
                }
            }
        }
        if let Some(error) = nobody(came.is_empty(), errors, &silent) {
            return Err(error);
        }
        Ok((came, sentences(&silent)))
    }

    /// Detaches the probes, if this command loaded them.
    ///
    /// # Errors
    /// If something of ours may still be attached.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        match self.standalone {
            Some(standalone) => standalone.stop().await.context("detaching the probes"),
            None => Ok(()),
        }
    }
}

/// Who did not answer, and why.
pub(crate) fn no_answer(name: &str, why: &str) -> String {
    format!("no answer from {name}: {why}")
}

/// A sentence for each of those (name, reason) who did not answer.
pub(crate) fn sentences(silent: &[(String, String)]) -> Vec<String> {
    silent.iter().map(|(name, why)| no_answer(name, why)).collect()
}

/// The error of a question that nobody answered, or that makes no sense to anybody.
pub(crate) fn nobody(
    none_came: bool,
    mut errors: Vec<anyhow::Error>,
    silent: &[(String, String)],
) -> Option<anyhow::Error> {
    if let Some(refused) = errors.iter().position(anyhow::Error::is::<Usage>) {
        return Some(errors.swap_remove(refused));
    }
    if !none_came {
        return None;
    }
    if errors.len() == 1 && silent.len() <= 1 {
        return errors.pop();
    }
    // Whatever the number of agents, an error is a few lines.
    let shown = &silent[..silent.len().min(3)];
    let more = silent.len() - shown.len();
    if let [(_, why), others @ ..] = silent
        && others.iter().all(|(_, other)| other == why)
    {
        let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
        let more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        return Some(anyhow!("no answer from {}{more}: {why}", names.join(", ")));
    }
    let more = if more == 0 {
        String::new()
    } else {
        format!("; and {more} more")
    };
    Some(anyhow!("{}{more}", sentences(shown).join("; ")))
}

/// The cause of a transport error that says something: tonic's own is "transport error".
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_many_agents_is_short() {
        let silent = |n: usize, why: fn(usize) -> String| -> Vec<(String, String)> {
            (0..n).map(|n| (format!("node n{n}"), why(n))).collect()
        };
        let errors = || vec![anyhow!("a"), anyhow!("b")];
        let text = |silent: &[(String, String)]| nobody(true, errors(), silent).unwrap().to_string();
        assert_eq!(
            text(&silent(900, |_| "forbidden".into())),
            "no answer from node n0, node n1, node n2 and 897 more: forbidden"
        );
        let different = text(&silent(5, |n| format!("reason {n}")));
        assert!(
            different.ends_with("no answer from node n2: reason 2; and 2 more"),
            "{different}"
        );
        assert!(nobody(false, errors(), &silent(1, |_| "x".into())).is_none());
        let mut refused = errors();
        refused.push(Usage("bad".into()).into());
        assert!(nobody(false, refused, &[]).unwrap().is::<Usage>());
    }
}
