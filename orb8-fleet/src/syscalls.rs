//! System calls of many nodes.
//!
//! Rows of two nodes are summed only where the grouping sums over nodes: a pod, a container and a unit are of one node.
//! Then each member is asked for all of its rows, so that the sums, and which of them are the greatest, are exact. Verdicts
//! about changes rest on a node's own history, so that their rows stay apart too.

mod rows;

use futures::StreamExt as _;
use orb8_proto::{
    Responses, batches,
    v1::{
        NodeAnswer, QuerySyscallsResponse, SyscallBatch, SyscallMode, SyscallQuery, SyscallRow,
        SyscallSummary, query_syscalls_response::Part,
    },
};
use prost_types::Timestamp;
use tonic::{Code, Status};

use self::rows::{Rows, sums_over_nodes};
use crate::{
    ask::{Asked, Selection, ToldBy as _, in_order, nobody},
    hub::{Hub, Wanted},
    ledger::trimmed,
    times::{earlier_by, earliest, latest, shift, shift_row},
};

/// Rows of one message of the answer.
const BATCH: usize = 512;

/// One member's part.
#[derive(Debug)]
struct PartOf {
    asked: Asked,
    rows: Vec<SyscallRow>,
    given: u64,
    summary: Option<SyscallSummary>,
    error: Option<Status>,
}

/// All that one member says, at most `max` rows.
async fn take(asked: Asked, query: SyscallQuery, max: usize) -> PartOf {
    let mut part = PartOf {
        asked,
        rows: Vec::new(),
        given: 0,
        summary: None,
        error: None,
    };
    let opened = part
        .asked
        .try_within(|mut client| {
            let query = query.clone();
            async move {
                let mut stream = client.query_syscalls(query).await?.into_inner();
                let first = stream.message().await?;
                Ok((stream, first))
            }
        })
        .await;
    let (mut stream, mut message) = match opened {
        Ok(opened) => opened,
        Err(status) => {
            part.error = Some(status);
            return part;
        }
    };
    let correction = part.asked.member.clock.correction_ns();
    while let Some(QuerySyscallsResponse { part: some }) = message.take() {
        match some {
            Some(Part::Batch(batch)) if part.rows.len() + batch.rows.len() > max => {
                part.error = Some(too_many(max));
                return part;
            }
            Some(Part::Batch(batch)) => {
                part.given += batch.rows.len() as u64;
                part.rows.extend(batch.rows.into_iter().map(|mut row| {
                    shift_row(&mut row, correction);
                    row
                }));
            }
            Some(Part::Summary(summary)) => part.summary = Some(summary),
            None => {}
        }
        match part.asked.within(stream.message()).await {
            Ok(next) => message = next,
            Err(status) => {
                part.error = Some(status);
                return part;
            }
        }
    }
    part
}

fn too_many(max: usize) -> Status {
    Status::resource_exhausted(format!(
        "more than {max} rows: ask for fewer, by a limit, a filter or other groups"
    ))
}

impl PartOf {
    fn answer(&self) -> NodeAnswer {
        let mut answer = match &self.error {
            Some(status) => self.asked.failed(status, self.given),
            None => NodeAnswer {
                items: self.given,
                ..self.asked.answered()
            },
        };
        if self.error.is_some() && self.given > 0 {
            answer.reason = format!(
                "its answer broke off after {} rows: {}",
                self.given, answer.reason
            );
        }
        let Some(summary) = &self.summary else {
            if self.error.is_none() {
                answer
                    .notes
                    .push("the answer ended without its summary: it may be partial".to_owned());
            }
            return answer;
        };
        let correction = self.asked.member.clock.correction_ns();
        answer.from = summary.from.map(|time| earlier_by(time, correction));
        answer.to = summary.to.map(|time| earlier_by(time, correction));
        answer.cursor = summary.to;
        answer.told_by(&summary.node);
        answer.syscall_mode = summary.mode;
        answer.measured = summary.measured;
        (answer.ledger, answer.notes) = trimmed(&summary.ledger, &summary.notes);
        answer
    }
}

