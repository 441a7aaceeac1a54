//! Made-up agents that speak the real protocol.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use futures::{StreamExt as _, stream};
use orb8_proto::{
    Responses,
    v1::{
        AgentStatus, Attribution, Endpoint, EndpointKind, EventBatch, Flow, FlowBatch, FlowQuery,
        FlowReports, FlowSummary, GetAgentStatusRequest, LedgerRow, ListNodesRequest, ListPodsRequest,
        ListPodsResponse, NetworkEvent, NodeInfo, NodeState, ObservationPoint, QueryFlowsResponse,
        QuerySyscallsResponse, Reporter, StreamEventsRequest, StreamEventsResponse, SyscallBatch,
        SyscallMode, SyscallQuery, SyscallRow, SyscallSummary,
        observation_point::Point,
        orbit_service_server::{OrbitService, OrbitServiceServer},
        query_flows_response::Part,
        query_syscalls_response::Part as CallsPart,
        stream_events_response::Event,
    },
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Flows that an agent sent and that it received, each.
const FLOWS: usize = 100;
const NAMESPACES: usize = 20;
const CALLS: usize = 60;
/// Events come in small bursts.
const BURST: Duration = Duration::from_millis(50);

/// How an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Good,
    /// Each answer takes 300 ms.
    Slow,
    /// It takes connections, and says nothing.
    Dead,
    /// Nobody listens.
    Closed,
    /// Of another version than it should be.
    Lying,
}

impl Manner {
    const fn of(index: usize) -> Self {
        match index % 100 {
            10 | 60 => Self::Slow,
            20 => Self::Dead,
            30 => Self::Closed,
            40 => Self::Lying,
            _ => Self::Good,
        }
    }
}

/// All of them.
pub(super) struct Fleet {
    agents: Vec<(SocketAddr, Manner)>,
    /// A new value has those agents break their connections whose index is less.
    breaks: watch::Sender<usize>,
    _tasks: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Starts so many, each of which makes so many events a second for whoever follows.
    pub(super) async fn start(count: usize, events: usize) -> Result<Self> {
        let (breaks, breaking) = watch::channel(0);
        let mut agents = Vec::new();
        let mut tasks = Vec::new();
        let mut listeners = Vec::new();
        for index in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            agents.push((listener.local_addr()?, Manner::of(index)));
            listeners.push(listener);
        }
        for (index, listener) in listeners.into_iter().enumerate() {
            let (address, manner) = agents[index];
            match manner {
                Manner::Closed => drop(listener),
                Manner::Dead => tasks.push(tokio::spawn(async move {
                    let mut held = Vec::new();
                    while let Ok((stream, _)) = listener.accept().await {
                        // Bounded: the server closes what does not answer.
                        held.truncate(15);
                        held.insert(0, stream);
                    }
                })),
                _ => {
                    let agent = Arc::new(Agent::new(index, count, address.to_string(), manner, events));
                    tasks.push(tokio::spawn(serve(agent, listener, index, breaking.clone())));
                }
            }
        }
        Ok(Self {
            agents,
            breaks,
            _tasks: tasks,
        })
    }

    /// As the server's setting has them.
    pub(super) fn addresses(&self) -> String {
        let addresses: Vec<String> = self
            .agents
            .iter()
            .map(|(address, _)| address.to_string())
            .collect();
        addresses.join(",")
    }

    /// What the server calls one.
    pub(super) fn name(&self, index: usize) -> String {
        self.agents[index].0.to_string()
    }

    /// How many answer at all.
    pub(super) fn answering(&self) -> usize {
        self.count(|manner| !matches!(manner, Manner::Dead | Manner::Closed))
    }

    fn count(&self, is: impl Fn(Manner) -> bool) -> usize {
        self.agents.iter().filter(|(_, manner)| is(*manner)).count()
    }

    pub(super) fn describe(&self) -> String {
        let of = |manner| self.count(|other| other == manner);
        format!(
            "{} take 300 ms for each answer, {} take connections and say nothing, {} do not listen, {} say that they are of another \
             version",
            of(Manner::Slow),
            of(Manner::Dead),
            of(Manner::Closed),
            of(Manner::Lying)
        )
    }

    /// Has the first ones break all their connections; they take new ones at once.
    pub(super) fn leave_and_join(&self, count: usize) {
        self.breaks.send_replace(count);
    }
}

