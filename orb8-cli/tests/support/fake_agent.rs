//! An agent that speaks the real protocol and tells made-up flows, the same ones each time.

#[path = "fake_calls.rs"]
mod fake_calls;
#[path = "fake_gpus.rs"]
mod fake_gpus;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use orb8_proto::{
    Responses,
    v1::{
        AgentStatus, Attribution, Check, ContainerStatus, Direction, Endpoint, EndpointKind, EventLoss, Flow,
        FlowBatch, FlowQuery, FlowSort, FlowSummary, GetAgentStatusRequest, GpuQuery, InterfaceStatus,
        KubernetesStatus, LedgerRow, Limit, ListPodsRequest, ListPodsResponse, NetworkEvent,
        NetworkEventKind, ObservationPoint, PodHealth, PodInterface, PodStatus, ProgramStatus,
        QueryFlowsResponse, QueryGpusResponse, QuerySyscallsResponse, Reporter, Service,
        SetSyscallModeRequest, SetSyscallModeResponse, Setting, State, StreamEventsRequest,
        StreamEventsResponse, SyscallBatch, SyscallMode, SyscallQuery, Verdict, WatchStatus,
        observation_point::Point,
        orbit_service_server::{OrbitService, OrbitServiceServer},
        query_flows_response::Part,
        query_syscalls_response::Part as CallsPart,
        stream_events_response::Event,
    },
};
use prost_types::Timestamp;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

/// 2026-01-02T03:04:05Z
const START: i64 = 1_767_323_045;

/// What the agent tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    /// Nothing lost, time stands still.
    Clean,
    /// Some was lost.
    Lossy,
    /// Each query is a second later than the one before.
    Ticking,
    /// As the clock runs, with rates that change: for looking at `top`.
    Live,
    /// Answers break off.
    Broken,
    /// Node n1 of a cluster: see [`cluster_flows`].
    ClusterOne,
    /// Node n2 of it.
    ClusterTwo,
    /// A server of five nodes, not all of which answer: of GPUs only.
    Server,
}

/// What was asked.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub flows: Arc<Mutex<Vec<FlowQuery>>>,
    pub events: Arc<Mutex<Vec<StreamEventsRequest>>>,
    pub pods: Arc<Mutex<Vec<ListPodsRequest>>>,
    pub syscalls: Arc<Mutex<Vec<SyscallQuery>>>,
    pub modes: Arc<Mutex<Vec<SyscallMode>>>,
    pub gpus: Arc<Mutex<Vec<GpuQuery>>>,
}

#[derive(Debug)]
struct FakeAgent {
    story: Story,
    asked: Asked,
    clock: AtomicI64,
}

/// Serves on a free port of the loopback until the process ends; gives its address.
pub fn serve(story: Story) -> (SocketAddr, Asked) {
    serve_at(story, SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// The same at an address of choice.
pub fn serve_at(story: Story, address: SocketAddr) -> (SocketAddr, Asked) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let asked = Asked::default();
    let agent = FakeAgent {
        story,
        asked: asked.clone(),
        clock: AtomicI64::new(START),
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            tonic::transport::Server::builder()
                .add_service(OrbitServiceServer::new(agent))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
    });
    (receiver.recv().unwrap(), asked)
}

