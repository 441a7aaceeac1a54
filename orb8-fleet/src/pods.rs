//! Pods of many nodes.

use orb8_proto::{
    Responses,
    v1::{ListPodsRequest, ListPodsResponse, NodePods},
};
use prost::Message as _;
use tonic::{Code, Status};

use crate::{
    ask::{Selection, ToldBy as _, called, nobody},
    hub::{Hub, Wanted},
    times::shift,
};

impl Hub {
    /// Each member's pods, by name of the node.
    async fn pods_by_node(&self, request: &ListPodsRequest) -> Result<Vec<NodePods>, Status> {
        let route = self.nodes_of(&Wanted {
            namespaces: request.namespaces.clone(),
            pods: request.pods.clone(),
            workloads: request.workloads.clone(),
            since: None,
        });
        let Selection { asked, others, order } = self.select(&request.nodes, route.as_ref())?;
        let own = ListPodsRequest {
            nodes: Vec::new(),
            ..request.clone()
        };
        let answers = self
            .gather(asked, |mut client| {
                let own = own.clone();
                async move { client.list_pods(own).await }
            })
            .await;
        let mut refused = None;
        let mut parts: Vec<NodePods> = answers
            .into_iter()
            .map(|(asked, answer)| match answer {
                Ok(mut pods) => {
                    let ns = asked.member.clock.correction_ns();
                    pods.pods.iter_mut().for_each(|pod| shift(&mut pod.started, ns));
                    let mut answer = asked.answered();
                    answer.items = pods.pods.len() as u64;
                    answer.notes.clone_from(&pods.notes);
                    answer.told_by(&pods.node);
                    NodePods {
                        answer: Some(answer),
                        pods: Some(pods),
                    }
                }
                Err(status) => {
                    let answer = asked.failed(&status, 0);
                    if status.code() == Code::InvalidArgument {
                        refused = Some(status);
                    }
                    NodePods {
                        answer: Some(answer),
                        pods: None,
                    }
                }
            })
            .chain(others.into_iter().map(|answer| NodePods {
                answer: Some(answer),
                pods: None,
            }))
            .collect();
        let answers: Vec<_> = parts.iter().filter_map(|part| part.answer.clone()).collect();
        if let Some(error) = nobody(&answers, refused.as_ref()) {
            return Err(error);
        }
        let place = |part: &NodePods| {
            order
                .iter()
                .position(|name| part.answer.as_ref().is_some_and(|a| a.name == *name))
        };
        parts.sort_by_cached_key(place);
        Ok(parts)
    }

    /// Pods as a stream, a message a node.
    pub(crate) async fn query_pods(&self, request: ListPodsRequest) -> Result<Responses<NodePods>, Status> {
        let permit = self.query_permit()?;
        let parts = self.pods_by_node(&request).await?;
        Ok(self.deliver(permit, async move |sender| {
            for part in parts {
                sender.send(part).await?;
            }
            Ok(())
        }))
    }

    /// All pods in one message, if they fit; whoever did not answer is in its notes.
    pub(crate) async fn list_pods_of_all(
        &self,
        request: ListPodsRequest,
    ) -> Result<ListPodsResponse, Status> {
        let _permit = self.query_permit()?;
        let mut all = ListPodsResponse::default();
        let mut nodes = 0;
        for NodePods { answer, pods } in self.pods_by_node(&request).await? {
            let answer = answer.unwrap_or_default();
            let Some(pods) = pods else {
                if !answer.reason.is_empty() {
                    all.notes.push(format!(
                        "no answer from {}: {}",
                        called(&answer.name),
                        answer.reason
                    ));
                }
                continue;
            };
            nodes += 1;
            all.node = pods.node;
            all.pods.extend(pods.pods);
            let told = pods.notes.into_iter();
            all.notes
                .extend(told.map(|note| format!("{}: {note}", answer.name)));
        }
        if nodes != 1 {
            all.node = format!("{nodes} nodes");
        }
        all.pods
            .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        if all.encoded_len() > self.limits.max_message {
            return Err(Status::resource_exhausted(
                "the pods do not fit into one message: ask by QueryPods, or for fewer (by namespace or node)",
            ));
        }
        Ok(all)
    }
}