async fn serve(agent: Arc<Agent>, listener: TcpListener, index: usize, mut breaking: watch::Receiver<usize>) {
    let Ok(listener) = listener.into_std() else { return };
    loop {
        let Ok(copy) = listener.try_clone().and_then(TcpListener::from_std) else {
            return;
        };
        let served = tonic::transport::Server::builder()
            .add_service(OrbitServiceServer::from_arc(agent.clone()))
            // As agents do: an answer's last packet is not to wait for the acknowledgement of the one before.
            .serve_with_incoming(TcpListenerStream::new(copy).inspect(|stream| {
                if let Ok(stream) = stream {
                    let _ = stream.set_nodelay(true);
                }
            }));
        tokio::select! {
            _ = served => return,
            changed = async {
                loop {
                    if breaking.changed().await.is_err() {
                        return std::future::pending().await;
                    }
                    if *breaking.borrow_and_update() > index {
                        return;
                    }
                }
            } => changed,
        }
    }
}

/// One agent.
struct Agent {
    address: String,
    node: String,
    manner: Manner,
    events: usize,
    /// By bytes, descending.
    flows: Vec<Flow>,
    rows: Vec<SyscallRow>,
}

fn pod(node: usize, index: usize, port: u32, attribution: Attribution) -> Endpoint {
    Endpoint {
        ip: format!("10.{}.{}.{}", node / 250, node % 250, index + 1),
        port,
        kind: EndpointKind::Pod.into(),
        namespace: format!("ns-{}", (node + index) % NAMESPACES),
        pod: format!("pod-{node}-{index}"),
        pod_uid: format!("uid-{node}-{index}"),
        workload: format!("Deployment/app-{}", index % 7),
        container: "app".to_owned(),
        attribution: attribution.into(),
        node: format!("node-{node}"),
        ..Endpoint::default()
    }
}

impl Agent {
    fn new(index: usize, count: usize, address: String, manner: Manner, events: usize) -> Self {
        let now = SystemTime::now();
        let node = format!("node-{index}");
        // The k-th flow of a node goes to one of the next five; both ends know the same of it.
        let flow = |from: usize, k: usize, reporter: Reporter| {
            let to = (from + 1 + k % 5) % count;
            let own = reporter == Reporter::Source;
            let (at_source, at_destination) = match own {
                true => (Attribution::Veth, Attribution::PodIp),
                false => (Attribution::PodIp, Attribution::Veth),
            };
            let bytes = ((from * 7919 + k * 104_729) % 1_000_003) as u64 + 100;
            Flow {
                node: if own { from } else { to }.to_string(),
                reporter: reporter.into(),
                direction: if own { 2 } else { 1 },
                ip_version: 4,
                protocol: 6,
                src: Some(pod(from, k % 10, 30_000 + k as u32, at_source)),
                dst: Some(pod(to, k % 10, 8080, at_destination)),
                packets: bytes / 100,
                bytes,
                wire_bytes: bytes + 14,
                frames: bytes / 100,
                frame_bytes: bytes + 14,
                tcp_flags: 0x12,
                rtt_us: Some(200),
                first: Some((now - Duration::from_secs(60)).into()),
                last: Some(now.into()),
                point: Some(ObservationPoint {
                    point: Some(Point::Interface(format!("veth{k}"))),
                    ifindex: k as u32,
                }),
                ..Flow::default()
            }
        };
        let sent = (0..FLOWS).map(|k| flow(index, k, Reporter::Source));
        let received =
            (0..FLOWS).map(|k| flow((index + count - 1 - k % 5) % count, k, Reporter::Destination));
        let mut flows: Vec<Flow> = sent.chain(received).collect();
        flows.sort_by_key(|flow| std::cmp::Reverse(flow.bytes));
        let rows = (0..CALLS)
            .zip(0_i64..)
            .map(|(call, number)| SyscallRow {
                syscall: format!("call-{call}"),
                number,
                abi: 1,
                category: "file".to_owned(),
                count: (index * 31 + call * 17) as u64 % 10_000 + 1,
                first: Some(now.into()),
                last: Some(now.into()),
                ..SyscallRow::default()
            })
            .collect();
        Self {
            address,
            node,
            manner,
            events,
            flows,
            rows,
        }
    }

