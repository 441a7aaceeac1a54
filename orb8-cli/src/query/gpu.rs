//! Asking about GPUs.

use std::collections::BTreeMap;

use orb8_fleet::called;
use orb8_proto::v1::{
    CudaCalls, GpuDevice, GpuFilter, GpuQuery, GpuSource, GpuSummary, NodeAnswer, NodeState, State,
    query_gpus_response::Part,
};

use super::NO_LEDGER;
use crate::{fleet::Fleet, gpu, ledger::Losses, timestamp};

/// Devices that are taken: bounds memory.
const MAX_DEVICES: usize = 1 << 17;
/// Rows of calls that are taken.
const MAX_CALLS: usize = 1 << 20;
/// Nodes that are named where several say the same.
const NAMED: usize = 3;

/// The answer of all agents.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// By node and index, each GPU before its instances.
    pub(crate) devices: Vec<GpuDevice>,
    pub(crate) calls: Vec<CudaCalls>,
    /// Of all that answered. None: some answer came without.
    pub(crate) summary: Option<GpuSummary>,
    /// What the answer misses.
    pub(crate) losses: Losses,
    /// What is to be said of it though nothing is missing.
    pub(crate) notes: Vec<String>,
    /// Nodes that answered.
    pub(crate) nodes: usize,
    /// Whether only some devices were asked for.
    pub(crate) filtered: bool,
}

impl Answer {
    /// Sources of readings and allocations: of a single agent's answer only.
    pub(crate) fn sources(&self) -> &[GpuSource] {
        self.summary.as_ref().map_or(&[], |summary| &summary.sources)
    }

    /// That there is no GPU, in one line with the reasons; nothing if there is. `idle`: only idle ones were asked for;
    /// `note`: what limits the answer though the user did not say so.
    pub(crate) fn no_gpu(&self, idle: bool, many: bool, note: Option<&str>) -> Option<String> {
        if !self.devices.is_empty() {
            return None;
        }
        let readings: Vec<&GpuSource> = self
            .sources()
            .iter()
            .filter(|source| !matches!(source.name.as_str(), "cuda" | "pod-resources"))
            .collect();
        let active: Vec<&str> = readings
            .iter()
            .filter(|source| source.state() == State::Active)
            .map(|source| source.name.as_str())
            .collect();
        if !readings.is_empty() && active.is_empty() {
            // One that does not work may have GPUs to tell of.
            let line = if readings.iter().any(|source| source.state() == State::Failed) {
                "no GPU is known here: no source of GPU readings works"
            } else {
                "no GPU here: no source of GPU readings was found"
            };
            let reasons: Vec<String> = readings.into_iter().map(gpu::source).collect();
            return Some(format!("{line} ({})", reasons.join("; ")));
        }
        let mut line = if idle {
            "no GPU that is held was idle".to_owned()
        } else if self.filtered {
            "no GPU matches what was asked for".to_owned()
        } else if many {
            "no GPU".to_owned()
        } else if active.is_empty() {
            "no GPU here: no source of GPU readings was found".to_owned()
        } else {
            // A note may tell of one that cannot be read.
            let known = if self.notes.is_empty() { "" } else { " is known" };
            format!("no GPU{known} here: {} names none", active.join(" and "))
        };
        if many {
            line.push_str(&match self.nodes {
                1 => " on the one node that answered".to_owned(),
                nodes => format!(" on the {nodes} nodes that answered"),
            });
        }
        let said: Vec<&str> = self.notes.iter().map(String::as_str).chain(note).collect();
        if !said.is_empty() {
            line.push_str(&format!(" ({})", said.join("; ")));
        }
        Some(line)
    }

    /// That CUDA calls are not counted, and why, as the agent says; nothing if they are. Of many nodes it is not told which
    /// ones count: that there are no rows is not that there were no calls.
    pub(crate) fn no_calls(&self, many: bool) -> Option<String> {
        if !self.calls.is_empty() {
            return None;
        }
        let cuda = self.sources().iter().find(|source| source.name == "cuda");
        match cuda {
            Some(cuda) if cuda.state() == State::Active => None,
            Some(cuda) if !cuda.reason.is_empty() => {
                Some(format!("CUDA calls are not counted: {}", cuda.reason))
            }
            None if many => Some(format!(
                "no CUDA calls were told of by {}: agents count them where their setting gpu_cuda says so",
                match self.nodes {
                    1 => "the one node that answered".to_owned(),
                    nodes => format!("the {nodes} nodes that answered"),
                }
            )),
            Some(_) | None => Some(
                "CUDA calls are not counted, as far as this agent tells; its setting gpu_cuda switches their probes on"
                    .to_owned(),
            ),
        }
    }

