//! The gRPC service: flows, status and events.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, stream};
use orb8_proto::{
    Responses, batches, edges,
    v1::{
        self, AgentStatus, FlowBatch, FlowQuery, GetAgentStatusRequest, QueryFlowsResponse,
        StreamEventsRequest, StreamEventsResponse, orbit_service_server::OrbitService,
        query_flows_response::Part, stream_events_response,
    },
};
use prost_types::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    core::{Core, lock},
    gpu::{self, GpuEvents, PodSelection, ReceivedGpu},
    kubernetes::{LabelSelector, is_selector},
    live::{Live, Received, Subscription, ring_losses},
    pods,
    probe::{kernel_clock::unix_now_ns, syscall::Mode},
    status::{agent_status, network_ledger, syscall_ledger},
    store::{Filter, LiveEvent, LiveFilter, Selection, UID, timestamp},
    syscalls::{
        CallQuery, CallQueryError, CallSubscription, LiveCall, LiveCallFilter, ReceivedCall, SyscallLive,
    },
};

/// Flows of one message: some hundred kilobytes.
const FLOWS_A_MESSAGE: usize = 512;
/// Events of one message, for clients that take several.
const EVENTS_A_MESSAGE: usize = 256;
/// Edges of one message.
const EDGES_A_MESSAGE: usize = 256;
/// Flows that are joined into edges at most: some hundred megabytes.
const MAX_JOINED: usize = 250_000;
/// How a filter's condition on pods is met by none.
const NOBODY: &str = "uid:-";
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

    fn query_permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.queries.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{QUERIES} queries are being answered already; try again"))
        })
    }
}

impl Orbit {
    /// Whether this node is among those that are asked.
    fn is_asked(&self, nodes: &[String]) -> bool {
        nodes.is_empty() || nodes.contains(&self.core.node)
    }

    /// From when on: as this node's cursor says, if there is one.
    fn since(&self, cursors: &[v1::NodeCursor], since: Option<Timestamp>) -> Option<Timestamp> {
        match cursors.iter().find(|cursor| cursor.name == self.core.node) {
            Some(cursor) => cursor.time,
            None => since,
        }
    }

    fn own_answer(&self) -> v1::NodeAnswer {
        v1::NodeAnswer {
            name: self.core.node.clone(),
            state: v1::NodeState::Answered.into(),
            ..v1::NodeAnswer::default()
        }
    }

    /// The flows that a query is about, with the ledger.
    async fn select_flows(&self, mut query: FlowQuery) -> Result<Selection, Status> {
        query.since = self.since(&query.cursors, query.since);
        resolve_selectors(&self.core, query.filter.as_mut())?;
        if !self.is_asked(&query.nodes) {
            query.filter.get_or_insert_default().pods = vec![NOBODY.to_owned()];
        }
        // What is asked up to now is to be complete up to now.
        if query.until.is_none() {
            self.core.refresh().await;
        }
        let core = self.core.clone();
        // Milliseconds of work: not on the threads that answer others.
        tokio::task::spawn_blocking(move || {
            let mut selection = {
                let store = lock(&core.store);
                store
                    .history
                    .select(&query, &store.owners, &core.node, unix_now_ns())
            }
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
            selection.summary.ledger = network_ledger(&core);
            Ok::<_, Status>(selection)
        })
        .await
        .map_err(|error| Status::internal(format!("the query failed: {error}")))?
    }
}

