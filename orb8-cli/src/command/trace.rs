//! `orb8 trace`: events as they happen.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use orb8_fleet::called;
use orb8_proto::v1::{
    EventLoss, NodeState, StreamEventsRequest, StreamEventsResponse, stream_events_response::Event,
};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    args::{TraceForm, TraceGpuArgs, TraceNetworkArgs, TraceSyscallsArgs},
    exit::Outcome,
    filter::{self, Scope},
    fleet::Fleet,
    humanise,
    output::Output,
    query,
    render::{event, flow_json, gpu_event, gpu_json, syscall_event, syscall_json},
    signals::Stop,
    terminal::{self, Style},
};

/// `orb8 trace network`.
pub(super) async fn network(fleet: &Fleet, args: &TraceNetworkArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    let trace = Trace {
        request: StreamEventsRequest {
            network: Some(filter::flow_filter(&args.filter, &scope)),
            ..StreamEventsRequest::default()
        },
        note: scope.note(),
        count: args.count,
        duration: args.duration,
        strict: args.strict,
        loss: event::loss,
    };
    let style = Style::of_stdout();
    let render = |event: &Event| match (event, args.output) {
        (Event::Network(event), TraceForm::Lines) => Ok(Some(event::line(event, fleet.is_many(), &style))),
        (Event::Network(event), TraceForm::Json) => {
            flow_json::line(&event::EventRecord::from(event)).map(Some)
        }
        _ => Ok(None),
    };
    trace.follow(fleet, stop, render).await
}

/// `orb8 trace syscalls`.
pub(super) async fn syscalls(
    fleet: &Fleet,
    args: &TraceSyscallsArgs,
    stop: &Stop,
) -> anyhow::Result<Outcome> {
    let scope = Scope::of_callers(&args.filter.caller, fleet.namespace.as_deref());
    let trace = Trace {
        request: filter::syscall::events(args, &scope),
        note: scope.note(),
        count: args.count,
        duration: args.duration,
        strict: args.strict,
        loss: syscall_event::loss,
    };
    let style = Style::of_stdout();
    let render = |event: &Event| match (event, args.output) {
        (Event::Syscall(event), TraceForm::Lines) => {
            Ok(Some(syscall_event::line(event, fleet.is_many(), &style)))
        }
        (Event::Syscall(event), TraceForm::Json) => {
            flow_json::line(&syscall_json::EventRecord::from(event)).map(Some)
        }
        _ => Ok(None),
    };
    trace.follow(fleet, stop, render).await
}

/// `orb8 trace gpu`.
pub(super) async fn gpu(fleet: &Fleet, args: &TraceGpuArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    let scope = Scope::of_holders(&args.filter, fleet.namespace.as_deref());
    let trace = Trace {
        request: filter::gpu::events(&args.filter, &scope),
        note: scope.note(),
        count: args.count,
        duration: args.duration,
        strict: args.strict,
        loss: gpu_event::loss,
    };
    let style = Style::of_stdout();
    let render = |event: &Event| match (event, args.output) {
        (Event::Gpu(event), TraceForm::Lines) => Ok(Some(gpu_event::line(event, fleet.is_many(), &style))),
        (Event::Gpu(event), TraceForm::Json) => {
            flow_json::line(&gpu_json::EventRecord::from(event)).map(Some)
        }
        _ => Ok(None),
    };
    trace.follow(fleet, stop, render).await
}

/// Events to follow, and until when.
struct Trace {
    request: StreamEventsRequest,
    /// What is to be said though nothing is missing.
    note: Option<String>,
    count: Option<u64>,
    duration: Option<Duration>,
    strict: bool,
    /// What was lost, in a sentence.
    loss: fn(&EventLoss) -> Option<String>,
}

