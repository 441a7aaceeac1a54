//! The state of each member's agent.

use futures::StreamExt as _;
use orb8_proto::{
    Responses,
    v1::{AgentStatus, GetAgentStatusRequest, NodeAnswer, NodeStatus},
};
use tonic::Status;

use crate::{
    ask::{Asked, Selection, ToldBy as _},
    hub::Hub,
};

impl Hub {
    /// Each member's state, by name, as they come.
    pub(crate) fn query_status(&self, nodes: &[String]) -> Result<Responses<NodeStatus>, Status> {
        let permit = self.query_permit()?;
        let Selection { asked, others, order } = self.select(nodes, None)?;
        let mut parts: Vec<Result<Asked, NodeAnswer>> = asked
            .into_iter()
            .map(Ok)
            .chain(others.into_iter().map(Err))
            .collect();
        let name = |part: &Result<Asked, NodeAnswer>| match part {
            Ok(asked) => asked.member.name.clone(),
            Err(answer) => answer.name.clone(),
        };
        parts.sort_by_cached_key(|part| order.iter().position(|of| *of == name(part)));
        let (counts, concurrency) = (self.counts.clone(), self.limits.concurrency);
        Ok(self.deliver(permit, async move |sender| {
            let mut parts = futures::stream::iter(parts)
                .map(|part| {
                    let counts = counts.clone();
                    async move {
                        let asked = match part {
                            Ok(asked) => asked,
                            Err(answer) => {
                                return NodeStatus {
                                    answer: Some(answer),
                                    status: None,
                                };
                            }
                        };
                        let status = asked
                            .try_within(async |mut client| {
                                client.get_agent_status(GetAgentStatusRequest {}).await
                            })
                            .await;
                        match status {
                            Ok(status) => {
                                let (mut answer, status) = (asked.answered(), status.into_inner());
                                answer.told_by(&status.node);
                                NodeStatus {
                                    answer: Some(answer),
                                    status: Some(status),
                                }
                            }
                            Err(error) => {
                                counts.failed(&error);
                                NodeStatus {
                                    answer: Some(asked.failed(&error, 0)),
                                    status: None,
                                }
                            }
                        }
                    }
                })
                .buffered(concurrency);
            while let Some(part) = parts.next().await {
                sender.send(part).await?;
            }
            Ok(())
        }))
    }

    /// The state of who answers: the hub's own, else that of its only member.
    pub(crate) async fn own_status(&self) -> Result<AgentStatus, Status> {
        if let Some(own) = &self.own {
            return Ok(own.status());
        }
        let Selection { asked, others, .. } = self.select(&[], None)?;
        match (asked.as_slice(), others.as_slice()) {
            ([asked], []) => {
                let answer = asked
                    .try_within(async |mut client| client.get_agent_status(GetAgentStatusRequest {}).await)
                    .await;
                match answer {
                    Ok(answer) => Ok(answer.into_inner()),
                    Err(status) => {
                        let failed = asked.failed(&status, 0);
                        Err(crate::ask::nobody(&[failed], None).unwrap_or(status))
                    }
                }
            }
            _ => Err(Status::failed_precondition(
                "these are several agents: ask for their states by QueryStatus",
            )),
        }
    }
}
