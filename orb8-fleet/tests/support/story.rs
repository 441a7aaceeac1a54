//! An agent that tells a story, and may behave badly.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use orb8_fleet::{Clock, Member, Reach, Trouble};
use orb8_proto::{
    Responses,
    v1::{
        AgentStatus, CudaBatch, CudaCalls, Flow, FlowBatch, FlowQuery, FlowSort, FlowSummary,
        GetAgentStatusRequest, GpuBatch, GpuDevice, GpuEvent, GpuQuery, GpuSource, GpuSummary, LedgerRow,
        ListNodesRequest, ListPodsRequest, ListPodsResponse, NetworkEvent, NodeInfo, NodeState,
        QueryFlowsResponse, QueryGpusResponse, QuerySyscallsResponse, SetSyscallModeRequest,
        SetSyscallModeResponse, StreamEventsRequest, StreamEventsResponse, SyscallBatch, SyscallQuery,
        SyscallRow, SyscallSummary,
        orbit_service_server::{OrbitService, OrbitServiceServer},
        query_flows_response::Part,
        query_gpus_response::Part as GpusPart,
        query_syscalls_response::Part as CallsPart,
        stream_events_response::Event,
    },
};
use prost_types::Timestamp;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Endpoint};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each test file uses a part")]
pub(crate) enum Behaviour {
    Good,
    /// It takes questions, and says nothing.
    Silent,
    Refuse,
    Invalid,
    /// The answer ends with an error after the first batch.
    BreakAfterFirst,
    /// Of GPUs: it is of a version that does not know the request.
    Old,
    /// Of GPUs: after the first batch it says nothing more.
    PauseAfterFirst,
    /// Of GPUs: batches without anything in them, and no end.
    Drip,
    /// Of GPUs: its first device again and again under other names, and no end.
    Flood,
}

/// One agent.
#[derive(Debug)]
#[allow(dead_code, reason = "each test file uses a part")]
pub(crate) struct Story {
    name: String,
    behaviour: Behaviour,
    pub(crate) flows: Mutex<Vec<Flow>>,
    pub(crate) rows: Mutex<Vec<SyscallRow>>,
    pub(crate) to: Mutex<Option<Timestamp>>,
    pub(crate) asked: Mutex<Vec<FlowQuery>>,
    pub(crate) devices: Mutex<Vec<GpuDevice>>,
    pub(crate) cuda: Mutex<Vec<CudaCalls>>,
    pub(crate) sources: Mutex<Vec<GpuSource>>,
    pub(crate) gpu_notes: Mutex<Vec<String>>,
    pub(crate) gpu_asked: Mutex<Vec<GpuQuery>>,
    /// Told again and again to who asks for events of GPUs.
    pub(crate) gpu_event: Mutex<Option<GpuEvent>>,
    pub(crate) streams: AtomicUsize,
    pub(crate) mode: AtomicI32,
}

/// So many seconds after 1970.
pub(crate) const fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

/// Somebody whom nobody reaches.
#[allow(dead_code, reason = "each test file uses a part")]
pub(crate) fn unreachable(name: &str) -> Member {
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    member(name, address)
}

/// Somebody who is to be asked there.
pub(crate) fn member(name: &str, address: std::net::SocketAddr) -> Member {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    Member {
        name: name.to_owned(),
        reach: Reach::Channel(channel),
        clock: Clock::default(),
        info: NodeInfo::default(),
        trouble: Trouble::default(),
    }
}

#[allow(dead_code, reason = "each test file uses a part")]
impl Story {
    pub(crate) fn new(name: &str, flows: Vec<Flow>) -> Arc<Self> {
        let story = Self::behaving(name, Behaviour::Good);
        *story.flows.lock().unwrap() = flows;
        story
    }

