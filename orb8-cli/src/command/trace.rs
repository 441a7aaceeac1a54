//! `orb8 trace network`.

use orb8_proto::v1::{EventLoss, StreamEventsRequest, stream_events_response::Event};
use tokio::time::Instant;

use crate::{
    args::{TraceForm, TraceNetworkArgs},
    connect::Session,
    exit::Outcome,
    filter, humanise,
    output::Output,
    query,
    render::{event, flow_json},
    signals::Stop,
    terminal::{self, Style},
};

pub(super) async fn run(
    session: &mut Session,
    args: &TraceNetworkArgs,
    stop: &Stop,
) -> anyhow::Result<Outcome> {
    let request = StreamEventsRequest {
        network: Some(filter::flow_filter(&args.filter)),
    };
    let name = session.name.clone();
    let mut events = super::unless_stopped(stop, async {
        let stream = session.client.stream_events(request).await;
        Ok(stream
            .map_err(|status| query::explain(&name, &status))?
            .into_inner())
    })
    .await?;
    let end = args.duration.map(|duration| Instant::now() + duration);
    let style = Style::of_stdout();
    let mut output = Output::stdout();
    let mut lost = EventLoss::default();
    let mut count = 0_u64;
    let result: anyhow::Result<()> = loop {
        if args.count.is_some_and(|limit| count >= limit) {
            break Ok(());
        }
        let response = tokio::select! {
            biased;
            () = stop.requested() => break Ok(()),
            () = output.reader_gone() => break Ok(()),
            () = super::deadline(end) => break Ok(()),
            response = events.message() => response,
        };
        let event = match response {
            Ok(Some(response)) => response.event,
            Ok(None) => {
                break Err(anyhow::anyhow!(
                    "the agent at {name} ended the stream; is it still running?"
                ));
            }
            Err(status) => break Err(query::explain(&name, &status)),
        };
        match event {
            Some(Event::Network(event)) => {
                count += 1;
                let line = match args.output {
                    TraceForm::Lines => event::line(&event, &style),
                    TraceForm::Json => flow_json::line(&event::EventRecord::from(&event))?,
                };
                tokio::select! {
                    biased;
                    () = stop.requested() => break Ok(()),
                    written = output.write(line) => if let Err(error) = written { break Err(error.into()) },
                }
            }
            Some(Event::Loss(loss)) => {
                if let Some(sentence) = event::loss(&loss) {
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
            None => {}
        }
    };
    let written = output.finish().await;
    result?;
    written?;
    let total = event::loss(&lost);
    let events = humanise::counted(count, "event", "events");
    terminal::say(&format!(
        "orb8: {events}; {}",
        total.as_deref().unwrap_or("none lost")
    ));
    Ok(Outcome::of(total.is_some(), args.strict))
}
