//! Edges: both reports of a flow, perhaps of two nodes, as one.

use orb8_proto::{
    Responses, batches, edges,
    v1::{EdgeBatch, EdgeSummary, FlowQuery, QueryEdgesResponse, query_edges_response::Part},
};
use tonic::Status;

use crate::{flows::Merged, hub::Hub, times::earliest};

/// Edges of one message of the answer.
const BATCH: usize = 256;

impl Hub {
    /// Edges of all members. All flows are held to be joined: bounded by [`Limits::max_rows`](crate::Limits::max_rows).
    pub(crate) async fn edges(&self, query: FlowQuery) -> Result<Responses<QueryEdgesResponse>, Status> {
        let permit = self.query_permit()?;
        let sort = query.sort();
        let limit = query.limit as usize;
        let all = FlowQuery { limit: 0, ..query };
        let mut merged = Merged::open(self, &all).await?;
        let max = self.limits.max_rows;
        Ok(self.deliver(permit, async move |sender| {
            let Some(flows) = merged.all(max).await else {
                return sender
                    .fail(Status::resource_exhausted(format!(
                        "more than {max} flows are too many to join: ask for less, by a namespace, a pod or a \
                         shorter span of time"
                    )))
                    .await;
            };
            let flows_summary = merged.end();
            let settled = earliest(flows_summary.nodes.iter().map(|node| node.to));
            let (joined, found) = tokio::task::spawn_blocking(move || {
                let answer = edges::join(flows.iter().flatten(), sort, limit);
                // Many strings: the client need not wait for that.
                tokio::task::spawn_blocking(move || drop(flows));
                answer
            })
            .await
            .unwrap_or_default();
            let found = found as u64;
            for edges in batches(joined, BATCH) {
                let batch = Part::Batch(EdgeBatch { edges });
                sender.send(QueryEdgesResponse { part: Some(batch) }).await?;
            }
            let summary = Part::Summary(EdgeSummary {
                edges: found,
                flows: Some(flows_summary),
                settled,
            });
            sender.send(QueryEdgesResponse { part: Some(summary) }).await
        }))
    }
}