    pub(crate) fn behaving(name: &str, behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            behaviour,
            flows: Mutex::default(),
            rows: Mutex::default(),
            to: Mutex::new(at(100)),
            asked: Mutex::default(),
            devices: Mutex::default(),
            cuda: Mutex::default(),
            sources: Mutex::default(),
            gpu_notes: Mutex::default(),
            gpu_asked: Mutex::default(),
            gpu_event: Mutex::default(),
            streams: AtomicUsize::default(),
            mode: AtomicI32::new(2),
        })
    }

    /// Serves it on loopback, until the runtime ends.
    pub(crate) async fn member(self: &Arc<Self>) -> Member {
        member(&self.name, self.serve().await)
    }

    /// The same; where.
    pub(crate) async fn serve(self: &Arc<Self>) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = OrbitServiceServer::from_arc(Arc::new(Told(self.clone())));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        address
    }

    async fn behave(&self) -> Result<(), Status> {
        match self.behaviour {
            Behaviour::Silent => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                Ok(())
            }
            Behaviour::Refuse => Err(Status::resource_exhausted("too busy")),
            Behaviour::Invalid => Err(Status::invalid_argument("not to my liking")),
            _ => Ok(()),
        }
    }

    fn network_event(&self) -> Event {
        let flow = Flow {
            node: self.name.clone(),
            ..Flow::default()
        };
        Event::Network(NetworkEvent {
            flow: Some(flow),
            ..NetworkEvent::default()
        })
    }

    fn ledger(&self) -> Vec<LedgerRow> {
        vec![LedgerRow::default()]
    }
}

/// Its service.
struct Told(Arc<Story>);

