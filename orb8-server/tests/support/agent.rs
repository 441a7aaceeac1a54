//! Agents that hold what a test may see and what it may not: everything of the latter has `hush` in its name.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use futures::StreamExt as _;
use orb8_proto::{
    Responses,
    v1::{
        AgentStatus, Attribution, CudaBatch, CudaCalls, Direction, Endpoint, EndpointKind, EventBatch,
        EventLoss, Flow, FlowBatch, FlowQuery, FlowReports, FlowSummary, GetAgentStatusRequest, GpuBatch,
        GpuDevice, GpuEvent, GpuHolder, GpuIdle, GpuMethod, GpuMig, GpuQuery, GpuReadings, GpuSummary,
        GpuWait, InterfaceStatus, LedgerRow, ListNodesRequest, ListPodsRequest, ListPodsResponse,
        NetworkEvent, NodeInfo, NodeState, ObservationPoint, PodStatus, QueryFlowsResponse,
        QueryGpusResponse, QuerySyscallsResponse, Reporter, Service, SetSyscallModeRequest,
        SetSyscallModeResponse, Setting, StreamEventsRequest, StreamEventsResponse, SyscallBatch,
        SyscallEvent, SyscallQuery, SyscallRow, SyscallSummary, observation_point::Point,
        orbit_service_server::OrbitService, orbit_service_server::OrbitServiceServer, query_flows_response,
        query_gpus_response, query_syscalls_response, stream_events_response::Event,
    },
};
use orb8_tls::{Acceptor, ClientCertificates, ConnectionCounts, ConnectionLimits, TlsFiles, incoming};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// An agent.
#[derive(Clone)]
pub(crate) struct FakeAgent {
    name: &'static str,
    /// It knows nothing of conditions, and tells everything.
    heedless: bool,
    /// Instead of its own flows it gives very many.
    endless: Arc<AtomicBool>,
    /// Questions for flows that reached it.
    asked: Arc<Mutex<Vec<FlowQuery>>>,
}