fn at(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

fn end(ip: &str, port: u32, kind: EndpointKind, attribution: Attribution) -> Endpoint {
    Endpoint {
        ip: ip.into(),
        port,
        kind: kind.into(),
        attribution: attribution.into(),
        ..Endpoint::default()
    }
}

/// One flow of each kind that must look right.
pub fn flows(to: i64) -> Vec<Flow> {
    use {Attribution as A, EndpointKind as K};
    let cgroup = |id| {
        Some(ObservationPoint {
            point: Some(Point::CgroupId(id)),
            ifindex: 0,
        })
    };
    let interface = |name: &str, ifindex| {
        Some(ObservationPoint {
            point: Some(Point::Interface(name.into())),
            ifindex,
        })
    };
    let nginx = Endpoint {
        unit: "nginx.service".into(),
        process: "nginx".into(),
        pid: 812,
        cgroup: "/system.slice/nginx.service".into(),
        ..end("192.0.2.10", 443, K::Process, A::Cgroup)
    };
    let client = end("198.51.100.7", 51034, K::External, A::Unknown);
    let served = Flow {
        node: "n1".into(),
        reporter: Reporter::Source.into(),
        direction: Direction::Egress.into(),
        ip_version: 4,
        protocol: 6,
        src: Some(nginx.clone()),
        dst: Some(client.clone()),
        packets: 18_250,
        bytes: 25_600_000,
        wire_bytes: 25_600_000,
        frames: 1200,
        frame_bytes: 25_100_000,
        tcp_flags: 0x1a,
        rtt_us: Some(12_400),
        retransmits: Some(7),
        first: at(to - 5, 123_456_789),
        last: at(to - 1, 1),
        point: cgroup(4711),
        ..Flow::default()
    };
    let asked = Flow {
        reporter: Reporter::Destination.into(),
        direction: Direction::Ingress.into(),
        src: Some(client),
        dst: Some(nginx),
        packets: 9100,
        bytes: 410_000,
        wire_bytes: 410_000,
        retransmits: None,
        tcp_flags: 0x1b,
        ..served.clone()
    };
    let container = Endpoint {
        container: "4f1d0c9e8b7a6f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6".into(),
        process: "app".into(),
        netns: "blue".into(),
        ..end("fd00:10::5", 40_112, K::Process, A::Veth)
    };
    let dns = Flow {
        protocol: 17,
        ip_version: 6,
        src: Some(container.clone()),
        dst: Some(end("fd00:10::1", 53, K::Host, A::HostIp)),
        packets: 2,
        bytes: 152,
        wire_bytes: 180,
        frames: 2,
        frame_bytes: 180,
        tcp_flags: 0,
        rtt_us: None,
        retransmits: None,
        point: interface("veth1a2b", 12),
        ..served.clone()
    };
    let refused = Flow {
        protocol: 6,
        dst: Some(end("fd00:20::9", 5432, K::External, A::Unknown)),
        packets: 1,
        bytes: 80,
        wire_bytes: 94,
        frames: 1,
        frame_bytes: 94,
        tcp_flags: 0x02,
        failed_connects: 1,
        connect_us: Some(180),
        ..dns.clone()
    };
    let ping = Flow {
        ip_version: 4,
        protocol: 1,
        src: Some(Endpoint {
            process: "pi\x1b[31mng\u{202e}\n".into(),
            pid: 99,
            ..end("192.0.2.10", 0, K::Process, A::Socket)
        }),
        dst: Some(end("203.0.113.1", 0, K::External, A::Unknown)),
        icmp_type: Some(8),
        icmp_code: Some(0),
        packets: 4,
        bytes: 336,
        wire_bytes: 336,
        frames: 4,
        frame_bytes: 336,
        tcp_flags: 0,
        failed_connects: 0,
        connect_us: None,
        point: cgroup(42),
        ..dns.clone()
    };
    let arp = Flow {
        node: "n1".into(),
        direction: Direction::Ingress.into(),
        ethertype: 0x806,
        packets: 3,
        frames: 3,
        wire_bytes: 126,
        frame_bytes: 126,
        first: at(to - 5, 0),
        last: at(to - 4, 0),
        point: interface("veth1a2b", 12),
        ..Flow::default()
    };
    let remainder = Flow {
        ethertype: 0,
        remainder: true,
        packets: 77,
        bytes: 7000,
        ..arp.clone()
    };
    vec![served, asked, remainder, ping, dns, refused, arp]
}

fn node(story: Story) -> &'static str {
    if story == Story::ClusterTwo { "n2" } else { "n1" }
}

fn kubernetes(story: Story) -> Option<KubernetesStatus> {
    let watch = |resource: &str, objects, age: Option<i64>| WatchStatus {
        resource: resource.into(),
        state: if age.is_some() {
            State::Active
        } else {
            State::Failed
        }
        .into(),
        reason: if age.is_some() {
            ""
        } else {
            "403 Forbidden: endpointslices"
        }
        .into(),
        objects,
        age: age.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        events: 12,
        restarts: 1,
    };
    matches!(story, Story::ClusterOne | Story::ClusterTwo).then(|| KubernetesStatus {
        state: State::Active.into(),
        reason: String::new(),
        server: "https://10.96.0.1:443/".into(),
        source: "in-cluster".into(),
        watches: vec![watch("pods", 42, Some(3)), watch("endpointslices", 0, None)],
    })
}

