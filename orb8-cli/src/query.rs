//! Asking the agent, and what its errors mean to the user.

use anyhow::anyhow;
use orb8_proto::v1::{
    AgentStatus, Flow, FlowQuery, FlowSummary, GetAgentStatusRequest, QueryFlowsResponse,
    query_flows_response::Part,
};
use prost_types::Timestamp;
use tonic::{Code, Status, Streaming};

use crate::{connect::Session, exit::Usage};

/// Flows of one answer as they arrive: batch by batch, so that the size of the answer costs no memory.
#[derive(Debug)]
pub(crate) struct Answer {
    stream: Streaming<QueryFlowsResponse>,
    agent: String,
    summary: Option<FlowSummary>,
}

impl Answer {
    /// Asks.
    ///
    /// # Errors
    /// What the agent says, or that it is gone.
    pub(crate) async fn to(session: &mut Session, query: FlowQuery) -> anyhow::Result<Self> {
        let agent = session.name.clone();
        let stream = session
            .client
            .query_flows(query)
            .await
            .map_err(|status| explain(&agent, &status))?;
        Ok(Self {
            stream: stream.into_inner(),
            agent,
            summary: None,
        })
    }

    /// The next flows, or `None` at the end.
    ///
    /// # Errors
    /// If the answer breaks off.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<Flow>>> {
        while let Some(response) = self
            .stream
            .message()
            .await
            .map_err(|status| explain(&self.agent, &status))?
        {
            match response.part {
                Some(Part::Batch(batch)) => return Ok(Some(batch.flows)),
                Some(Part::Summary(summary)) => self.summary = Some(summary),
                None => {}
            }
        }
        Ok(None)
    }

    /// The summary, once all flows were taken. An answer without is partial.
    pub(crate) fn into_summary(self) -> Option<FlowSummary> {
        self.summary
    }
}

/// Until when the agent has counted, by its own clock: what comes later is new.
///
/// # Errors
/// As for [`Answer::to`].
pub(crate) async fn counted_until(session: &mut Session) -> anyhow::Result<Option<Timestamp>> {
    let mut answer = Answer::to(
        session,
        FlowQuery {
            limit: 1,
            ..FlowQuery::default()
        },
    )
    .await?;
    while answer.next().await?.is_some() {}
    Ok(answer.into_summary().and_then(|summary| summary.to))
}

/// The agent's state.
///
/// # Errors
/// What the agent says, or that it is gone.
pub(crate) async fn status(session: &mut Session) -> anyhow::Result<AgentStatus> {
    match session.client.get_agent_status(GetAgentStatusRequest {}).await {
        Ok(status) => Ok(status.into_inner()),
        Err(status) => Err(explain(&session.name, &status)),
    }
}

/// What a gRPC error means to the user.
pub(crate) fn explain(agent: &str, status: &Status) -> anyhow::Error {
    let who = if agent == "standalone" {
        "the agent in this process".to_owned()
    } else {
        format!("the agent at {agent}")
    };
    match status.code() {
        Code::InvalidArgument => Usage(format!("{who} refuses the query: {}", status.message())).into(),
        Code::Unimplemented => anyhow!(
            "what answers at {agent} does not know this request: it is no orb8 agent, or one of another version \
             than this orb8 ({})",
            env!("CARGO_PKG_VERSION")
        ),
        Code::Unavailable | Code::Cancelled | Code::Unknown => anyhow!(
            "{who} went away before its answer was complete ({}); is it still running (`orb8 status`)?",
            status.message()
        ),
        code => anyhow!("{who} says: {} ({code:?})", status.message()),
    }
}