#[allow(dead_code, reason = "each test file uses a part")]
impl FakeAgent {
    pub(crate) fn new(name: &'static str, heedless: bool) -> Self {
        Self {
            name,
            heedless,
            endless: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// Serves on loopback, secured by `files`, until `stop`; where.
    pub(crate) async fn serve(&self, files: &TlsFiles, stop: &CancellationToken) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acceptor = Acceptor::new(files, ClientCertificates::Required).unwrap();
        let limits = ConnectionLimits::default();
        let connections = incoming(
            listener,
            Some(acceptor),
            limits,
            Arc::new(ConnectionCounts::default()),
            stop.clone(),
        );
        let served = tonic::transport::Server::builder()
            .add_service(OrbitServiceServer::new(self.clone()))
            .serve_with_incoming_shutdown(connections.boxed(), stop.clone().cancelled_owned());
        tokio::spawn(served);
        address
    }

    pub(crate) fn set_endless(&self, endless: bool) {
        self.endless.store(endless, Ordering::SeqCst);
    }

    /// The last question for flows.
    pub(crate) fn last_asked(&self) -> FlowQuery {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }

    fn flows(&self, query: &FlowQuery) -> Vec<Flow> {
        let namespaces = query
            .filter
            .as_ref()
            .map(|filter| filter.namespaces.clone())
            .unwrap_or_default();
        let own = query.reports() == FlowReports::Own;
        let mut flows: Vec<Flow> = all_flows(self.name)
            .into_iter()
            .filter(|flow| {
                let within = |end: &Option<Endpoint>| namespaces.contains(&end.as_ref().unwrap().namespace);
                let source = flow.reporter() == Reporter::Source;
                self.heedless
                    || namespaces.is_empty()
                    || if own {
                        within(if source { &flow.src } else { &flow.dst })
                    } else {
                        within(&flow.src) || within(&flow.dst)
                    }
            })
            .collect();
        flows.sort_by_key(|flow| std::cmp::Reverse(flow.bytes));
        flows
    }
}

/// In a pod.
pub(crate) fn pod(ip: &str, namespace: &str, name: &str) -> Endpoint {
    Endpoint {
        ip: ip.into(),
        port: 4000,
        kind: EndpointKind::Pod.into(),
        namespace: namespace.into(),
        pod: name.into(),
        container: format!("{name}-c"),
        workload: format!("Deployment/{name}"),
        pod_uid: format!("{name}-uid"),
        node: format!("{name}-node"),
        cgroup: format!("/kubepods/{name}"),
        attribution: Attribution::PodIp.into(),
        ..Endpoint::default()
    }
}

/// Of one agent: two that may be seen of a hidden peer, one of a hidden process, one to the outside, two that are hidden.
fn all_flows(node: &str) -> Vec<Flow> {
    let cart = pod("10.0.0.1", "shop", "cart");
    let hidden = pod("10.0.0.9", "hush-ns", "hush-db");
    let process = Endpoint {
        ip: "192.168.0.1".into(),
        port: 22,
        kind: EndpointKind::Process.into(),
        unit: "hush.service".into(),
        process: "hushd".into(),
        pid: 77,
        netns: "hush-netns".into(),
        cgroup: "/system.slice/hush.service".into(),
        ..Endpoint::default()
    };
    let outside = Endpoint {
        ip: "1.1.1.1".into(),
        port: 443,
        kind: EndpointKind::External.into(),
        dns_name: "api.example.com".into(),
        attribution: Attribution::Dns.into(),
        ..Endpoint::default()
    };
    let flow = |src: &Endpoint, dst: &Endpoint, source: bool, bytes: u64| Flow {
        node: node.into(),
        reporter: if source {
            Reporter::Source
        } else {
            Reporter::Destination
        }
        .into(),
        direction: if source {
            Direction::Egress
        } else {
            Direction::Ingress
        }
        .into(),
        ip_version: 4,
        protocol: 6,
        src: Some(src.clone()),
        dst: Some(dst.clone()),
        packets: 10,
        bytes,
        retransmits: Some(3),
        point: Some(ObservationPoint {
            point: Some(Point::Interface(
                if source && src == &cart || !source && dst == &cart {
                    "veth-cart"
                } else {
                    "veth-hush"
                }
                .into(),
            )),
            ifindex: 7,
        }),
        ..Flow::default()
    };
    let service = Service {
        namespace: "hush-ns".into(),
        name: "hush-svc".into(),
        ip: "10.96.0.9".into(),
        port: 5432,
        ..Service::default()
    };
    vec![
        Flow {
            service: Some(service),
            ..flow(&cart, &hidden, true, 900)
        },
        flow(&cart, &hidden, false, 800),
        flow(&hidden, &hidden, true, 700),
        flow(&process, &cart, false, 600),
        flow(&cart, &outside, true, 500),
        flow(&process, &hidden, true, 400),
    ]
}

/// How many of one agent's flows somebody sees who sees `shop`.
pub(crate) const SEEN: usize = 3;
/// All of them.
pub(crate) const ALL: usize = 6;

fn ledger() -> Vec<LedgerRow> {
    vec![LedgerRow {
        family: "network".into(),
        stage: "flow_map".into(),
        seen: 918_273,
        counted: 918_270,
        lost: 3,
        ..LedgerRow::default()
    }]
}

fn stream<T: Send + 'static>(messages: Vec<T>) -> Result<Response<Responses<T>>, Status> {
    Ok(Response::new(Box::pin(futures::stream::iter(
        messages.into_iter().map(Ok),
    ))))
}

fn call(namespace: &str, pod: &str) -> SyscallRow {
    SyscallRow {
        owner: Some(Endpoint {
            namespace: namespace.into(),
            pod: pod.into(),
            ..Endpoint::default()
        }),
        syscall: "openat".into(),
        count: 5,
        ..SyscallRow::default()
    }
}