/// A pod as it runs on a node.
fn pod(namespace: &str, name: &str, workload: &str, node: &str, ip: &str, port: u32) -> Endpoint {
    Endpoint {
        namespace: namespace.into(),
        pod: name.into(),
        workload: workload.into(),
        node: node.into(),
        pod_uid: format!("uid-{name}"),
        ..end(ip, port, EndpointKind::Pod, Attribution::PodIp)
    }
}

/// Pods of two nodes, Services, DNS names, the API server and other nodes; flows inside are told by both ends.
pub fn cluster_flows(to: i64, story: Story) -> Vec<Flow> {
    use {Attribution as A, EndpointKind as K};
    let own = |end: &Endpoint, container: &str| {
        let mut end = end.clone();
        end.set_attribution(A::Veth);
        end.container = container.into();
        end
    };
    let flow = |source: bool, src: Endpoint, dst: Endpoint, packets: u64, bytes: u64| Flow {
        node: node(story).into(),
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
        src: Some(src),
        dst: Some(dst),
        packets,
        bytes,
        wire_bytes: bytes + 14 * packets,
        frames: packets,
        frame_bytes: bytes,
        tcp_flags: 0x1b,
        first: at(to - 60, 0),
        last: at(to - 20, 0),
        point: Some(ObservationPoint {
            point: Some(Point::Interface("veth9f3c".into())),
            ifindex: 7,
        }),
        ..Flow::default()
    };
    let checkout = pod(
        "shop",
        "checkoutservice-7d9f8b6c5d-x2x4k",
        "Deployment/checkoutservice",
        "n1",
        "10.244.1.5",
        41234,
    );
    let payment = pod(
        "payments",
        "payment-gateway-6b8f9c7d4-q8zjw",
        "Deployment/payment-gateway",
        "n2",
        "10.244.2.9",
        8080,
    );
    let service = Some(Service {
        namespace: "payments".into(),
        name: "payment-gateway".into(),
        ip: "10.96.4.2".into(),
        port: 80,
        attribution: A::Conntrack.into(),
    });
    let asks = |source, packets| {
        let (src, dst) = if source {
            (own(&checkout, "server"), payment.clone())
        } else {
            (checkout.clone(), own(&payment, "gateway"))
        };
        Flow {
            service: if source { service.clone() } else { None },
            rtt_us: source.then_some(210),
            retransmits: source.then_some(3),
            ..flow(source, src, dst, packets, packets * 1000)
        }
    };
    if story == Story::ClusterTwo {
        let wire = Flow {
            last: at(to - 1, 0),
            ..flow(
                false,
                pod("shop", "cart-0", "StatefulSet/cart", "n1", "10.244.1.6", 5000),
                own(&payment, "gateway"),
                90,
                9000,
            )
        };
        return vec![asks(false, 1197), wire];
    }
    let source = |src: &Endpoint, dst, packets, bytes| flow(true, own(src, "server"), dst, packets, bytes);
    let cart = pod("shop", "cart-0", "StatefulSet/cart", "n1", "10.244.1.6", 5000);
    let dns = pod(
        "kube-system",
        "coredns-5dd5756b68-abcde",
        "Deployment/coredns",
        "n1",
        "10.244.1.2",
        53,
    );
    vec![
        Flow {
            wire_ip: "10.96.4.2".into(),
            wire_port: 80,
            ..asks(true, 1200)
        },
        Flow {
            last: at(to - 1, 0),
            ..source(&cart, payment, 100, 10_000)
        },
        Flow {
            protocol: 17,
            tcp_flags: 0,
            service: Some(Service {
                namespace: "kube-system".into(),
                name: "kube-dns".into(),
                ip: "10.96.0.10".into(),
                port: 53,
                attribution: A::Conntrack.into(),
            }),
            ..source(&checkout, dns, 4, 320)
        },
        source(
            &checkout,
            Endpoint {
                dns_name: "api.stripe.com".into(),
                ..end("198.51.100.7", 443, K::External, A::Dns)
            },
            20,
            5200,
        ),
        source(
            &checkout,
            Endpoint {
                node: "n1".into(),
                ..end("10.99.0.1", 6443, K::KubeApiserver, A::Endpoint)
            },
            9,
            4100,
        ),
        source(
            &checkout,
            Endpoint {
                node: "n2".into(),
                ..end("10.99.0.2", 10250, K::Node, A::NodeIp)
            },
            7,
            700,
        ),
        Flow {
            service: Some(Service {
                namespace: "shop".into(),
                name: "nobody".into(),
                ip: "10.96.9.9".into(),
                port: 8080,
                attribution: A::ServiceIp.into(),
            }),
            tcp_flags: 2,
            failed_connects: 1,
            ..source(&checkout, end("10.96.9.9", 8080, K::Service, A::ServiceIp), 1, 60)
        },
    ]
}