    /// Whether the sources have been tried, so that a further look would tell no more.
    pub(crate) fn is_settled(&self) -> bool {
        !self.sources().is_empty() && self.sources().iter().all(is_tried)
    }
}

/// A source that was not asked yet has a reason, too: that one.
fn is_tried(source: &GpuSource) -> bool {
    source.last.is_some() || source.state() != State::Unspecified
}

/// Asks. The answer is held in memory: some hundred bytes a device.
///
/// # Errors
/// If nobody answers, the answer breaks off, or the query makes no sense.
pub(crate) async fn ask(fleet: &Fleet, query: &GpuQuery) -> anyhow::Result<Answer> {
    let asked = GpuQuery {
        nodes: fleet.nodes.clone(),
        ..query.clone()
    };
    let (devices, calls, summary) = fleet
        .ask(|mut client| {
            let asked = asked.clone();
            async move {
                let mut stream = client.query_gpus(asked).await?.into_inner();
                let (mut devices, mut calls, mut summary) = (Vec::new(), Vec::new(), None);
                while let Some(response) = stream.message().await? {
                    match response.part {
                        Some(Part::Batch(batch)) => devices.extend(batch.devices),
                        Some(Part::Cuda(batch)) => calls.extend(batch.calls),
                        Some(Part::Summary(last)) => summary = Some(last),
                        None => {}
                    }
                    if devices.len() > MAX_DEVICES || calls.len() > MAX_CALLS {
                        return Err(tonic::Status::resource_exhausted(format!(
                            "more than {MAX_DEVICES} devices or {MAX_CALLS} rows of calls: ask for fewer (--node, \
                             --device, --namespace)"
                        )));
                    }
                }
                Ok((devices, calls, summary))
            }
        })
        .await?;
    Ok(answer(fleet.is_many(), query, devices, calls, summary))
}

fn answer(
    many: bool,
    query: &GpuQuery,
    mut devices: Vec<GpuDevice>,
    calls: Vec<CudaCalls>,
    summary: Option<GpuSummary>,
) -> Answer {
    gpu::in_order(&mut devices);
    let filtered = query
        .filter
        .as_ref()
        .is_some_and(|filter| *filter != GpuFilter::default());
    let Some(summary) = summary else {
        return Answer {
            devices,
            calls,
            losses: Losses::unknown(),
            filtered,
            ..Answer::default()
        };
    };
    let mut nodes = nodes_of(&summary, !devices.is_empty() || !calls.is_empty());
    // Where an answer begins later than asked, what a node says of it is a loss; else it is only said.
    let late = late(&summary);
    let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in &mut nodes {
        let is_late = query
            .since
            .zip(node.from)
            .is_some_and(|(since, from)| timestamp::seconds_between(&since, &from) > late);
        let notes = std::mem::take(&mut node.notes);
        for note in notes {
            if is_late || note == NO_LEDGER {
                node.notes.push(note);
            } else {
                said.entry(note).or_default().push(called(&node.name));
            }
        }
    }
    let mut losses = Losses::of_nodes(&nodes, many);
    let failed = summary
        .sources
        .iter()
        .filter(|source| source.state() == State::Failed && !devices.is_empty());
    losses.sentences.extend(failed.map(gpu::source));
    let mut notes: Vec<String> = said
        .into_iter()
        .map(|(note, names)| {
            if many {
                format!("{}: {note}", several(&names))
            } else {
                note
            }
        })
        .collect();
    // Of a server, what it has to say itself.
    if !summary.nodes.is_empty() {
        notes.extend(summary.notes.iter().cloned());
    }
    Answer {
        devices,
        calls,
        losses,
        notes,
        filtered,
        nodes: nodes
            .iter()
            .filter(|node| matches!(node.state(), NodeState::Answered | NodeState::Partial))
            .count(),
        summary: Some(summary),
    }
}