#[tonic::async_trait]
impl OrbitService for FakeAgent {
    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryFlowsResponse>>, Status> {
        use query_flows_response::Part;
        assert!(
            request.metadata().get("authorization").is_none(),
            "tokens go nowhere else"
        );
        let query = request.into_inner();
        let flows = self.flows(&query);
        let limit = if query.limit == 0 {
            usize::MAX
        } else {
            query.limit as usize
        };
        self.asked.lock().unwrap().push(query);
        let summary = FlowSummary {
            node: self.name.into(),
            matched_flows: flows.len() as u64,
            matched_packets: flows.iter().map(|flow| flow.packets).sum(),
            matched_bytes: flows.iter().map(|flow| flow.bytes).sum(),
            ledger: ledger(),
            notes: vec![
                "The answer starts 1.000 s after the time asked for, where the history begins.".into(),
                "918273 packets of hush-db left the history.".into(),
            ],
            ..FlowSummary::default()
        };
        let part = |part| QueryFlowsResponse { part: Some(part) };
        let end = part(Part::Summary(summary));
        if self.endless.load(Ordering::SeqCst) {
            let batch = FlowBatch {
                flows: std::iter::repeat_n(flows[0].clone(), 500).collect(),
            };
            let many = futures::stream::repeat(part(Part::Batch(batch))).take(400);
            return Ok(Response::new(Box::pin(
                many.chain(futures::stream::iter([end])).map(Ok),
            )));
        }
        let flows = flows.into_iter().take(limit).collect();
        stream(vec![part(Part::Batch(FlowBatch { flows })), end])
    }

    async fn query_syscalls(
        &self,
        request: Request<SyscallQuery>,
    ) -> Result<Response<Responses<QuerySyscallsResponse>>, Status> {
        use query_syscalls_response::Part;
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut rows = vec![call("shop", "cart"), call("hush-ns", "hush-db"), call("", "")];
        if !self.heedless && !filter.namespaces.is_empty() {
            rows.retain(|row| filter.namespaces.contains(&row.owner.as_ref().unwrap().namespace));
        }
        let summary = SyscallSummary {
            node: self.name.into(),
            matched_rows: rows.len() as u64,
            matched_calls: rows.iter().map(|row| row.count).sum(),
            ledger: ledger(),
            ..SyscallSummary::default()
        };
        let part = |part| QuerySyscallsResponse { part: Some(part) };
        stream(vec![
            part(Part::Batch(SyscallBatch { rows })),
            part(Part::Summary(summary)),
        ])
    }

    async fn query_gpus(
        &self,
        request: Request<GpuQuery>,
    ) -> Result<Response<Responses<QueryGpusResponse>>, Status> {
        use query_gpus_response::Part;
        let filter = request.into_inner().filter.unwrap_or_default();
        let cart = || waiting(holder("shop", "cart"));
        let hush = || holder("hush-ns", "hush-db");
        let hush_before = || GpuHolder {
            since: at(10),
            until: at(90),
            ..hush()
        };
        let mut devices = vec![
            gpu("GPU-own", vec![cart()]),
            gpu("GPU-both", vec![cart(), hush()]),
            gpu("GPU-after", vec![hush_before(), cart()]),
            GpuDevice {
                mig: Some(GpuMig::default()),
                ..gpu("GPU-part", vec![cart()])
            },
            gpu("GPU-hush", vec![hush()]),
            gpu("GPU-hush-free", vec![]),
        ];
        if !self.heedless && !filter.namespaces.is_empty() {
            devices.retain(|device| {
                let held = |holder: &GpuHolder| {
                    filter
                        .namespaces
                        .contains(&holder.owner.as_ref().unwrap().namespace)
                };
                device.holders.iter().any(held)
            });
        }
        let part = |part| QueryGpusResponse { part: Some(part) };
        let calls = [("shop", "cart"), ("hush-ns", "hush-db")].map(|(namespace, pod)| CudaCalls {
            owner: call(namespace, pod).owner,
            function: format!("{pod}-function"),
            ..CudaCalls::default()
        });
        stream(vec![
            part(Part::Batch(GpuBatch { devices })),
            part(Part::Cuda(CudaBatch {
                calls: calls.to_vec(),
            })),
            part(Part::Summary(GpuSummary {
                node: self.name.into(),
                ledger: ledger(),
                notes: vec![
                    "hush-db holds the most".to_owned(),
                    "The kubelet does not answer: holders are those of 9 s before the end.".to_owned(),
                ],
                ..GpuSummary::default()
            })),
        ])
    }