/// Pods with and without a gap.
fn pods(story: Story) -> Vec<PodStatus> {
    let status =
        |namespace: &str, name: &str, workload: &str, ips: &[&str], health: PodHealth, reason: &str| {
            PodStatus {
                namespace: namespace.into(),
                name: name.into(),
                uid: format!("uid-{name}"),
                workload: workload.into(),
                phase: "Running".into(),
                qos_class: "Burstable".into(),
                ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
                started: at(START - 600, 0),
                containers: vec![ContainerStatus {
                    name: "server".into(),
                    id: "4f1d0c9e8b7a".into(),
                    r#type: "container".into(),
                    state: "running".into(),
                    cgroup: "/kubepods/burstable/pod1/4f1d0c9e8b7a".into(),
                    cgroup_id: 4711,
                }],
                netns_inode: 4_026_532_500,
                interfaces: vec![PodInterface {
                    name: "veth9f3c".into(),
                    ifindex: 7,
                    observed: true,
                    reason: String::new(),
                }],
                health: health.into(),
                reason: reason.into(),
                packets: 1200,
                bytes: 1_200_000,
                ..PodStatus::default()
            }
        };
    match story {
        Story::ClusterOne => vec![
            PodStatus {
                host_network: true,
                interfaces: Vec::new(),
                netns_inode: 0,
                ..status(
                    "kube-system",
                    "kube-proxy-x7d2p",
                    "DaemonSet/kube-proxy",
                    &["10.99.0.1"],
                    PodHealth::Ok,
                    "",
                )
            },
            status(
                "shop",
                "checkoutservice-7d9f8b6c5d-x2x4k",
                "Deployment/checkoutservice",
                &["10.244.1.5", "fd00:10:244:1::5"],
                PodHealth::Ok,
                "",
            ),
        ],
        Story::ClusterTwo => vec![PodStatus {
            interfaces: Vec::new(),
            containers: vec![ContainerStatus {
                name: "gateway".into(),
                state: "running".into(),
                ..ContainerStatus::default()
            }],
            ..status(
                "payments",
                "payment-gateway-6b8f9c7d4-q8zjw",
                "Deployment/payment-gateway",
                &["10.244.2.9"],
                PodHealth::Gap,
                "no interface of the host leads to its network namespace (a CNI without veth?): mount a cgroup2",
            )
        }],
        _ => Vec::new(),
    }
}

fn ledger(story: Story) -> Vec<LedgerRow> {
    let row = |stage: &str, unit: &str, seen, lost| LedgerRow {
        family: "network".into(),
        stage: stage.into(),
        unit: unit.into(),
        seen,
        counted: seen - lost - 10,
        filtered: 10,
        lost,
        ..LedgerRow::default()
    };
    let mut rows = vec![
        row("probe", "packets", 27_447, 0),
        row("flow_map", "packets", 27_437, 0),
    ];
    if story == Story::Lossy {
        rows[1] = LedgerRow {
            lost_bytes: 7000,
            advice: "flow detail only, totals are exact; raise ORB8_FLOW_ENTRIES".into(),
            ..row("flow_map", "packets", 27_437, 77)
        };
    }
    rows
}

impl FakeAgent {
    fn now(&self) -> i64 {
        match self.story {
            Story::Ticking => self.clock.fetch_add(1, Ordering::Relaxed),
            Story::Live => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                i64::try_from(since.as_secs()).unwrap()
            }
            Story::Clean
            | Story::Lossy
            | Story::Broken
            | Story::ClusterOne
            | Story::ClusterTwo
            | Story::Server => START,
        }
    }

    fn told(&self, now: i64) -> Vec<Flow> {
        if matches!(self.story, Story::ClusterOne | Story::ClusterTwo) {
            return cluster_flows(now, self.story);
        }
        let mut flows = flows(now);
        if self.story == Story::Live {
            for n in 0..40_u32 {
                let wave = u64::try_from(now).unwrap() * u64::from(n + 3) % 17;
                let template = flows[0].clone();
                flows.push(Flow {
                    src: Some(Endpoint {
                        unit: format!("worker-{n}.service"),
                        ..template.src.clone().unwrap_or_default()
                    }),
                    bytes: wave * 100_000,
                    packets: wave * 90,
                    retransmits: Some(u64::from(n % 7 == 0)),
                    ..template
                });
            }
        }
        flows
    }
}