#[tonic::async_trait]
impl OrbitService for Orbit {
    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryFlowsResponse>>, Status> {
        let query = request.into_inner();
        let permit = self.query_permit()?;
        let batch = match query.batch as usize {
            0 => FLOWS_A_MESSAGE,
            batch => batch.min(FLOWS_A_MESSAGE),
        };
        let selection = self.select_flows(query).await?;
        let core = self.core.clone();
        let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        tokio::spawn(async move {
            let _permit = permit;
            for rows in selection.rows.chunks(batch) {
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

    async fn query_syscalls(
        &self,
        request: Request<v1::SyscallQuery>,
    ) -> Result<Response<Responses<v1::QuerySyscallsResponse>>, Status> {
        let mut query = request.into_inner();
        query.since = self.since(&query.cursors, query.since);
        let filter = query.filter.get_or_insert_default();
        resolve_pods(&self.core, &mut filter.pods)?;
        if !self.is_asked(&query.nodes) {
            filter.pods = vec![NOBODY.to_owned()];
        }
        let query = CallQuery::new(&query).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let permit = self.query_permit()?;
        // What is asked up to now is to be complete up to now.
        if query.is_open() {
            self.core.refresh().await;
        }
        let core = self.core.clone();
        let selection = tokio::task::spawn_blocking(move || {
            let (mode, asked) = {
                let slot = lock(&core.syscalls.probe);
                (slot.mode(), slot.options.measured.len())
            };
            let mut selection = {
                let store = lock(&core.store);
                query.select(&store.syscalls, &store.owners, &core.node, unix_now_ns())
            };
            selection.summary.mode = mode_message(mode).into();
            if asked > 0 && selection.summary.measured.is_some_and(|time| time != prost_types::Duration::default()) {
                selection.summary.notes.push(
                    "Errors and times are those of the calls that the setting syscall_measured names; the others are only \
                     counted."
                        .to_owned(),
                );
            }
            selection.summary.ledger = syscall_ledger(&core);
            selection
        })
        .await
        .map_err(|error| Status::internal(format!("the query failed: {error}")))?;

        let node = self.core.node.clone();
        let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        tokio::spawn(async move {
            let _permit = permit;
            let part = |part| v1::QuerySyscallsResponse { part: Some(part) };
            for rows in selection.rows.chunks(FLOWS_A_MESSAGE) {
                let rows = rows.iter().map(|row| row.message(&node)).collect();
                let batch = part(v1::query_syscalls_response::Part::Batch(v1::SyscallBatch {
                    rows,
                }));
                if sender.send_timeout(Ok(batch), PATIENCE).await.is_err() {
                    return;
                }
            }
            let summary = part(v1::query_syscalls_response::Part::Summary(selection.summary));
            // The client may have gone.
            let _ = sender.send_timeout(Ok(summary), PATIENCE).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn query_gpus(
        &self,
        request: Request<v1::GpuQuery>,
    ) -> Result<Response<Responses<v1::QueryGpusResponse>>, Status> {
        let mut query = request.into_inner();
        if let Some(filter) = &mut query.filter {
            resolve_pods(&self.core, &mut filter.pods)?;
        }
        if !self.is_asked(&query.nodes) {
            query.filter.get_or_insert_default().pods = vec![NOBODY.to_owned()];
        }
        let permit = self.query_permit()?;
        let core = self.core.clone();
        if query.idle && query.until.is_none() {
            // Calls and flows of the last moments are evidence, too.
            self.core.refresh().await;
        }
        let (answer, calls) = tokio::task::spawn_blocking(move || {
            let mut answer = core.gpus.answer(&query)?;
            if query.idle {
                gpu::explain(&core, &mut answer);
            }
            let calls = core.gpus.cuda_calls(&core.node, &query);
            Ok::<_, gpu::GpuQueryError>((answer, calls))
        })
        .await
        .map_err(|error| Status::internal(format!("the query failed: {error}")))?
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
        drop(permit);
        let messages = gpu::batches(answer.devices, calls, answer.summary);
        Ok(Response::new(Box::pin(stream::iter(
            messages.into_iter().map(Ok),
        ))))
    }

    async fn set_syscall_mode(
        &self,
        request: Request<v1::SetSyscallModeRequest>,
    ) -> Result<Response<v1::SetSyscallModeResponse>, Status> {
        let v1::SetSyscallModeRequest { mode: number, nodes } = request.into_inner();
        if !self.is_asked(&nodes) {
            return Err(Status::invalid_argument(format!(
                "this is the agent of node {}, and not of {}",
                self.core.node,
                nodes.join(", ")
            )));
        }
        let mode = match v1::SyscallMode::try_from(number) {
            Ok(v1::SyscallMode::Off) => Mode::Off,
            Ok(v1::SyscallMode::Counts) => Mode::Counts,
            Ok(v1::SyscallMode::Latency) => Mode::Latency,
            Ok(v1::SyscallMode::Unspecified) | Err(_) => {
                return Err(Status::invalid_argument(format!(
                    "syscall mode {number} is none; allowed: 1 off, 2 counts, 3 latency"
                )));
            }
        };
        let before = self.core.set_syscall_mode(mode).await.map_err(|error| {
            Status::failed_precondition(format!("the syscall programs go on as before: {error}"))
        })?;
        Ok(Response::new(v1::SetSyscallModeResponse {
            node: self.core.node.clone(),
            before: mode_message(before).into(),
            mode: mode_message(mode).into(),
            ..v1::SetSyscallModeResponse::default()
        }))
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
            nodes,
        } = request.into_inner();
        let mut filter = v1::FlowFilter {
            namespaces,
            pods,
            workloads,
            ..v1::FlowFilter::default()
        };
        resolve_selectors(&self.core, Some(&mut filter))?;
        if !self.is_asked(&nodes) {
            filter.pods = vec![NOBODY.to_owned()];
        }
        let filter =
            Filter::new(Some(&filter)).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.core.refresh().await;
        let core = self.core.clone();
        tokio::task::spawn_blocking(move || pods::list(&core, &filter))
            .await
            .map(Response::new)
            .map_err(|error| Status::internal(format!("the pods could not be listed: {error}")))
    }

    async fn query_edges(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<v1::QueryEdgesResponse>>, Status> {
        use v1::query_edges_response::Part;
        let query = request.into_inner();
        let permit = self.query_permit()?;
        let (sort, limit) = (query.sort(), query.limit as usize);
        let selection = self.select_flows(FlowQuery { limit: 0, ..query }).await?;
        if selection.rows.len() > MAX_JOINED {
            return Err(Status::resource_exhausted(format!(
                "{} flows are too many to join: ask for less, by a namespace, a pod or a shorter span of time",
                selection.rows.len()
            )));
        }
        let core = self.core.clone();
        let summary = selection.summary;
        let (joined, found) = tokio::task::spawn_blocking(move || {
            let flows: Vec<_> = {
                let store = lock(&core.store);
                let rows = selection.rows.iter();
                rows.filter_map(|row| store.history.flow(row, &store.owners, &core.node))
                    .collect()
            };
            edges::join(&flows, sort, limit)
        })
        .await
        .map_err(|error| Status::internal(format!("the flows could not be joined: {error}")))?;
        let summary = v1::EdgeSummary {
            edges: found as u64,
            settled: summary.to,
            flows: Some(summary),
        };
        let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        tokio::spawn(async move {
            let _permit = permit;
            let part = |part| v1::QueryEdgesResponse { part: Some(part) };
            for edges in batches(joined, EDGES_A_MESSAGE) {
                let batch = part(Part::Batch(v1::EdgeBatch { edges }));
                if sender.send_timeout(Ok(batch), PATIENCE).await.is_err() {
                    return;
                }
            }
            // The client may have gone.
            let _ = sender
                .send_timeout(Ok(part(Part::Summary(summary))), PATIENCE)
                .await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<Responses<v1::NodeInfo>>, Status> {
        // Nothing is taken out of the kernel for this: it is asked every few seconds.
        let own = self.is_asked(&request.into_inner().nodes).then(|| {
            let history_from = lock(&self.core.store).history.covered().map(|(from, _)| from);
            v1::NodeInfo {
                name: self.core.node.clone(),
                state: v1::NodeState::Answered.into(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started: Some(timestamp(self.core.started_ns)),
                history_from: history_from.map(timestamp),
                transport: self.core.transport.to_owned(),
                time: Some(timestamp(unix_now_ns())),
                ..v1::NodeInfo::default()
            }
        });
        Ok(Response::new(Box::pin(stream::iter(own.map(Ok)))))
    }

    async fn query_status(
        &self,
        request: Request<v1::QueryStatusRequest>,
    ) -> Result<Response<Responses<v1::NodeStatus>>, Status> {
        let own = match self.is_asked(&request.into_inner().nodes) {
            true => {
                self.core.refresh().await;
                Some(v1::NodeStatus {
                    answer: Some(self.own_answer()),
                    status: Some(agent_status(&self.core)),
                })
            }
            false => None,
        };
        Ok(Response::new(Box::pin(stream::iter(own.map(Ok)))))
    }

    async fn query_pods(
        &self,
        request: Request<v1::ListPodsRequest>,
    ) -> Result<Response<Responses<v1::NodePods>>, Status> {
        let pods = self.list_pods(request).await?.into_inner();
        let own = v1::NodePods {
            answer: Some(self.own_answer()),
            pods: Some(pods),
        };
        Ok(Response::new(Box::pin(stream::iter([Ok(own)]))))
    }

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Responses<StreamEventsResponse>>, Status> {
        let StreamEventsRequest {
            mut network,
            mut syscall,
            syscall_sampling,
            nodes,
            batch,
            mut gpu,
            ..
        } = request.into_inner();
        let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        // Who names none gets all.
        let all = network.is_none() && syscall.is_none() && gpu.is_none();
        let (wants_flows, wants_calls, wants_gpus) = (
            all || network.is_some(),
            all || syscall.is_some(),
            all || gpu.is_some(),
        );
        if syscall_sampling > 0 && syscall.is_none() {
            return Err(invalid(&CallQueryError::SampleWhat));
        }
        resolve_selectors(&self.core, network.as_mut())?;
        if let Some(filter) = &mut syscall {
            resolve_pods(&self.core, &mut filter.pods)?;
        }
        if let Some(filter) = &mut gpu {
            resolve_pods(&self.core, &mut filter.pods)?;
        }
        if !self.is_asked(&nodes) {
            if wants_gpus {
                gpu.get_or_insert_default().pods = vec![NOBODY.to_owned()];
            }
            let filters = [
                network.as_mut().map(|filter| &mut filter.pods),
                syscall.as_mut().map(|filter| &mut filter.pods),
            ];
            filters
                .into_iter()
                .flatten()
                .for_each(|pods| *pods = vec![NOBODY.to_owned()]);
            if wants_flows && network.is_none() {
                network = Some(v1::FlowFilter {
                    pods: vec![NOBODY.to_owned()],
                    ..v1::FlowFilter::default()
                });
            }
            if wants_calls && syscall.is_none() {
                syscall = Some(v1::SyscallFilter {
                    pods: vec![NOBODY.to_owned()],
                    ..v1::SyscallFilter::default()
                });
            }
        }
        let flows = LiveFilter::new(network.as_ref()).map_err(|error| invalid(&error))?;
        let told = &self.core.syscalls.live.told;
        let calls =
            LiveCallFilter::new(syscall.as_ref(), syscall_sampling, told).map_err(|error| invalid(&error))?;
        let selection = gpu::checked(gpu.as_ref()).map_err(|error| invalid(&error))?;
        let gpus = wants_gpus.then(|| GpuStream {
            events: self.core.gpus.live.subscribe(),
            selection,
            devices: gpu.map(|filter| filter.devices).unwrap_or_default(),
        });
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{STREAMS} clients follow events already; try again later"
            ))
        })?;
        let refused = |error: &dyn std::fmt::Display| {
            Status::internal(format!("the programs cannot be told to send events: {error}"))
        };
        let flows = match wants_flows {
            true => Some((
                Live::subscribe(&self.core).map_err(|error| refused(&error))?,
                flows,
            )),
            false => None,
        };
        let calls = match wants_calls {
            true => Some((
                SyscallLive::subscribe(&self.core, &calls).map_err(|error| refused(&error))?,
                calls,
            )),
            false => None,
        };
        let (sender, receiver) = mpsc::channel(64);
        let (core, stop) = (self.core.clone(), self.stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = stop.cancelled() => {}
                () = forward(core, (flows, calls, gpus), batch, sender) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

const fn mode_message(mode: Mode) -> v1::SyscallMode {
    match mode {
        Mode::Off => v1::SyscallMode::Off,
        Mode::Counts => v1::SyscallMode::Counts,
        Mode::Latency => v1::SyscallMode::Latency,
    }
}

/// Puts the pods that label selectors select in the place of the selectors: the pods of now, and those that ended not long
/// ago.
fn resolve_selectors(core: &Core, filter: Option<&mut v1::FlowFilter>) -> Result<(), Status> {
    match filter {
        Some(filter) => resolve_pods(core, &mut filter.pods),
        None => Ok(()),
    }
}

fn resolve_pods(core: &Core, wanted: &mut Vec<String>) -> Result<(), Status> {
    let (selectors, mut pods): (Vec<String>, Vec<String>) =
        wanted.drain(..).partition(|pod| is_selector(pod));
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
    *wanted = pods;
    Ok(())
}

/// What a client follows.
type Subscribed = (
    Option<(Subscription, LiveFilter)>,
    Option<(CallSubscription, LiveCallFilter)>,
    Option<GpuStream>,
);

/// Events of GPUs that a client wants.
struct GpuStream {
    events: GpuEvents,
    selection: Option<PodSelection>,
    devices: Vec<String>,
}

impl GpuStream {
    fn wants(&self, event: &v1::GpuEvent) -> bool {
        let device = v1::GpuDevice {
            uuid: event.uuid.clone(),
            index: event.index,
            mig: event.mig.clone(),
            ..v1::GpuDevice::default()
        };
        let named = self.devices.is_empty() || self.devices.iter().any(|id| orb8_gpu::goes_by(&device, id));
        named
            && self.selection.as_ref().is_none_or(|selection| {
                event
                    .holders
                    .iter()
                    .filter_map(|holder| holder.owner.as_ref())
                    .any(|owner| selection.matches(owner))
            })
    }
}

/// The next event of a GPU, as [`next_flow`].
async fn next_gpu(gpus: &mut Option<GpuStream>) -> Option<Result<Option<v1::GpuEvent>, u64>> {
    let Some(stream) = gpus else {
        return std::future::pending().await;
    };
    Some(match stream.events.next().await? {
        ReceivedGpu::Missed(count) => Err(count),
        ReceivedGpu::Event(event) => Ok(stream.wants(&event).then(|| (*event).clone())),
    })
}

/// Hands events on until the client goes, and tells it what it missed.
async fn forward(
    core: Arc<Core>,
    (mut flows, mut calls, mut gpus): Subscribed,
    batch: bool,
    sender: mpsc::Sender<Result<StreamEventsResponse, Status>>,
) {
    let losses = |flows: bool, calls: bool| {
        let network = if flows { ring_losses(&core) } else { (0, 0) };
        let call = if calls {
            crate::status::syscall_ring_losses(&core)
        } else {
            0
        };
        (network.0 + call, network.1)
    };
    let (wants_flows, wants_calls) = (flows.is_some(), calls.is_some());
    let mut told = losses(wants_flows, wants_calls);
    let mut missed = 0;
    let mut report = tokio::time::interval(LOSS_REPORT);
    report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            () = sender.closed() => return,
            _ = report.tick() => {
                let now = losses(wants_flows, wants_calls);
                if now == told && missed == 0 {
                    continue;
                }
                let loss = v1::EventLoss {
                    ring: now.0.saturating_sub(told.0),
                    sampled: now.1.saturating_sub(told.1),
                    stream: missed,
                    ..v1::EventLoss::default()
                };
                (told, missed) = (now, 0);
                stream_events_response::Event::Loss(loss)
            }
            received = next_flow(&mut flows) => match received {
                None => return,
                Some(Err(count)) => {
                    missed += count;
                    continue;
                }
                Some(Ok(None)) => continue,
                Some(Ok(Some(event))) => stream_events_response::Event::Network(event.message(&core.node)),
            },
            received = next_call(&mut calls) => match received {
                None => return,
                Some(Err(count)) => {
                    missed += count;
                    continue;
                }
                Some(Ok(None)) => continue,
                Some(Ok(Some(event))) => stream_events_response::Event::Syscall(event.message(&core.node)),
            },
            received = next_gpu(&mut gpus) => match received {
                None => return,
                Some(Err(count)) => {
                    missed += count;
                    continue;
                }
                Some(Ok(None)) => continue,
                Some(Ok(Some(event))) => stream_events_response::Event::Gpu(event),
            },
        };
        let mut response = StreamEventsResponse { event: Some(event) };
        if batch {
            // What is there already comes along; nothing is waited for.
            let mut events = vec![response];
            while events.len() < EVENTS_A_MESSAGE
                && let Some(event) = ready_event(&core, &mut flows, &mut calls, &mut missed)
            {
                events.push(StreamEventsResponse { event: Some(event) });
            }
            response = match events.len() {
                1 => events.remove(0),
                _ => StreamEventsResponse {
                    event: Some(stream_events_response::Event::Batch(v1::EventBatch { events })),
                },
            };
        }
        if sender.send_timeout(Ok(response), PATIENCE).await.is_err() {
            return;
        }
    }
}

/// The next event that is there already and that the client wants. Those that were missed are added to `missed`.
fn ready_event(
    core: &Core,
    flows: &mut Option<(Subscription, LiveFilter)>,
    calls: &mut Option<(CallSubscription, LiveCallFilter)>,
    missed: &mut u64,
) -> Option<stream_events_response::Event> {
    // Bounded, so that events that nobody wants do not keep those that are.
    for _ in 0..EVENTS_A_MESSAGE {
        match next_flow(flows).now_or_never() {
            Some(Some(Ok(Some(event)))) => {
                return Some(stream_events_response::Event::Network(event.message(&core.node)));
            }
            Some(Some(Err(count))) => *missed += count,
            Some(Some(Ok(None))) => {}
            Some(None) => return None,
            None => match next_call(calls).now_or_never() {
                Some(Some(Ok(Some(event)))) => {
                    return Some(stream_events_response::Event::Syscall(event.message(&core.node)));
                }
                Some(Some(Err(count))) => *missed += count,
                Some(Some(Ok(None))) => {}
                Some(None) | None => return None,
            },
        }
    }
    None
}

/// The next event of a flow, if the client wants it, or how many were missed; never, if it wants none. Cancel safe.
async fn next_flow(
    flows: &mut Option<(Subscription, LiveFilter)>,
) -> Option<Result<Option<Arc<LiveEvent>>, u64>> {
    let Some((subscription, filter)) = flows else {
        return std::future::pending().await;
    };
    Some(match subscription.next().await? {
        Received::Missed(count) => Err(count),
        Received::Event(event) => Ok(filter.matches(&event).then_some(event)),
    })
}

/// The next event of a call, as [`next_flow`].
async fn next_call(
    calls: &mut Option<(CallSubscription, LiveCallFilter)>,
) -> Option<Result<Option<Arc<LiveCall>>, u64>> {
    let Some((subscription, filter)) = calls else {
        return std::future::pending().await;
    };
    Some(match subscription.next().await? {
        ReceivedCall::Missed(count) => Err(count),
        ReceivedCall::Event(event) => Ok(filter.matches(&event).then_some(event)),
    })
}
