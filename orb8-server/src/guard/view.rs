//! Answers as somebody sees them who may see some namespaces only.
//!
//! Agents are asked for no more than that. Everything is looked at again here all the same: an agent of an older version
//! may not know a condition. A row is given if the end that reported it is in a namespace that may be seen. Of its other
//! end, if that is elsewhere, address, port and kind are told: the workload talks to it, and sees them itself.

mod gpus;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use orb8_proto::{
    edges::reported_by_source,
    v1::{
        AgentStatus, Attribution, Edge, EdgeCounts, Endpoint, EndpointKind, EventBatch, Flow, FlowSummary,
        KubernetesStatus, LedgerRow, ListPodsResponse, NodeAnswer, NodeInfo, NodePods, NodeStatus, PodStatus,
        QueryEdgesResponse, QueryFlowsResponse, QuerySyscallsResponse, Service, StreamEventsResponse,
        SyscallGroup, SyscallSummary, query_edges_response, query_flows_response, query_syscalls_response,
        stream_events_response::Event,
    },
};
use tonic::Status;

use super::{narrow::Peers, refusal::GuardCounts, sight::Sight};

/// A stream that lasts looks so often whether permissions were withdrawn.
const RENEW: Duration = Duration::from_secs(60);

/// Notes of agents that tell of the answer only, and of nothing beside it.
const HARMLESS_NOTES: [&str; 10] = [
    "The answer starts ",
    "Errors were not measured",
    "Rows count the calls",
    "There are no verdicts yet",
    // Of GPUs: how far the answer can be trusted, and that there are none.
    "The history of samples covers ",
    "The kubelet does not answer: ",
    "The kubelet has not told ",
    "GPUs are not looked for: ",
    "The node that answered has no source of GPU readings",
    "None of the ",
];

/// Makes of an answer's messages what may be told.
#[tonic::async_trait]
pub(super) trait Redact<T>: Send + 'static {
    /// The message as it may be told; `None`: nothing of it.
    async fn redact(&mut self, message: T) -> Result<Option<T>, Status>;
}

/// Of one answer.
pub(super) struct View {
    sight: Sight,
    peers: Peers,
    token: String,
    renewed: Instant,
    counts: Arc<GuardCounts>,
    /// Rows of calls name their owner.
    owners: bool,
    /// Whether anything was kept back: then sums of it are not told.
    kept_back: bool,
    given: Given,
}

/// What was told, where the agents' own sums say more.
#[derive(Default)]
struct Given {
    rows: u64,
    flows: u64,
    packets: u64,
    bytes: u64,
    calls: u64,
    errors: u64,
    by_node: HashMap<String, u64>,
}

impl View {
    pub(super) fn new(sight: Sight, peers: Peers, token: String, counts: Arc<GuardCounts>) -> Self {
        Self {
            sight,
            peers,
            token,
            renewed: Instant::now(),
            counts,
            owners: true,
            kept_back: false,
            given: Given::default(),
        }
    }

    /// For rows of calls that are grouped so; empty: as agents group unasked.
    pub(super) fn grouped(mut self, by: &[i32]) -> Self {
        const OWNERS: [SyscallGroup; 3] =
            [SyscallGroup::Pod, SyscallGroup::Container, SyscallGroup::Workload];
        self.owners = by.is_empty() || OWNERS.iter().any(|&group| by.contains(&group.into()));
        self
    }

    fn drop_rows(&mut self, rows: usize) {
        if rows > 0 {
            self.kept_back = true;
            self.counts.dropped.fetch_add(rows as u64, Ordering::Relaxed);
        }
    }

    fn flow(&self, flow: &mut Flow) -> bool {
        let by_source = reported_by_source(flow);
        let (own, peer) = if by_source {
            (&flow.src, &mut flow.dst)
        } else {
            (&flow.dst, &mut flow.src)
        };
        let is_own = own.as_ref().is_some_and(|own| self.sight.owns(&own.namespace));
        let accounted =
            self.peers
                .accounts_for(peer.as_ref(), &flow.wire_ip, flow.service.as_ref(), &self.sight);
        if !is_own || !accounted {
            return false;
        }
        self.strip_end(peer);
        self.strip_service(&mut flow.service);
        true
    }

    /// Leaves of an end what its other end sees itself.
    fn strip_end(&self, end: &mut Option<Endpoint>) {
        let Some(end) = end else { return };
        if self.sight.sees(&end.namespace) {
            return;
        }
        // A name that the reporter itself was told.
        let asked_dns = end.namespace.is_empty()
            && end.kind() == EndpointKind::External
            && end.attribution() == Attribution::Dns;
        *end = Endpoint {
            ip: std::mem::take(&mut end.ip),
            port: end.port,
            kind: end.kind,
            dns_name: if asked_dns {
                std::mem::take(&mut end.dns_name)
            } else {
                String::new()
            },
            attribution: if asked_dns { end.attribution } else { 0 },
            ..Endpoint::default()
        };
    }

