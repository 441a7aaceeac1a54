//! The gRPC service: flows, status and events.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use orb8_proto::v1::{
    self, AgentStatus, FlowBatch, FlowQuery, GetAgentStatusRequest, QueryFlowsResponse, StreamEventsRequest,
    StreamEventsResponse, orbit_service_server::OrbitService, query_flows_response::Part,
    stream_events_response,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    core::{Core, lock},
    kubernetes::{LabelSelector, is_selector},
    live::{Live, Received, ring_losses},
    pods,
    probe::kernel_clock::unix_now_ns,
    status::{agent_status, ledger},
    store::{Filter, LiveFilter, UID},
};

/// Flows of one message: some hundred kilobytes.
const FLOWS_A_MESSAGE: usize = 512;
/// Messages that wait for a client.
const MESSAGES_IN_FLIGHT: usize = 4;
/// Queries at once: each holds its rows, 96 bytes a flow.
const QUERIES: usize = 8;
/// Event streams at once.
const STREAMS: usize = 64;
/// A client that takes no message for so long is cut off.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a stream that has nothing else to say tells of losses.
const LOSS_REPORT: Duration = Duration::from_secs(1);

/// The service over a running agent's state.
#[derive(Clone, Debug)]
pub(crate) struct Orbit {
    core: Arc<Core>,
    stop: CancellationToken,
    queries: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Orbit {
    pub(crate) fn new(core: Arc<Core>, stop: CancellationToken) -> Self {
        Self {
            core,
            stop,
            queries: Arc::new(Semaphore::new(QUERIES)),
            streams: Arc::new(Semaphore::new(STREAMS)),
        }
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl OrbitService for Orbit {
    type QueryFlowsStream = Responses<QueryFlowsResponse>;
    type StreamEventsStream = Responses<StreamEventsResponse>;

    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Self::QueryFlowsStream>, Status> {
        let mut query = request.into_inner();
        resolve_selectors(&self.core, query.filter.as_mut())?;
        let permit = self.queries.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{QUERIES} queries are being answered already; try again"))
        })?;
        // What is asked up to now is to be complete up to now.
        if query.until.is_none() {
            self.core.refresh().await;
        }
        let core = self.core.clone();
        // Milliseconds of work: not on the threads that answer others.
        let selection = tokio::task::spawn_blocking(move || {
            let mut selection = {
                let store = lock(&core.store);
                store
                    .history
                    .select(&query, &store.owners, &core.node, unix_now_ns())
            }
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
            selection.summary.ledger = ledger(&core);
            Ok::<_, Status>(selection)
        })
        .await
        .map_err(|error| Status::internal(format!("the query failed: {error}")))??;

        let core = self.core.clone();
        let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        tokio::spawn(async move {
            let _permit = permit;
            for rows in selection.rows.chunks(FLOWS_A_MESSAGE) {
                let flows = {
                    let store = lock(&core.store);
                    rows.iter()
                        .filter_map(|row| store.history.flow(row, &store.owners, &core.node))
                        .collect()
                };
                let batch = QueryFlowsResponse {
                    part: Some(Part::Batch(FlowBatch { flows })),
                };
                if sender.send_timeout(Ok(batch), PATIENCE).await.is_err() {
                    return;
                }
            }
            let summary = QueryFlowsResponse {
                part: Some(Part::Summary(selection.summary)),
            };
            // The client may have gone.
            let _ = sender.send_timeout(Ok(summary), PATIENCE).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_agent_status(
        &self,
        _request: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        self.core.refresh().await;
        Ok(Response::new(agent_status(&self.core)))
    }

    async fn list_pods(
        &self,
        request: Request<v1::ListPodsRequest>,
    ) -> Result<Response<v1::ListPodsResponse>, Status> {
        let v1::ListPodsRequest {
            namespaces,
            pods,
            workloads,
        } = request.into_inner();
        let mut filter = v1::FlowFilter {
            namespaces,
            pods,
            workloads,
            ..v1::FlowFilter::default()
        };
        resolve_selectors(&self.core, Some(&mut filter))?;
        let filter =
            Filter::new(Some(&filter)).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.core.refresh().await;
        let core = self.core.clone();
        tokio::task::spawn_blocking(move || pods::list(&core, &filter))
            .await
            .map(Response::new)
            .map_err(|error| Status::internal(format!("the pods could not be listed: {error}")))
    }

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let mut filter = request.into_inner().network;
        resolve_selectors(&self.core, filter.as_mut())?;
        let filter =
            LiveFilter::new(filter.as_ref()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{STREAMS} clients follow events already; try again later"
            ))
        })?;
        let subscription = Live::subscribe(&self.core).map_err(|error| {
            Status::internal(format!("the programs cannot be told to send events: {error}"))
        })?;
        let (sender, receiver) = mpsc::channel(64);
        let (core, stop) = (self.core.clone(), self.stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = stop.cancelled() => {}
                () = forward(core, subscription, filter, sender) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Puts the pods that label selectors select in the place of the selectors: the pods of now, and those that ended not long
/// ago.
fn resolve_selectors(core: &Core, filter: Option<&mut v1::FlowFilter>) -> Result<(), Status> {
    let Some(filter) = filter else {
        return Ok(());
    };
    let (selectors, mut pods): (Vec<String>, Vec<String>) =
        filter.pods.drain(..).partition(|pod| is_selector(pod));
    for text in selectors {
        let selector = LabelSelector::parse(&text).map_err(Status::invalid_argument)?;
        let Some(cluster) = lock(&core.names).cluster.clone() else {
            return Err(Status::failed_precondition(format!(
                "the label selector `{text}` needs the cluster's API server, which this agent does not know: see `orb8 \
                 status`"
            )));
        };
        let matching = cluster.pods_matching(|labels| selector.matches(labels));
        pods.extend(matching.iter().map(|uid| format!("{UID}{uid}")));
        // A selector that selects nothing asks for nothing, not for everything.
        pods.push(format!("{UID}-"));
    }
    filter.pods = pods;
    Ok(())
}

/// Hands events on until the client goes, and tells it what it missed.
async fn forward(
    core: Arc<Core>,
    mut subscription: crate::live::Subscription,
    filter: LiveFilter,
    sender: mpsc::Sender<Result<StreamEventsResponse, Status>>,
) {
    let mut told = ring_losses(&core);
    let mut missed = 0;
    let mut report = tokio::time::interval(LOSS_REPORT);
    report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            () = sender.closed() => return,
            _ = report.tick() => {
                let now = ring_losses(&core);
                if now == told && missed == 0 {
                    continue;
                }
                let loss = v1::EventLoss { ring: now.0 - told.0, sampled: now.1 - told.1, stream: missed };
                (told, missed) = (now, 0);
                stream_events_response::Event::Loss(loss)
            }
            received = subscription.next() => match received {
                None => return,
                Some(Received::Missed(count)) => {
                    missed += count;
                    continue;
                }
                Some(Received::Event(event)) if filter.matches(&event) => {
                    stream_events_response::Event::Network(event.message(&core.node))
                }
                Some(Received::Event(_)) => continue,
            },
        };
        let response = StreamEventsResponse { event: Some(event) };
        if sender.send_timeout(Ok(response), PATIENCE).await.is_err() {
            return;
        }
    }
}
