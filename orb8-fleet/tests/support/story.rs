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
        AgentStatus, Flow, FlowBatch, FlowQuery, FlowSort, FlowSummary, GetAgentStatusRequest, LedgerRow,
        ListNodesRequest, ListPodsRequest, ListPodsResponse, NetworkEvent, NodeInfo, NodeState,
        QueryFlowsResponse, QuerySyscallsResponse, SetSyscallModeRequest, SetSyscallModeResponse,
        StreamEventsRequest, StreamEventsResponse, SyscallBatch, SyscallQuery, SyscallRow, SyscallSummary,
        orbit_service_server::{OrbitService, OrbitServiceServer},
        query_flows_response::Part,
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
pub(crate) enum Behaviour {
    Good,
    /// It takes questions, and says nothing.
    Silent,
    Refuse,
    Invalid,
    /// The answer ends with an error after the first batch.
    BreakAfterFirst,
}

/// One agent.
#[derive(Debug)]
pub(crate) struct Story {
    name: String,
    behaviour: Behaviour,
    pub(crate) flows: Mutex<Vec<Flow>>,
    pub(crate) rows: Mutex<Vec<SyscallRow>>,
    pub(crate) to: Mutex<Option<Timestamp>>,
    pub(crate) asked: Mutex<Vec<FlowQuery>>,
    pub(crate) streams: AtomicUsize,
    pub(crate) mode: AtomicI32,
}

/// So many seconds after 1970.
pub(crate) const fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

/// Somebody whom nobody reaches.
pub(crate) fn unreachable(name: &str) -> Member {
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    member(name, address)
}

fn member(name: &str, address: std::net::SocketAddr) -> Member {
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
            streams: AtomicUsize::default(),
            mode: AtomicI32::new(2),
        })
    }

    /// Serves it on loopback, until the runtime ends.
    pub(crate) async fn member(self: &Arc<Self>) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = OrbitServiceServer::from_arc(Arc::new(Told(self.clone())));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        member(&self.name, address)
    }

    async fn behave(&self) -> Result<(), Status> {
        match self.behaviour {
            Behaviour::Good | Behaviour::BreakAfterFirst => Ok(()),
            Behaviour::Silent => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                Ok(())
            }
            Behaviour::Refuse => Err(Status::resource_exhausted("too busy")),
            Behaviour::Invalid => Err(Status::invalid_argument("not to my liking")),
        }
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

    async fn stream_events(
        &self,
        _request: Request<StreamEventsRequest>,
    ) -> Result<Response<Responses<StreamEventsResponse>>, Status> {
        self.0.behave().await?;
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        let streaming = Streaming(self.0.clone());
        let events = stream::unfold(streaming, |streaming| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let flow = Flow {
                node: streaming.0.name.clone(),
                ..Flow::default()
            };
            let event = Event::Network(NetworkEvent {
                flow: Some(flow),
                ..NetworkEvent::default()
            });
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