impl Trace {
    /// Writes the events that `render` makes text of, until the end that was asked.
    async fn follow(
        self,
        fleet: &Fleet,
        stop: &Stop,
        render: impl Fn(&Event) -> anyhow::Result<Option<String>>,
    ) -> anyhow::Result<Outcome> {
        let request = StreamEventsRequest {
            nodes: fleet.nodes.clone(),
            batch: true,
            ..self.request.clone()
        };
        let open = fleet.ask(|mut client| {
            let request = request.clone();
            async move { Ok(client.stream_events(request).await?.into_inner()) }
        });
        let mut stream = super::unless_stopped(stop, open).await?;
        // Events of a batch that are still to be told.
        let mut waiting: VecDeque<StreamEventsResponse> = VecDeque::new();
        let mut partial = false;
        // How each node was when it was told of last.
        let mut told = BTreeMap::new();
        if let Some(note) = &self.note {
            terminal::say(&format!("orb8: {note}"));
        }
        let end = self.duration.map(|duration| Instant::now() + duration);
        let mut output = Output::stdout();
        let mut lost = EventLoss::default();
        let mut count = 0_u64;
        let result: anyhow::Result<()> = loop {
            if self.count.is_some_and(|limit| count >= limit) {
                break Ok(());
            }
            let event = match waiting.pop_front() {
                Some(response) => response.event,
                None => {
                    let message = tokio::select! {
                        biased;
                        () = stop.requested() => break Ok(()),
                        () = output.reader_gone() => break Ok(()),
                        () = super::deadline(end) => break Ok(()),
                        message = stream.message() => message,
                    };
                    match message {
                        Ok(Some(response)) => response.event,
                        Ok(None) if fleet.is_many() => {
                            break Err(anyhow::anyhow!("no agent is left to tell events"));
                        }
                        Ok(None) => break Err(fleet.explain(&Status::unavailable("it ended the stream"))),
                        Err(status) => break Err(fleet.explain(&status)),
                    }
                }
            };
            match event {
                Some(Event::Batch(batch)) => waiting.extend(batch.events),
                Some(Event::Node(node)) => {
                    let sentence = match node.state() {
                        NodeState::Answered if told.contains_key(&node.name) => {
                            Some(format!("{} tells events again", called(&node.name)))
                        }
                        _ => query::missing([&node]).pop(),
                    };
                    partial |= !matches!(node.state(), NodeState::Answered | NodeState::NotAsked);
                    // Once, however often it is tried.
                    if told.insert(node.name.clone(), node.state) != Some(node.state)
                        && let Some(sentence) = sentence
                    {
                        output.flush().await?;
                        terminal::say(&format!("orb8: {sentence}"));
                    }
                }
                Some(Event::Loss(loss)) => {
                    if let Some(sentence) = (self.loss)(&loss) {
                        tokio::select! {
                            biased;
                            () = stop.requested() => break Ok(()),
                            flushed = output.flush() => if let Err(error) = flushed { break Err(error.into()) },
                        }
                        let of = if fleet.is_many() && !loss.node.is_empty() {
                            format!("{}: ", called(&loss.node))
                        } else {
                            String::new()
                        };
                        terminal::say(&format!("orb8: {of}{sentence}"));
                    }
                    lost.ring = lost.ring.saturating_add(loss.ring);
                    lost.stream = lost.stream.saturating_add(loss.stream);
                    lost.sampled = lost.sampled.saturating_add(loss.sampled);
                }
                Some(event) => {
                    let Some(line) = render(&event)? else { continue };
                    count += 1;
                    tokio::select! {
                        biased;
                        () = stop.requested() => break Ok(()),
                        written = output.write(line) => if let Err(error) = written { break Err(error.into()) },
                    }
                }
                None => {}
            }
        };
        let written = output.finish().await;
        result?;
        written?;
        let total = (self.loss)(&lost);
        let events = humanise::counted(count, "event", "events");
        terminal::say(&format!(
            "orb8: {events}; {}",
            total.as_deref().unwrap_or("none lost")
        ));
        Ok(Outcome::of(total.is_some() || partial, self.strict))
    }
}