    async fn stream_events(
        &self,
        _: Request<StreamEventsRequest>,
    ) -> Result<Response<Responses<StreamEventsResponse>>, Status> {
        let flows = all_flows(self.name).into_iter().map(|flow| {
            Event::Network(NetworkEvent {
                flow: Some(flow),
                ..NetworkEvent::default()
            })
        });
        let calls = [("shop", "cart"), ("hush-ns", "hush-db")].map(|(namespace, pod)| {
            Event::Syscall(SyscallEvent {
                owner: call(namespace, pod).owner,
                comm: format!("{pod}-comm"),
                ..SyscallEvent::default()
            })
        });
        let gpus = [("shop", "cart"), ("hush-ns", "hush-db")].map(|(namespace, pod)| {
            Event::Gpu(GpuEvent {
                uuid: format!("GPU-{pod}"),
                xid: 13,
                holders: vec![holder(namespace, pod), holder("hush-ns", "hush-db")],
                ..GpuEvent::default()
            })
        });
        let loss = Event::Loss(EventLoss {
            ring: 918_273,
            ..EventLoss::default()
        });
        let event = |event| StreamEventsResponse { event: Some(event) };
        let events = flows.chain(calls).chain(gpus).chain([loss]).map(event).collect();
        let batch = event(Event::Batch(EventBatch { events }));
        let first = futures::stream::iter([Ok(batch)]);
        Ok(Response::new(Box::pin(first.chain(futures::stream::pending()))))
    }

    async fn get_agent_status(
        &self,
        _: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        Ok(Response::new(AgentStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.name.into(),
            interfaces: vec![InterfaceStatus {
                owner: "hush-ns/hush-db".into(),
                ..InterfaceStatus::default()
            }],
            settings: vec![Setting {
                name: "interface".into(),
                value: "hush0".into(),
                ..Setting::default()
            }],
            ledger: ledger(),
            ..AgentStatus::default()
        }))
    }

    async fn list_nodes(
        &self,
        _: Request<ListNodesRequest>,
    ) -> Result<Response<Responses<NodeInfo>>, Status> {
        stream(vec![NodeInfo {
            name: self.name.into(),
            state: NodeState::Answered.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..NodeInfo::default()
        }])
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        let namespaces = request.into_inner().namespaces;
        let mut pods: Vec<PodStatus> = [("shop", "cart"), ("hush-ns", "hush-db")]
            .map(|(namespace, name)| PodStatus {
                namespace: namespace.into(),
                name: name.into(),
                uid: format!("{name}-{}", self.name),
                ..PodStatus::default()
            })
            .into();
        pods.retain(|pod| self.heedless || namespaces.is_empty() || namespaces.contains(&pod.namespace));
        Ok(Response::new(ListPodsResponse {
            node: self.name.into(),
            pods,
            notes: vec!["Kubernetes: hush-ns is being watched".into()],
        }))
    }

    async fn set_syscall_mode(
        &self,
        _: Request<SetSyscallModeRequest>,
    ) -> Result<Response<SetSyscallModeResponse>, Status> {
        Ok(Response::new(SetSyscallModeResponse::default()))
    }
}

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

/// It has held its device since second 100, which did nothing.
fn holder(namespace: &str, pod: &str) -> GpuHolder {
    GpuHolder {
        owner: call(namespace, pod).owner,
        method: GpuMethod::AllocatedIdle.into(),
        utilization: Some(0.0),
        since: at(100),
        ..GpuHolder::default()
    }
}

/// A holder that waited for what may not be seen.
fn waiting(holder: GpuHolder) -> GpuHolder {
    let lasting = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    GpuHolder {
        idle: Some(GpuIdle {
            held: lasting(60),
            idle: lasting(50),
            unknown: lasting(0),
            cause: "network".to_owned(),
            evidence: "62 % of idle time in recv from 10.0.0.9:4000 hush-ns/hush-db".to_owned(),
            waits: vec![GpuWait {
                class: "network".to_owned(),
                time: lasting(31),
                share: 0.62,
                peer: Some(pod("10.0.0.9", "hush-ns", "hush-db")),
            }],
        }),
        ..holder
    }
}

/// A device that draws as much power as nothing else is.
fn gpu(uuid: &str, holders: Vec<GpuHolder>) -> GpuDevice {
    GpuDevice {
        uuid: uuid.to_owned(),
        holders,
        readings: Some(GpuReadings {
            power_watts: Some(123.0),
            other: [("DCGM_FI_DEV_POWER_VIOLATION".to_owned(), 5.0)].into(),
            ..GpuReadings::default()
        }),
        ..GpuDevice::default()
    }
}