/// Seconds by which an answer may begin later than asked, and is the answer to the question all the same: samples are
/// apart.
fn late(summary: &GpuSummary) -> f64 {
    1.5 + 1.5 * summary.sampling.as_ref().map_or(10.0, super::syscall::seconds)
}

/// `node n1, node n2 and 7 more`.
fn several(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named = names[..names.len() - more].join(", ");
    if more == 0 {
        named
    } else {
        format!("{named} and {more} more")
    }
}

/// Each node's part: of an agent's own answer, the whole. `told`: whether it has anything that something may be missing
/// in.
fn nodes_of(summary: &GpuSummary, told: bool) -> Vec<NodeAnswer> {
    if !summary.nodes.is_empty() {
        return summary.nodes.clone();
    }
    let mut notes = summary.notes.clone();
    if summary.ledger.is_empty() && told {
        notes.insert(0, NO_LEDGER.to_owned());
    }
    vec![NodeAnswer {
        name: summary.node.clone(),
        state: NodeState::Answered.into(),
        from: summary.from,
        to: summary.to,
        ledger: summary.ledger.clone(),
        notes,
        ..NodeAnswer::default()
    }]
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::LedgerRow;
    use prost_types::Timestamp;

    use super::*;

    fn node(name: &str, from: i64, notes: &[&str]) -> NodeAnswer {
        NodeAnswer {
            name: name.into(),
            state: NodeState::Answered.into(),
            from: Some(Timestamp {
                seconds: from,
                nanos: 0,
            }),
            notes: notes.iter().map(|&note| note.to_owned()).collect(),
            ..NodeAnswer::default()
        }
    }

    #[test]
    fn what_several_nodes_say_is_said_once() {
        let summary = GpuSummary {
            nodes: ["a", "b", "c", "d", "e"]
                .map(|name| node(name, 0, &["no GPU source"]))
                .to_vec(),
            ..GpuSummary::default()
        };
        let answer = answer(true, &GpuQuery::default(), Vec::new(), Vec::new(), Some(summary));
        assert_eq!(answer.notes, ["node a, node b, node c and 2 more: no GPU source"]);
        assert!(answer.losses.is_none());
        assert_eq!(answer.nodes, 5);
    }

    #[test]
    fn history_that_begins_too_late_is_a_loss() {
        let query = GpuQuery {
            since: Some(Timestamp {
                seconds: 100,
                nanos: 0,
            }),
            ..GpuQuery::default()
        };
        let of = |from| {
            let summary = GpuSummary {
                nodes: vec![node("a", from, &["history begins later"])],
                sampling: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
                ..GpuSummary::default()
            };
            answer(true, &query, Vec::new(), Vec::new(), Some(summary))
        };
        assert_eq!(of(200).losses.sentences, ["node a: history begins later"]);
        assert!(of(104).losses.is_none());
    }

    #[test]
    fn a_source_that_fails_beside_devices_is_a_loss() {
        let failed = GpuSource {
            name: "nvml".into(),
            state: State::Failed.into(),
            reason: "driver not loaded".into(),
            ..GpuSource::default()
        };
        let summary = GpuSummary {
            sources: vec![failed],
            ledger: vec![LedgerRow::default()],
            ..GpuSummary::default()
        };
        let of = |devices| {
            answer(
                false,
                &GpuQuery::default(),
                devices,
                Vec::new(),
                Some(summary.clone()),
            )
        };
        assert_eq!(
            of(vec![GpuDevice::default()]).losses.sentences,
            ["nvml: driver not loaded"]
        );
        assert!(of(Vec::new()).losses.is_none());
        // Without a ledger it is not known what was lost; where there is no GPU, nothing could be.
        let silent = GpuSummary::default();
        let of = |devices| {
            answer(
                false,
                &GpuQuery::default(),
                devices,
                Vec::new(),
                Some(silent.clone()),
            )
        };
        assert_eq!(of(vec![GpuDevice::default()]).losses.sentences, [NO_LEDGER]);
        assert!(of(Vec::new()).losses.is_none());
    }

    fn source(name: &str, state: State, reason: &str) -> GpuSource {
        GpuSource {
            name: name.into(),
            state: state.into(),
            reason: reason.into(),
            address: if name == "dcgm" {
                "http://localhost:9400/metrics"
            } else {
                ""
            }
            .into(),
            ..GpuSource::default()
        }
    }

    fn empty(sources: Vec<GpuSource>) -> Answer {
        Answer {
            summary: Some(GpuSummary {
                sources,
                ..GpuSummary::default()
            }),
            ..Answer::default()
        }
    }

    #[test]
    fn no_gpu_is_one_line_with_the_reasons() {
        let none = empty(vec![
            source("dcgm", State::Off, "connection refused"),
            source("nvml", State::Off, "no libnvidia-ml.so.1"),
            source("pod-resources", State::Active, ""),
            source("cuda", State::Off, "switched off (ORB8_CUDA)"),
        ]);
        let line = none.no_gpu(false, false, None).unwrap();
        assert_eq!(
            line,
            "no GPU here: no source of GPU readings was found (dcgm at http://localhost:9400/metrics: connection \
             refused; nvml: no libnvidia-ml.so.1)"
        );
        assert_eq!(none.no_gpu(true, false, None).unwrap(), line);
        assert_eq!(
            none.no_calls(false).unwrap(),
            "CUDA calls are not counted: switched off (ORB8_CUDA)"
        );
    }

    #[test]
    fn a_source_that_does_not_work_leaves_open_whether_there_is_a_gpu() {
        let broken = empty(vec![
            source("dcgm", State::Off, "connection refused"),
            source("nvml", State::Failed, "driver and library differ"),
        ]);
        let line = broken.no_gpu(false, false, None).unwrap();
        assert!(
            line.starts_with("no GPU is known here: no source of GPU readings works ("),
            "{line}"
        );
        assert!(line.ends_with("; nvml: driver and library differ)"), "{line}");
    }

    #[test]
    fn sources_are_waited_for_until_each_has_been_asked() {
        let of = |state, reason| {
            empty(vec![
                source("nvml", State::Off, "no library"),
                source("dcgm", state, reason),
            ])
        };
        assert!(!empty(Vec::new()).is_settled());
        assert!(
            !of(State::Unspecified, "not asked yet").is_settled(),
            "as an agent says that has just begun"
        );
        assert!(!of(State::Unspecified, "").is_settled());
        for state in [State::Active, State::Failed, State::Off] {
            assert!(of(state, "").is_settled(), "{state:?}");
        }
    }

    #[test]
    fn what_is_empty_for_another_reason_says_so() {
        let active = || empty(vec![source("nvml", State::Active, "")]);
        assert_eq!(
            active().no_gpu(false, false, None).unwrap(),
            "no GPU here: nvml names none"
        );
        assert_eq!(
            active().no_gpu(true, false, None).unwrap(),
            "no GPU that is held was idle"
        );
        let filtered = Answer {
            filtered: true,
            nodes: 2,
            ..active()
        };
        assert_eq!(
            filtered.no_gpu(false, true, Some("namespace ml only")).unwrap(),
            "no GPU matches what was asked for on the 2 nodes that answered (namespace ml only)"
        );
        let some = Answer {
            devices: vec![GpuDevice::default()],
            ..active()
        };
        assert_eq!(some.no_gpu(false, false, None), None);
    }

    #[test]
    fn no_rows_of_calls_are_not_no_calls() {
        // Agents of before said nothing of probes that are off.
        let silent = empty(vec![source("nvml", State::Active, "")]);
        assert!(silent.no_calls(false).unwrap().contains("gpu_cuda"));
        let counting = empty(vec![source("cuda", State::Active, "")]);
        assert_eq!(counting.no_calls(false), None, "then there were none");
        let many = Answer {
            nodes: 3,
            ..empty(Vec::new())
        };
        let line = many.no_calls(true).unwrap();
        assert!(
            line.starts_with("no CUDA calls were told of by the 3 nodes"),
            "{line}"
        );
        let some = Answer {
            calls: vec![CudaCalls::default()],
            ..silent
        };
        assert_eq!(some.no_calls(false), None);
    }
}
