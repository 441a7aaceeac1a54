//! `orb8 trace`: events as they happen.

use std::time::Duration;

use futures::{
    StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use orb8_proto::v1::{EventLoss, StreamEventsRequest, StreamEventsResponse, stream_events_response::Event};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::{
    args::{TraceForm, TraceNetworkArgs, TraceSyscallsArgs},
    ends,
    exit::Outcome,
    filter::{self, Scope},
    fleet::{self, Fleet, Member},
    humanise,
    output::Output,
    render::{event, flow_json, syscall_event, syscall_json},
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
        (Event::Network(event), TraceForm::Lines) => Ok(Some(event::line(event, &style))),
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
        (Event::Syscall(event), TraceForm::Lines) => Ok(Some(syscall_event::line(event, &style))),
        (Event::Syscall(event), TraceForm::Json) => {
            flow_json::line(&syscall_json::EventRecord::from(event)).map(Some)
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
        let (mut events, mut partial) = super::unless_stopped(stop, open(fleet, &self.request)).await?;
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
            let response = tokio::select! {
                biased;
                () = stop.requested() => break Ok(()),
                () = output.reader_gone() => break Ok(()),
                () = super::deadline(end) => break Ok(()),
                response = events.next() => response,
            };
            let event = match response {
                Some(Ok(response)) => response.event,
                // Of several agents, the others go on.
                Some(Err(gone)) if fleet.is_many() => {
                    partial = true;
                    output.flush().await?;
                    terminal::say(&format!("orb8: {gone:#}"));
                    continue;
                }
                Some(Err(gone)) => break Err(gone),
                None => break Err(anyhow::anyhow!("no agent is left to tell events")),
            };
            match event {
                Some(Event::Loss(loss)) => {
                    if let Some(sentence) = (self.loss)(&loss) {
                        tokio::select! {
                            biased;
                            () = stop.requested() => break Ok(()),
                            flushed = output.flush() => if let Err(error) = flushed { break Err(error.into()) },
                        }
                        terminal::say(&format!("orb8: {sentence}"));
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

type Events = SelectAll<BoxStream<'static, anyhow::Result<StreamEventsResponse>>>;

/// The events of all agents, as they come; and whether some agent is missing, which was said.
///
/// # Errors
/// If no agent tells events.
async fn open(fleet: &Fleet, request: &StreamEventsRequest) -> anyhow::Result<(Events, bool)> {
    let streams = fleet
        .ask(|member| {
            let request = request.clone();
            async move {
                let mut client = member.client.clone();
                member.within(client.stream_events(request)).await
            }
        })
        .await;
    let mut silent = fleet.missing.clone();
    let mut errors = Vec::new();
    let mut events = Events::new();
    for (member, stream) in fleet.members.iter().zip(streams) {
        match stream {
            Ok(stream) => events.push(told(member.clone(), stream.into_inner())),
            Err(status) => {
                silent.push((member.name.clone(), member.why(&status)));
                errors.push(member.explain(&status));
            }
        }
    }
    if let Some(error) = fleet::nobody(events.is_empty(), errors, &silent) {
        return Err(error);
    }
    for sentence in fleet::sentences(&silent) {
        terminal::say(&format!("orb8: {sentence}"));
    }
    Ok((events, !silent.is_empty()))
}

/// One agent's events, closed by the reason for which they ended: they only end when the agent does.
fn told(
    member: Member,
    stream: Streaming<StreamEventsResponse>,
) -> BoxStream<'static, anyhow::Result<StreamEventsResponse>> {
    futures::stream::unfold((member, Some(stream)), |(member, stream)| async move {
        let mut stream = stream?;
        match stream.message().await {
            Ok(Some(mut response)) => {
                if let Some(Event::Network(event)) = &mut response.event
                    && member.deadline.is_some()
                {
                    event.flow.iter_mut().for_each(ends::name_hosts);
                }
                Some((Ok(response), (member, Some(stream))))
            }
            Ok(None) => {
                let gone = Status::unavailable("it ended the stream");
                Some((Err(member.explain(&gone)), (member, None)))
            }
            Err(status) => Some((Err(member.explain(&status)), (member, None))),
        }
    })
    .boxed()
}