    async fn take_time(&self) {
        if self.manner == Manner::Slow {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    fn ledger() -> Vec<LedgerRow> {
        (0..12)
            .map(|stage| LedgerRow {
                family: "network".to_owned(),
                stage: format!("stage-{stage}"),
                unit: "packets".to_owned(),
                seen: 1_000_000,
                counted: 1_000_000,
                ..LedgerRow::default()
            })
            .collect()
    }
}

#[tonic::async_trait]
impl OrbitService for Agent {
    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryFlowsResponse>>, Status> {
        self.take_time().await;
        let query = request.into_inner();
        let filter = query.filter.clone().unwrap_or_default();
        let own = query.reports() == FlowReports::Own;
        let meets = |end: Option<&Endpoint>| {
            end.is_some_and(|end| {
                (filter.namespaces.is_empty() || filter.namespaces.contains(&end.namespace))
                    && (filter.pods.is_empty()
                        || filter.pods.iter().any(|pod| end.pod.starts_with(pod.as_str())))
            })
        };
        let matching: Vec<&Flow> = self
            .flows
            .iter()
            .filter(|flow| {
                let source = flow.reporter() == Reporter::Source;
                let (here, there) = match source {
                    true => (flow.src.as_ref(), flow.dst.as_ref()),
                    false => (flow.dst.as_ref(), flow.src.as_ref()),
                };
                meets(here) || !own && meets(there)
            })
            .collect();
        let shown = match query.limit as usize {
            0 => matching.len(),
            limit => matching.len().min(limit),
        };
        let batch = (query.batch as usize).clamp(1, 512);
        let now = SystemTime::now();
        let summary = FlowSummary {
            node: self.node.clone(),
            from: Some((now - Duration::from_secs(300)).into()),
            to: Some(now.into()),
            matched_flows: matching.len() as u64,
            matched_packets: matching.iter().map(|flow| flow.packets).sum(),
            matched_bytes: matching.iter().map(|flow| flow.bytes).sum(),
            ledger: Self::ledger(),
            ..FlowSummary::default()
        };
        let mut parts: Vec<Result<QueryFlowsResponse, Status>> = matching[..shown]
            .chunks(batch)
            .map(|flows| {
                let flows = flows.iter().map(|flow| (*flow).clone()).collect();
                Ok(QueryFlowsResponse {
                    part: Some(Part::Batch(FlowBatch { flows })),
                })
            })
            .collect();
        parts.push(Ok(QueryFlowsResponse {
            part: Some(Part::Summary(summary)),
        }));
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn query_syscalls(
        &self,
        _request: Request<SyscallQuery>,
    ) -> Result<Response<Responses<QuerySyscallsResponse>>, Status> {
        self.take_time().await;
        let summary = SyscallSummary {
            node: self.node.clone(),
            mode: SyscallMode::Counts.into(),
            matched_rows: self.rows.len() as u64,
            ledger: Self::ledger(),
            ..SyscallSummary::default()
        };
        let rows = self.rows.clone();
        let parts = [
            CallsPart::Batch(SyscallBatch { rows }),
            CallsPart::Summary(summary),
        ];
        Ok(Response::new(
            stream::iter(parts.map(|part| Ok(QuerySyscallsResponse { part: Some(part) }))).boxed(),
        ))
    }

    async fn stream_events(
        &self,
        _request: Request<StreamEventsRequest>,
    ) -> Result<Response<Responses<StreamEventsResponse>>, Status> {
        let flow = self.flows.first().cloned();
        let mut ticks = tokio::time::interval(BURST);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let burst = self.events * BURST.as_millis() as usize / 1000;
        let events = stream::unfold((ticks, flow), move |(mut ticks, flow)| async move {
            ticks.tick().await;
            let event = |_| {
                let event = Event::Network(NetworkEvent {
                    time: Some(SystemTime::now().into()),
                    flow: flow.clone(),
                    weight: 1,
                    ..NetworkEvent::default()
                });
                StreamEventsResponse { event: Some(event) }
            };
            let batch = EventBatch {
                events: (0..burst).map(event).collect(),
            };
            let response = StreamEventsResponse {
                event: Some(Event::Batch(batch)),
            };
            Some((Ok(response), (ticks, flow)))
        });
        Ok(Response::new(events.boxed()))
    }

    async fn get_agent_status(
        &self,
        _request: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        self.take_time().await;
        Ok(Response::new(AgentStatus {
            node: self.node.clone(),
            ..AgentStatus::default()
        }))
    }

    async fn list_pods(
        &self,
        _request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        Ok(Response::new(ListPodsResponse {
            node: self.node.clone(),
            ..ListPodsResponse::default()
        }))
    }

    async fn list_nodes(
        &self,
        _request: Request<ListNodesRequest>,
    ) -> Result<Response<Responses<NodeInfo>>, Status> {
        let version = match self.manner {
            Manner::Lying => "9.9.9",
            _ => env!("CARGO_PKG_VERSION"),
        };
        let info = NodeInfo {
            name: self.node.clone(),
            state: NodeState::Answered.into(),
            address: self.address.clone(),
            version: version.to_owned(),
            time: Some(SystemTime::now().into()),
            ..NodeInfo::default()
        };
        Ok(Response::new(stream::iter([Ok(info)]).boxed()))
    }
}