    fn strip_service(&self, service: &mut Option<Service>) {
        if let Some(service) = service
            && !self.sight.sees(&service.namespace)
        {
            *service = Service {
                ip: std::mem::take(&mut service.ip),
                port: service.port,
                ..Service::default()
            };
        }
    }

    /// Whether anything of it may be told.
    fn edge(&mut self, edge: &mut Edge) -> bool {
        let namespace = |end: &Option<Endpoint>| end.as_ref().map_or("", |end| &end.namespace).to_owned();
        let (src, dst) = (namespace(&edge.src), namespace(&edge.dst));
        let (from_own, to_own) = (self.sight.owns(&src), self.sight.owns(&dst));
        let peer = if from_own { &edge.dst } else { &edge.src };
        if !from_own && !to_own {
            return false;
        }
        let both = from_own && to_own;
        let service = edge.service.as_ref();
        if !both && !self.peers.accounts_for(peer.as_ref(), "", service, &self.sight) {
            return false;
        }
        let (sees_src, sees_dst) = (self.sight.sees(&src), self.sight.sees(&dst));
        // A point on the way is one of the ends' own: whose, is not told.
        let quiet = |end: &Option<Endpoint>, seen: bool| {
            seen || end
                .as_ref()
                .is_none_or(|end| end.kind() == EndpointKind::External)
        };
        let keep_elsewhere = quiet(&edge.src, sees_src) && quiet(&edge.dst, sees_dst);
        let mut taken = false;
        for (counts, keep) in [
            (&mut edge.sent, sees_src),
            (&mut edge.received, sees_dst),
            (&mut edge.elsewhere, keep_elsewhere),
        ] {
            if !keep && counts.take().is_some() {
                taken = true;
            }
        }
        if taken {
            self.kept_back = true;
            let left: Vec<&EdgeCounts> = [&edge.sent, &edge.received, &edge.elsewhere]
                .into_iter()
                .flatten()
                .collect();
            if left.is_empty() {
                return false;
            }
            let time = |time: &Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos));
            let first = left
                .iter()
                .min_by_key(|counts| time(&counts.first))
                .and_then(|counts| counts.first);
            let last = left
                .iter()
                .max_by_key(|counts| time(&counts.last))
                .and_then(|counts| counts.last);
            (edge.first, edge.last) = (first, last);
            // These are of all reports together.
            edge.tcp_flags = 0;
            edge.failed_connects = 0;
            (edge.rtt_us, edge.connect_us, edge.retransmits) = (None, None, None);
        }
        self.strip_end(&mut edge.src);
        self.strip_end(&mut edge.dst);
        self.strip_service(&mut edge.service);
        true
    }

    fn flow_summary(&self, summary: &mut FlowSummary) {
        strip_ledger(&mut summary.ledger, &mut summary.notes);
        if self.kept_back {
            summary.matched_flows = self.given.flows;
            summary.matched_packets = self.given.packets;
            summary.matched_bytes = self.given.bytes;
        }
        self.answers(&mut summary.nodes);
    }

    fn syscall_summary(&self, summary: &mut SyscallSummary) {
        strip_ledger(&mut summary.ledger, &mut summary.notes);
        if self.kept_back {
            summary.matched_rows = self.given.rows;
            summary.matched_calls = self.given.calls;
            summary.matched_errors = self.given.errors;
        }
        self.answers(&mut summary.nodes);
    }

    fn answers(&self, answers: &mut [NodeAnswer]) {
        for answer in answers {
            strip_answer(answer);
            if self.kept_back {
                // Of a node that is known by its agent's address alone it is not known which rows are its own.
                answer.items = self.given.by_node.get(&answer.name).copied().unwrap_or_default();
            }
        }
    }

    fn note_given(&mut self, node: &str) {
        self.given.rows += 1;
        if let Some(count) = self.given.by_node.get_mut(node) {
            *count += 1;
        } else {
            self.given.by_node.insert(node.to_owned(), 1);
        }
    }

    /// An event as it may be told. Names of namespaces have been looked up.
    fn event(&mut self, event: Event) -> Option<Event> {
        let event = match event {
            Event::Network(mut network) => network
                .flow
                .as_mut()
                .is_some_and(|flow| self.flow(flow))
                .then_some(Event::Network(network)),
            Event::Syscall(call) => call
                .owner
                .as_ref()
                .is_some_and(|owner| self.sight.owns(&owner.namespace))
                .then_some(Event::Syscall(call)),
            Event::Loss(mut loss) => {
                // The node's rings are everybody's: that something was lost is told, not how much.
                loss.ring = loss.ring.min(1);
                loss.sampled = loss.sampled.min(1);
                return Some(Event::Loss(loss));
            }
            Event::Node(mut answer) => {
                strip_answer(&mut answer);
                return Some(Event::Node(answer));
            }
            // Of batches in batches nothing is told: there are none.
            Event::Batch(_) => None,
            Event::Gpu(mut gpu) => self
                .holders(&mut gpu.holders, &mut gpu.hidden_holders)
                .then_some(Event::Gpu(gpu)),
        };
        if event.is_none() {
            self.drop_rows(1);
        }
        event
    }

    /// Pods as they may be told.
    pub(super) fn pods(&mut self, pods: &mut Vec<PodStatus>, notes: &mut Vec<String>) {
        let before = pods.len();
        pods.retain(|pod| self.sight.owns(&pod.namespace));
        self.drop_rows(before - pods.len());
        strip_notes(notes);
    }

    pub(super) fn pods_of_all(&mut self, mut response: ListPodsResponse) -> ListPodsResponse {
        self.pods(&mut response.pods, &mut response.notes);
        response
    }
}