/// Counts a stream for as long as it is there.
struct Streaming(Arc<Story>);

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl OrbitService for Told {
    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryFlowsResponse>>, Status> {
        let query = request.into_inner();
        self.0.asked.lock().unwrap().push(FlowQuery {
            since: query.cursors.first().map_or(query.since, |cursor| cursor.time),
            ..query.clone()
        });
        self.0.behave().await?;
        let mut flows = self.0.flows.lock().unwrap().clone();
        let matched = flows.len() as u64;
        let (packets, bytes) = flows
            .iter()
            .fold((0, 0), |sum, flow| (sum.0 + flow.packets, sum.1 + flow.bytes));
        match query.sort() {
            FlowSort::Last => flows.sort_by_key(|flow| std::cmp::Reverse(flow.last.map(|time| time.seconds))),
            _ => flows.sort_by_key(|flow| std::cmp::Reverse(flow.bytes)),
        }
        if query.limit > 0 {
            flows.truncate(query.limit as usize);
        }
        let batch = (query.batch as usize).clamp(1, 7);
        let mut parts: Vec<Result<QueryFlowsResponse, Status>> = flows
            .chunks(batch)
            .map(|flows| {
                let part = Part::Batch(FlowBatch {
                    flows: flows.to_vec(),
                });
                Ok(QueryFlowsResponse { part: Some(part) })
            })
            .collect();
        if self.0.behaviour == Behaviour::BreakAfterFirst {
            parts.truncate(1);
            parts.push(Err(Status::unavailable("shutting down")));
        } else {
            let summary = FlowSummary {
                node: self.0.name.clone(),
                from: at(1),
                to: *self.0.to.lock().unwrap(),
                matched_flows: matched,
                matched_packets: packets,
                matched_bytes: bytes,
                ledger: self.0.ledger(),
                ..FlowSummary::default()
            };
            parts.push(Ok(QueryFlowsResponse {
                part: Some(Part::Summary(summary)),
            }));
        }
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn query_syscalls(
        &self,
        _request: Request<SyscallQuery>,
    ) -> Result<Response<Responses<QuerySyscallsResponse>>, Status> {
        self.0.behave().await?;
        let rows = self.0.rows.lock().unwrap().clone();
        let summary = SyscallSummary {
            node: self.0.name.clone(),
            matched_rows: rows.len() as u64,
            ledger: self.0.ledger(),
            ..SyscallSummary::default()
        };
        let parts = [
            CallsPart::Batch(SyscallBatch { rows }),
            CallsPart::Summary(summary),
        ];
        let parts = parts.map(|part| Ok(QuerySyscallsResponse { part: Some(part) }));
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn query_gpus(
        &self,
        request: Request<GpuQuery>,
    ) -> Result<Response<Responses<QueryGpusResponse>>, Status> {
        self.0.gpu_asked.lock().unwrap().push(request.into_inner());
        self.0.behave().await?;
        let message = |part| Ok(QueryGpusResponse { part: Some(part) });
        let mut devices = self.0.devices.lock().unwrap().clone();
        let mut parts: Vec<Result<QueryGpusResponse, Status>> = devices
            .chunks(3)
            .map(|devices| {
                message(GpusPart::Batch(GpuBatch {
                    devices: devices.to_vec(),
                }))
            })
            .collect();
        match self.0.behaviour {
            Behaviour::Old => return Err(Status::unimplemented("")),
            Behaviour::BreakAfterFirst => {
                parts.truncate(1);
                parts.push(Err(Status::unavailable("shutting down")));
            }
            Behaviour::PauseAfterFirst => {
                parts.truncate(1);
                return Ok(Response::new(
                    stream::iter(parts).chain(stream::pending()).boxed(),
                ));
            }
            Behaviour::Drip => {
                let drops = stream::unfold((), move |()| async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Some((message(GpusPart::Batch(GpuBatch::default())), ()))
                });
                return Ok(Response::new(drops.boxed()));
            }
            Behaviour::Flood => {
                let first = devices.swap_remove(0);
                let flood = stream::iter(0_u64..).map(move |number| {
                    let devices = (0..100)
                        .map(|of| GpuDevice {
                            uuid: format!("GPU-{number}-{of}"),
                            ..first.clone()
                        })
                        .collect();
                    message(GpusPart::Batch(GpuBatch { devices }))
                });
                return Ok(Response::new(flood.boxed()));
            }
            _ => {
                let calls = self.0.cuda.lock().unwrap().clone();
                if !calls.is_empty() {
                    parts.push(message(GpusPart::Cuda(CudaBatch { calls })));
                }
                parts.push(message(GpusPart::Summary(GpuSummary {
                    node: self.0.name.clone(),
                    from: at(1),
                    to: *self.0.to.lock().unwrap(),
                    sources: self.0.sources.lock().unwrap().clone(),
                    notes: self.0.gpu_notes.lock().unwrap().clone(),
                    ledger: self.0.ledger(),
                    ..GpuSummary::default()
                })));
            }
        }
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn stream_events(
        &self,
        _request: Request<StreamEventsRequest>,
    ) -> Result<Response<Responses<StreamEventsResponse>>, Status> {
        self.0.behave().await?;
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        let streaming = Streaming(self.0.clone());
        let events = stream::unfold(streaming, |streaming| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let gpu = streaming.0.gpu_event.lock().unwrap().clone();
            let event = gpu.map_or_else(|| streaming.0.network_event(), Event::Gpu);
            Some((Ok(StreamEventsResponse { event: Some(event) }), streaming))
        });
        Ok(Response::new(events.boxed()))
    }

    async fn get_agent_status(
        &self,
        _request: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        self.0.behave().await?;
        Ok(Response::new(AgentStatus {
            node: self.0.name.clone(),
            ..AgentStatus::default()
        }))
    }

    async fn list_pods(
        &self,
        _request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        self.0.behave().await?;
        Ok(Response::new(ListPodsResponse {
            node: self.0.name.clone(),
            ..ListPodsResponse::default()
        }))
    }

    async fn set_syscall_mode(
        &self,
        request: Request<SetSyscallModeRequest>,
    ) -> Result<Response<SetSyscallModeResponse>, Status> {
        let mode = request.into_inner().mode;
        let before = self.0.mode.swap(mode, Ordering::Relaxed);
        Ok(Response::new(SetSyscallModeResponse {
            node: self.0.name.clone(),
            before,
            mode,
            ..SetSyscallModeResponse::default()
        }))
    }

    async fn list_nodes(
        &self,
        _request: Request<ListNodesRequest>,
    ) -> Result<Response<Responses<NodeInfo>>, Status> {
        self.0.behave().await?;
        let info = NodeInfo {
            name: self.0.name.clone(),
            state: NodeState::Answered.into(),
            ..NodeInfo::default()
        };
        Ok(Response::new(stream::iter([Ok(info)]).boxed()))
    }
}
