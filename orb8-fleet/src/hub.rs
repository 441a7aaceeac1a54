//! The service over all members.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use orb8_proto::{
    Responses,
    v1::{
        AgentStatus, FlowFilter, FlowQuery, GetAgentStatusRequest, GpuQuery, ListNodesRequest,
        ListPodsRequest, ListPodsResponse, NodeInfo, NodePods, NodeStatus, QueryEdgesResponse,
        QueryFlowsResponse, QueryGpusResponse, QueryStatusRequest, QuerySyscallsResponse,
        SetSyscallModeRequest, SetSyscallModeResponse, StreamEventsRequest, StreamEventsResponse,
        SyscallQuery, orbit_service_server::OrbitService,
    },
};
use prost_types::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::{
    events::batch,
    member::{DEADLINE, Members},
};

/// Messages that wait for a client.
const MESSAGES_IN_FLIGHT: usize = 4;

/// Which workloads a question is about: the conditions that say on which nodes they can be. All empty: any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// As in [`FlowFilter`].
    pub namespaces: Vec<String>,
    /// As in [`FlowFilter`].
    pub pods: Vec<String>,
    /// As in [`FlowFilter`].
    pub workloads: Vec<String>,
    /// From when on; `None`: all that agents keep.
    pub since: Option<Timestamp>,
}

impl Wanted {
    /// Of a filter whose conditions must be met by the reporter's own end.
    #[must_use]
    pub fn of_flows(filter: &FlowFilter, since: Option<Timestamp>) -> Self {
        Self {
            namespaces: filter.namespaces.clone(),
            pods: filter.pods.clone(),
            workloads: filter.workloads.clone(),
            since,
        }
    }
}

/// Where pods are, and were.
pub trait PodNodes: Send + Sync + 'static {
    /// The nodes that can hold answers about these workloads; `None`: that is not known for certain, ask all.
    fn nodes_of(&self, wanted: &Wanted) -> Option<BTreeSet<String>>;
}

/// The state of whoever runs the hub, where it has one beside its members'.
pub trait OwnStatus: Send + Sync + 'static {
    /// As it is now.
    fn status(&self) -> AgentStatus;
}

/// Bounds of a hub.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a member may keep the others waiting: for its first message, and for each after it.
    pub deadline: Duration,
    /// Members that one question is put to at the same time.
    pub concurrency: usize,
    /// Questions answered at the same time; more are refused.
    pub queries: usize,
    /// Streams of events at the same time; more are refused.
    pub streams: usize,
    /// A client that takes no message for so long is cut off, and counted.
    pub patience: Duration,
    /// Largest message that is taken from an agent, bytes.
    pub max_message: usize,
    /// Flows that are joined into edges at most, rows that are summed, and devices, of which each counts as several: bounds
    /// memory.
    pub max_rows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: DEADLINE,
            concurrency: 1024,
            queries: 32,
            streams: 64,
            patience: Duration::from_secs(30),
            max_message: 16 << 20,
            max_rows: 1_000_000,
        }
    }
}

/// What a hub has counted since its start.
#[derive(Debug, Default)]
pub struct HubCounts {
    /// Questions refused, since too many were being answered.
    pub refused: AtomicU64,
    /// Clients cut off, since they took no message for too long.
    pub cut_off: AtomicU64,
    /// Events that clients were too slow to take.
    pub events_lost: AtomicU64,
    /// Events handed on.
    pub events: AtomicU64,
    /// Members' answers that did not come, or not to the end: nothing within the deadline.
    pub silent: AtomicU64,
    /// The same: no connection, or a broken one.
    pub unreachable: AtomicU64,
    /// The same: an error.
    pub errors: AtomicU64,
}