impl FakeAgent {
    /// These events, then silence until the client goes; or the same again and again.
    fn told_on(&self, events: Vec<Event>) -> Responses<StreamEventsResponse> {
        let events: Vec<_> = events
            .into_iter()
            .map(|event| Ok(StreamEventsResponse { event: Some(event) }))
            .collect();
        let first = tokio_stream::iter(events.clone());
        if self.story == Story::Live {
            let again = tokio_stream::iter(events.into_iter().cycle()).throttle(Duration::from_millis(100));
            return Box::pin(first.chain(again));
        }
        Box::pin(first.chain(tokio_stream::pending()))
    }
}

fn answered(story: Story) -> orb8_proto::v1::NodeAnswer {
    orb8_proto::v1::NodeAnswer {
        name: node(story).into(),
        state: orb8_proto::v1::NodeState::Answered.into(),
        ..orb8_proto::v1::NodeAnswer::default()
    }
}

#[tonic::async_trait]
impl OrbitService for FakeAgent {
    async fn query_gpus(
        &self,
        request: Request<GpuQuery>,
    ) -> Result<Response<Responses<QueryGpusResponse>>, Status> {
        let query = request.into_inner();
        self.asked.gpus.lock().unwrap().push(query.clone());
        let parts = fake_gpus::answer(self.story, &query, self.now())?;
        let mut parts: Vec<_> = parts.into_iter().map(Ok).collect();
        if self.story == Story::Broken {
            parts.pop();
            parts.push(Err(Status::unavailable("shutting down")));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn query_syscalls(
        &self,
        request: Request<SyscallQuery>,
    ) -> Result<Response<Responses<QuerySyscallsResponse>>, Status> {
        let mut query = request.into_inner();
        // As the protocol says: instead of `since`.
        if let Some(cursor) = query.cursors.pop() {
            query.since = cursor.time;
        }
        self.asked.syscalls.lock().unwrap().push(query.clone());
        let filter = query.filter.clone().unwrap_or_default();
        if filter.syscalls.iter().any(|name| name == "opnat") {
            return Err(Status::invalid_argument(
                "there is no system call 'opnat' (openat?)",
            ));
        }
        let now = self.now();
        let mut rows = fake_calls::rows(self.story, &query, now);
        let summary = fake_calls::summary(self.story, &query, &rows, now);
        if query.limit > 0 {
            rows.truncate(query.limit as usize);
        }
        let mut parts: Vec<_> = rows
            .chunks(2)
            .map(|rows| {
                Ok(QuerySyscallsResponse {
                    part: Some(CallsPart::Batch(SyscallBatch { rows: rows.to_vec() })),
                })
            })
            .collect();
        if self.story == Story::Broken {
            parts.truncate(1);
            parts.push(Err(Status::unavailable("shutting down")));
        } else {
            parts.push(Ok(QuerySyscallsResponse {
                part: Some(CallsPart::Summary(summary)),
            }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn set_syscall_mode(
        &self,
        request: Request<SetSyscallModeRequest>,
    ) -> Result<Response<SetSyscallModeResponse>, Status> {
        let mode = request.into_inner().mode();
        self.asked.modes.lock().unwrap().push(mode);
        if self.story == Story::Broken {
            return Err(Status::failed_precondition(
                "loading syscall/sys_exit: the kernel refuses it",
            ));
        }
        Ok(Response::new(SetSyscallModeResponse {
            node: node(self.story).into(),
            before: fake_calls::mode(self.story).into(),
            mode: mode.into(),
            ..SetSyscallModeResponse::default()
        }))
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        let request = request.into_inner();
        let mut pods = pods(self.story);
        pods.retain(|pod| request.namespaces.is_empty() || request.namespaces.contains(&pod.namespace));
        self.asked.pods.lock().unwrap().push(request);
        Ok(Response::new(ListPodsResponse {
            node: node(self.story).into(),
            pods,
            notes: Vec::new(),
        }))
    }

    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryFlowsResponse>>, Status> {
        let mut query = request.into_inner();
        // As the protocol says: instead of `since`.
        if let Some(cursor) = query.cursors.pop() {
            query.since = cursor.time;
        }
        self.asked.flows.lock().unwrap().push(query.clone());
        let filter = query.filter.clone().unwrap_or_default();
        if filter.owners.iter().any(|owner| owner == "refuse") {
            return Err(Status::invalid_argument("owner 'refuse' is not to my liking"));
        }
        let now = self.now();
        let mut flows = self.told(now);
        if query.sort() == FlowSort::Bytes {
            flows.sort_by_key(|flow| std::cmp::Reverse(flow.bytes));
        }
        flows.retain(|flow| filter.protocols.is_empty() || filter.protocols.contains(&flow.protocol));
        let summary = FlowSummary {
            node: node(self.story).into(),
            from: query.since.or_else(|| at(now - 5, 0)),
            to: at(now, 0),
            matched_flows: flows.len() as u64,
            matched_packets: flows.iter().map(|flow| flow.packets).sum(),
            matched_bytes: flows.iter().map(|flow| flow.bytes).sum(),
            ledger: ledger(self.story),
            notes: if self.story == Story::Lossy {
                vec!["history begins at 03:04:00".into()]
            } else {
                Vec::new()
            },
            nodes: Vec::new(),
        };
        if query.limit > 0 {
            flows.truncate(query.limit as usize);
        }
        let mut parts: Vec<_> = flows
            .chunks(2)
            .map(|flows| {
                Ok(QueryFlowsResponse {
                    part: Some(Part::Batch(FlowBatch {
                        flows: flows.to_vec(),
                    })),
                })
            })
            .collect();
        if self.story == Story::Broken {
            parts.truncate(1);
            parts.push(Err(Status::unavailable("shutting down")));
        } else {
            parts.push(Ok(QueryFlowsResponse {
                part: Some(Part::Summary(summary)),
            }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn get_agent_status(
        &self,
        _: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        let program = |name: &str, state: State, reason: &str| ProgramStatus {
            family: "network".into(),
            name: name.into(),
            state: state.into(),
            reason: reason.into(),
            attachments: u32::from(state == State::Active),
            run_count: 1000,
            run_time_ns: 78_000,
        };
        Ok(Response::new(AgentStatus {
            version: "0.1.0".into(),
            node: node(self.story).into(),
            transport: "plain text on loopback".into(),
            kubernetes: kubernetes(self.story),
            started: at(START - 3700, 0),
            uptime: Some(prost_types::Duration {
                seconds: 3700,
                nanos: 500_000_000,
            }),
            kernel: "6.18.0".into(),
            programs: vec![
                program("classify", State::Active, ""),
                program("sock_ops", State::Off, "no cgroup2 mount was found"),
            ],
            interfaces: vec![InterfaceStatus {
                ifindex: 12,
                name: "veth1a2b".into(),
                state: State::Active.into(),
                mechanism: "tcx".into(),
                role: "workload".into(),
                owner: "4f1d0c9e8b7a".into(),
                interface_rx: 1205,
                interface_tx: 900,
                seen_rx: 1203,
                seen_tx: 900,
                bypassed: 2,
                ..InterfaceStatus::default()
            }],
            ledger: ledger(self.story),
            limits: vec![Limit {
                name: "flow map".into(),
                unit: "entries".into(),
                used: 7,
                max: 131_072,
                turned_away: 0,
                setting: "ORB8_FLOW_ENTRIES".into(),
            }],
            checks: vec![
                Check {
                    name: "kernel".into(),
                    verdict: Verdict::Ok.into(),
                    found: "6.18".into(),
                    advice: String::new(),
                },
                Check {
                    name: "cgroup2".into(),
                    verdict: Verdict::Degraded.into(),
                    found: "not mounted".into(),
                    advice: "mount -t cgroup2 none /sys/fs/cgroup/unified".into(),
                },
            ],
            flows_active: 7,
            rss_bytes: 14 << 20,
            map_bytes: 21 << 20,
            cpu: Some(prost_types::Duration {
                seconds: 2,
                nanos: 250_000_000,
            }),
            history_from: at(START - 300, 0),
            settings: vec![Setting {
                name: "interval".into(),
                value: "1s".into(),
                source: "default".into(),
            }],
        }))
    }

    async fn query_edges(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<orb8_proto::v1::QueryEdgesResponse>>, Status> {
        use orb8_proto::v1::{
            EdgeBatch, EdgeSummary, QueryEdgesResponse, query_edges_response::Part as EdgePart,
        };
        let query = request.into_inner();
        let (sort, limit) = (query.sort(), query.limit as usize);
        let all = FlowQuery { limit: 0, ..query };
        let mut parts = self.query_flows(Request::new(all)).await?.into_inner();
        let (mut flows, mut summary) = (Vec::new(), None);
        while let Some(part) = parts.next().await {
            match part?.part {
                Some(Part::Batch(batch)) => flows.extend(batch.flows),
                Some(Part::Summary(last)) => summary = Some(last),
                None => {}
            }
        }
        let (edges, found) = orb8_proto::edges::join(&flows, sort, limit);
        let summary = EdgeSummary {
            edges: found as u64,
            settled: summary.as_ref().and_then(|summary| summary.to),
            flows: summary,
        };
        let parts = [EdgePart::Batch(EdgeBatch { edges }), EdgePart::Summary(summary)];
        let parts = parts.map(|part| Ok(QueryEdgesResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn list_nodes(
        &self,
        _request: Request<orb8_proto::v1::ListNodesRequest>,
    ) -> Result<Response<Responses<orb8_proto::v1::NodeInfo>>, Status> {
        let info = orb8_proto::v1::NodeInfo {
            name: node(self.story).into(),
            state: orb8_proto::v1::NodeState::Answered.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: at(START - 3600, 0),
            history_from: at(START - 300, 0),
            time: Some(SystemTime::now().into()),
            transport: "plain text on loopback".into(),
            ..orb8_proto::v1::NodeInfo::default()
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(info)]))))
    }

    async fn query_status(
        &self,
        _request: Request<orb8_proto::v1::QueryStatusRequest>,
    ) -> Result<Response<Responses<orb8_proto::v1::NodeStatus>>, Status> {
        let status = self
            .get_agent_status(Request::new(GetAgentStatusRequest {}))
            .await?;
        let part = orb8_proto::v1::NodeStatus {
            answer: Some(answered(self.story)),
            status: Some(status.into_inner()),
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(part)]))))
    }

    async fn query_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<Responses<orb8_proto::v1::NodePods>>, Status> {
        let pods = self.list_pods(request).await?;
        let part = orb8_proto::v1::NodePods {
            answer: Some(answered(self.story)),
            pods: Some(pods.into_inner()),
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(part)]))))
    }

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Responses<StreamEventsResponse>>, Status> {
        let request = request.into_inner();
        self.asked.events.lock().unwrap().push(request.clone());
        if request.gpu.is_some() {
            return Ok(Response::new(self.told_on(fake_gpus::events())));
        }
        if request.syscall.is_some() {
            return Ok(Response::new(self.told_on(fake_calls::events(self.story))));
        }
        let event = |seconds, kind: NetworkEventKind, weight, flow| {
            Event::Network(NetworkEvent {
                time: at(seconds, 250_000_000),
                kind: kind.into(),
                flow: Some(flow),
                weight,
            })
        };
        let mut all = flows(START).into_iter().map(|flow| Flow {
            packets: 1,
            bytes: 60,
            ..flow
        });
        let (served, asked) = (all.next().unwrap(), all.next().unwrap());
        let mut rest = all.skip(1);
        let (ping, dns) = (rest.next().unwrap(), rest.next().unwrap());
        let mut events = vec![
            event(START, NetworkEventKind::Syn, 1, asked),
            event(START, NetworkEventKind::SynAck, 1, served.clone()),
            event(START + 1, NetworkEventKind::NewFlow, 8, dns),
            event(START + 1, NetworkEventKind::NewFlow, 1, ping),
            event(START + 2, NetworkEventKind::Rst, 1, served),
        ];
        if self.story == Story::Lossy {
            events.insert(
                1,
                Event::Loss(EventLoss {
                    ring: 3,
                    stream: 0,
                    sampled: 21,
                    ..EventLoss::default()
                }),
            );
        }
        Ok(Response::new(self.told_on(events)))
    }
}