impl Hub {
    /// System calls of all members. The answer is held: bounded by [`Limits::max_rows`](crate::Limits::max_rows).
    pub(crate) async fn syscalls(
        &self,
        query: SyscallQuery,
    ) -> Result<Responses<QuerySyscallsResponse>, Status> {
        let permit = self.query_permit()?;
        let filter = query.filter.clone().unwrap_or_default();
        let route = self.nodes_of(&Wanted {
            namespaces: filter.namespaces,
            pods: filter.pods,
            workloads: filter.workloads,
            since: query.since,
        });
        let Selection { asked, others, order } = self.select(&query.nodes, route.as_ref())?;
        let single = asked.len() == 1;
        let sums = !single && sums_over_nodes(&query);
        let max = self.limits.max_rows;
        let own = |asked: &Asked| {
            let correction = asked.member.clock.correction_ns();
            let to_theirs = |time: Timestamp| earlier_by(time, correction.saturating_neg());
            let cursor = query
                .cursors
                .iter()
                .find(|cursor| cursor.name == asked.member.name);
            SyscallQuery {
                since: match cursor {
                    Some(cursor) => cursor.time,
                    None => query.since.map(to_theirs),
                },
                until: query.until.map(to_theirs),
                // The first of each are the first of all only where no row is a sum over nodes.
                limit: if sums { 0 } else { query.limit },
                nodes: Vec::new(),
                cursors: Vec::new(),
                ..query.clone()
            }
        };
        let mut parts = futures::stream::iter(asked)
            .map(|asked| {
                let query = own(&asked);
                take(asked, query, max)
            })
            // Summed as they come, not in the order of the members: most are done with while the slowest are waited for.
            .buffer_unordered(self.limits.concurrency);
        let mut rows = Rows::new(sums, max);
        let mut all = SyscallSummary {
            nodes: others,
            ..SyscallSummary::default()
        };
        let mut refused = None;
        let mut summaries = Vec::new();
        while let Some(mut part) = parts.next().await {
            all.nodes.push(part.answer());
            if let Some(status) = &part.error {
                self.counts.failed(status);
                if status.code() == Code::InvalidArgument {
                    refused = Some(status.clone());
                }
            }
            let node = part.summary.as_ref().map(|summary| summary.node.clone());
            if let (false, Some(node)) = (single || sums, node) {
                part.rows
                    .iter_mut()
                    .filter(|row| row.node.is_empty())
                    .for_each(|row| row.node.clone_from(&node));
            }
            if !rows.add(part.rows) {
                return Err(too_many(max));
            }
            if let Some(mut summary) = part.summary {
                let correction = part.asked.member.clock.correction_ns();
                shift(&mut summary.from, correction);
                shift(&mut summary.to, correction);
                summaries.push(summary);
            }
        }
        if let Some(error) = nobody(&all.nodes, refused.as_ref()) {
            return Err(error);
        }
        in_order(&order, &mut all.nodes);
        join(&mut all, summaries);
        let (rows, groups) = rows.sorted(query.sort(), query.limit as usize);
        if sums {
            all.matched_rows = groups;
        }
        Ok(self.deliver(permit, async move |sender| {
            for rows in batches(rows, BATCH) {
                let batch = Part::Batch(SyscallBatch { rows });
                sender.send(QuerySyscallsResponse { part: Some(batch) }).await?;
            }
            let summary = Part::Summary(all);
            sender.send(QuerySyscallsResponse { part: Some(summary) }).await
        }))
    }
}

/// Adds the members' summaries up. The ledgers stay apart: what was lost is told for each.
fn join(all: &mut SyscallSummary, summaries: Vec<SyscallSummary>) {
    let nodes = summaries.len();
    let mut first = true;
    for summary in summaries {
        all.from = earliest([all.from, summary.from]);
        all.to = latest([all.to, summary.to]);
        if first {
            all.node.clone_from(&summary.node);
            (all.mode, all.measured) = (summary.mode, summary.measured);
        } else {
            all.node = format!("{nodes} nodes");
            if all.mode != summary.mode {
                all.set_mode(SyscallMode::Unspecified);
            }
            all.measured = match (all.measured, summary.measured) {
                (Some(a), Some(b)) => Some(if seconds(&b) < seconds(&a) { b } else { a }),
                _ => None,
            };
        }
        first = false;
        all.matched_rows = all.matched_rows.saturating_add(summary.matched_rows);
        all.matched_calls = all.matched_calls.saturating_add(summary.matched_calls);
        all.matched_errors = all.matched_errors.saturating_add(summary.matched_errors);
    }
}

/// A duration in seconds.
fn seconds(duration: &prost_types::Duration) -> f64 {
    duration.seconds as f64 + f64::from(duration.nanos) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_say_what_is_true_of_all() {
        let summary = |mode: SyscallMode, measured| SyscallSummary {
            mode: mode.into(),
            measured: Some(prost_types::Duration {
                seconds: measured,
                nanos: 0,
            }),
            matched_calls: 5,
            ..SyscallSummary::default()
        };
        let mut all = SyscallSummary::default();
        join(
            &mut all,
            vec![summary(SyscallMode::Latency, 9), summary(SyscallMode::Counts, 2)],
        );
        assert_eq!((all.mode(), all.matched_calls), (SyscallMode::Unspecified, 10));
        assert_eq!(all.measured.unwrap().seconds, 2);
    }
}