impl HubCounts {
    pub(crate) fn failed(&self, status: &Status) {
        let counter = match status.code() {
            Code::DeadlineExceeded => &self.silent,
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal => &self.unreachable,
            _ => &self.errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Asks all members as one.
#[derive(Clone)]
pub struct Hub {
    pub(crate) members: Members,
    pods: Option<Arc<dyn PodNodes>>,
    pub(crate) own: Option<Arc<dyn OwnStatus>>,
    pub(crate) limits: Limits,
    pub(crate) counts: Arc<HubCounts>,
    queries: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("limits", &self.limits)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Over these members. Every question goes to all of them.
    #[must_use]
    pub fn new(members: Members, limits: Limits) -> Self {
        Self {
            members,
            pods: None,
            own: None,
            limits,
            counts: Arc::default(),
            queries: Arc::new(Semaphore::new(limits.queries)),
            streams: Arc::new(Semaphore::new(limits.streams)),
        }
    }

    /// Questions about pods go only to the nodes that can hold the answer.
    #[must_use]
    pub fn with_pods(mut self, pods: Arc<dyn PodNodes>) -> Self {
        self.pods = Some(pods);
        self
    }

    /// Answers for itself when it is asked for its state.
    #[must_use]
    pub fn with_status(mut self, own: Arc<dyn OwnStatus>) -> Self {
        self.own = Some(own);
        self
    }

    /// What it has counted.
    #[must_use]
    pub fn counts(&self) -> Arc<HubCounts> {
        self.counts.clone()
    }

    /// Questions and streams of events that are being answered.
    #[must_use]
    pub fn in_use(&self) -> (usize, usize) {
        (
            self.limits.queries - self.queries.available_permits().min(self.limits.queries),
            self.limits.streams - self.streams.available_permits().min(self.limits.streams),
        )
    }

    /// The bounds that it was made with.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn nodes_of(&self, wanted: &Wanted) -> Option<BTreeSet<String>> {
        if wanted.namespaces.is_empty() && wanted.pods.is_empty() && wanted.workloads.is_empty() {
            return None;
        }
        self.pods.as_ref()?.nodes_of(wanted)
    }

    pub(crate) fn query_permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.queries.clone().try_acquire_owned().map_err(|_| {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            Status::resource_exhausted(format!(
                "{} questions are being answered already; try again",
                self.limits.queries
            ))
        })
    }

    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            Status::resource_exhausted(format!(
                "{} clients follow events already; try again later",
                self.limits.streams
            ))
        })
    }

    /// Runs `work`, which sends the messages of an answer, until it ends or the client goes.
    pub(crate) fn deliver<T, W>(
        &self,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce(Sender<T>) -> W + Send + 'static,
    ) -> Responses<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<(), Gone>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        let (closed, sender) = (
            sender.clone(),
            Sender {
                sender,
                patience: self.limits.patience,
                counts: self.counts.clone(),
            },
        );
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = closed.closed() => {}
                _ = work(sender) => {}
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }
}

/// The client is gone, or was cut off: nothing is left to do.
#[derive(Debug)]
pub(crate) struct Gone;

/// To one client.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    sender: mpsc::Sender<Result<T, Status>>,
    patience: Duration,
    counts: Arc<HubCounts>,
}

impl<T> Sender<T> {
    /// Sends one message. A client that does not take it is cut off after a while.
    pub(crate) async fn send(&self, message: T) -> Result<(), Gone> {
        use mpsc::error::SendTimeoutError;
        self.sender
            .send_timeout(Ok(message), self.patience)
            .await
            .map_err(|error| {
                if matches!(error, SendTimeoutError::Timeout(_)) {
                    self.counts.cut_off.fetch_add(1, Ordering::Relaxed);
                }
                Gone
            })
    }

    /// Ends the answer with an error.
    pub(crate) async fn fail(&self, status: Status) -> Result<(), Gone> {
        self.sender
            .send_timeout(Err(status), self.patience)
            .await
            .map_err(|_| Gone)
    }
}

impl Sender<StreamEventsResponse> {
    /// Sends events, as one message if the client takes batches.
    pub(crate) async fn send_all(
        &self,
        events: Vec<StreamEventsResponse>,
        batches: bool,
    ) -> Result<(), Gone> {
        self.counts
            .events
            .fetch_add(events.len() as u64, Ordering::Relaxed);
        if batches && events.len() > 1 {
            return self.send(batch(events)).await;
        }
        for event in events {
            self.send(event).await?;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl OrbitService for Hub {
    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryFlowsResponse>>, Status> {
        self.flows(request.into_inner()).await.map(Response::new)
    }

    async fn query_edges(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryEdgesResponse>>, Status> {
        self.edges(request.into_inner()).await.map(Response::new)
    }

    async fn query_syscalls(
        &self,
        request: Request<SyscallQuery>,
    ) -> Result<Response<Responses<QuerySyscallsResponse>>, Status> {
        self.syscalls(request.into_inner()).await.map(Response::new)
    }

    async fn query_gpus(
        &self,
        request: Request<GpuQuery>,
    ) -> Result<Response<Responses<QueryGpusResponse>>, Status> {
        self.gpus(request.into_inner()).await.map(Response::new)
    }

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Responses<StreamEventsResponse>>, Status> {
        self.events(request.into_inner()).await.map(Response::new)
    }

    async fn get_agent_status(
        &self,
        _request: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        self.own_status().await.map(Response::new)
    }

    async fn query_status(
        &self,
        request: Request<QueryStatusRequest>,
    ) -> Result<Response<Responses<NodeStatus>>, Status> {
        self.query_status(&request.into_inner().nodes).map(Response::new)
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<Responses<NodeInfo>>, Status> {
        self.nodes(&request.into_inner().nodes).map(Response::new)
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        self.list_pods_of_all(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn query_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<Responses<NodePods>>, Status> {
        self.query_pods(request.into_inner()).await.map(Response::new)
    }

    async fn set_syscall_mode(
        &self,
        request: Request<SetSyscallModeRequest>,
    ) -> Result<Response<SetSyscallModeResponse>, Status> {
        self.set_mode(request.into_inner()).await.map(Response::new)
    }
}