#[tonic::async_trait]
impl Redact<QueryFlowsResponse> for View {
    async fn redact(
        &mut self,
        mut message: QueryFlowsResponse,
    ) -> Result<Option<QueryFlowsResponse>, Status> {
        use query_flows_response::Part;
        match &mut message.part {
            Some(Part::Batch(batch)) => {
                self.sight
                    .learn(batch.flows.iter().flat_map(namespaces_of).collect())
                    .await;
                let before = batch.flows.len();
                batch.flows.retain_mut(|flow| self.flow(flow));
                self.drop_rows(before - batch.flows.len());
                for flow in &batch.flows {
                    self.note_given(&flow.node);
                    self.given.flows += 1;
                    self.given.packets += flow.packets;
                    self.given.bytes += flow.bytes;
                }
                if batch.flows.is_empty() {
                    return Ok(None);
                }
            }
            Some(Part::Summary(summary)) => self.flow_summary(summary),
            None => return Ok(None),
        }
        Ok(Some(message))
    }
}

#[tonic::async_trait]
impl Redact<QueryEdgesResponse> for View {
    async fn redact(
        &mut self,
        mut message: QueryEdgesResponse,
    ) -> Result<Option<QueryEdgesResponse>, Status> {
        use query_edges_response::Part;
        match &mut message.part {
            Some(Part::Batch(batch)) => {
                let names = batch
                    .edges
                    .iter()
                    .flat_map(|edge| names(edge.src.as_ref(), edge.dst.as_ref(), edge.service.as_ref()));
                self.sight.learn(names.collect()).await;
                let before = batch.edges.len();
                batch.edges.retain_mut(|edge| self.edge(edge));
                self.drop_rows(before - batch.edges.len());
                for edge in &batch.edges {
                    self.given.rows += 1;
                    for counts in [&edge.sent, &edge.received, &edge.elsewhere]
                        .into_iter()
                        .flatten()
                    {
                        let flows = u64::from(counts.reports);
                        self.given.flows += flows;
                        self.given.packets += counts.packets;
                        self.given.bytes += counts.bytes;
                        *self.given.by_node.entry(counts.node.clone()).or_default() += flows;
                    }
                }
                if batch.edges.is_empty() {
                    return Ok(None);
                }
            }
            Some(Part::Summary(summary)) => {
                if self.kept_back {
                    summary.edges = self.given.rows;
                }
                if let Some(flows) = &mut summary.flows {
                    self.flow_summary(flows);
                }
            }
            None => return Ok(None),
        }
        Ok(Some(message))
    }
}

#[tonic::async_trait]
impl Redact<QuerySyscallsResponse> for View {
    async fn redact(
        &mut self,
        mut message: QuerySyscallsResponse,
    ) -> Result<Option<QuerySyscallsResponse>, Status> {
        use query_syscalls_response::Part;
        match &mut message.part {
            Some(Part::Batch(batch)) => {
                let before = batch.rows.len();
                if self.owners {
                    batch.rows.retain(|row| {
                        let owner = row.owner.as_ref();
                        owner.is_some_and(|owner| self.sight.owns(&owner.namespace))
                    });
                } else {
                    batch.rows.iter_mut().for_each(|row| row.owner = None);
                }
                self.drop_rows(before - batch.rows.len());
                for row in &batch.rows {
                    self.note_given(&row.node);
                    self.given.calls += row.count;
                    self.given.errors += row.failed;
                }
                if batch.rows.is_empty() {
                    return Ok(None);
                }
            }
            Some(Part::Summary(summary)) => self.syscall_summary(summary),
            None => return Ok(None),
        }
        Ok(Some(message))
    }
}

#[tonic::async_trait]
impl Redact<StreamEventsResponse> for View {
    async fn redact(
        &mut self,
        message: StreamEventsResponse,
    ) -> Result<Option<StreamEventsResponse>, Status> {
        if self.renewed.elapsed() >= RENEW {
            self.renewed = Instant::now();
            let token = std::mem::take(&mut self.token);
            let renewed = self.sight.renew(&token).await;
            self.token = token;
            renewed.map_err(|refusal| self.counts.refuse(&refusal))?;
        }
        let events = match message.event {
            Some(Event::Batch(batch)) => batch.events.into_iter().filter_map(|event| event.event).collect(),
            Some(event) => vec![event],
            None => return Ok(None),
        };
        let names = events.iter().flat_map(|event| match event {
            Event::Network(network) => network.flow.iter().flat_map(namespaces_of).collect(),
            Event::Syscall(_) | Event::Gpu(_) | Event::Loss(_) | Event::Node(_) | Event::Batch(_) => {
                Vec::new()
            }
        });
        self.sight.learn(names.collect()).await;
        let mut events: Vec<StreamEventsResponse> = events
            .into_iter()
            .filter_map(|event| self.event(event))
            .map(|event| StreamEventsResponse { event: Some(event) })
            .collect();
        Ok(match events.len() {
            0 => None,
            1 => events.pop(),
            _ => Some(StreamEventsResponse {
                event: Some(Event::Batch(EventBatch { events })),
            }),
        })
    }
}

#[tonic::async_trait]
impl Redact<NodePods> for View {
    async fn redact(&mut self, mut message: NodePods) -> Result<Option<NodePods>, Status> {
        if let Some(pods) = &mut message.pods {
            self.pods(&mut pods.pods, &mut pods.notes);
        }
        if let Some(answer) = &mut message.answer {
            strip_answer(answer);
            answer.items = message.pods.as_ref().map_or(0, |pods| pods.pods.len() as u64);
        }
        Ok(Some(message))
    }
}

/// What everybody may know who may ask at all.
pub(super) struct Everybody;

#[tonic::async_trait]
impl Redact<NodeInfo> for Everybody {
    async fn redact(&mut self, message: NodeInfo) -> Result<Option<NodeInfo>, Status> {
        Ok(Some(NodeInfo {
            name: message.name,
            state: message.state,
            reason: message.reason,
            version: message.version,
            history_from: message.history_from,
            clock_offset: message.clock_offset,
            clock_error: message.clock_error,
            ..NodeInfo::default()
        }))
    }
}

#[tonic::async_trait]
impl Redact<NodeStatus> for Everybody {
    async fn redact(&mut self, mut message: NodeStatus) -> Result<Option<NodeStatus>, Status> {
        if let Some(answer) = &mut message.answer {
            strip_answer(answer);
        }
        message.status = message.status.map(status);
        Ok(Some(message))
    }
}

/// Of an agent's or a server's state what tells of nobody's workloads.
pub(super) fn status(status: AgentStatus) -> AgentStatus {
    AgentStatus {
        version: status.version,
        node: status.node,
        started: status.started,
        uptime: status.uptime,
        history_from: status.history_from,
        transport: status.transport,
        kubernetes: status.kubernetes.map(|kubernetes| KubernetesStatus {
            state: kubernetes.state,
            ..KubernetesStatus::default()
        }),
        ..AgentStatus::default()
    }
}

/// Namespaces that a flow names.
fn namespaces_of(flow: &Flow) -> Vec<String> {
    names(flow.src.as_ref(), flow.dst.as_ref(), flow.service.as_ref())
}

fn names(src: Option<&Endpoint>, dst: Option<&Endpoint>, service: Option<&Service>) -> Vec<String> {
    let ends = [src, dst].into_iter().flatten().map(|end| &end.namespace);
    let service = service.map(|service| &service.namespace);
    let distinct: BTreeSet<&String> = ends.chain(service).filter(|name| !name.is_empty()).collect();
    distinct.into_iter().cloned().collect()
}

fn strip_answer(answer: &mut NodeAnswer) {
    strip_ledger(&mut answer.ledger, &mut answer.notes);
}

/// A ledger counts what belongs to everybody: that something was lost is told, not how much.
fn strip_ledger(ledger: &mut Vec<LedgerRow>, notes: &mut Vec<String>) {
    strip_notes(notes);
    let rows = std::mem::take(ledger);
    for row in rows.iter().filter(|row| row.lost > 0) {
        notes.push(format!(
            "Something was lost on this node ({} {}), so that counts may be too low.",
            row.family, row.stage
        ));
    }
}

fn strip_notes(notes: &mut Vec<String>) {
    let before = notes.len();
    notes.retain(|note| HARMLESS_NOTES.iter().any(|harmless| note.starts_with(harmless)));
    if notes.len() < before {
        notes.push("What the agent has to say of its whole node is for operators only.".to_owned());
    }
}
