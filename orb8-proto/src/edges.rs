//! Joining the two reports of one direction of a flow: what its source sent, and what its destination received.
//!
//! A flow between two workloads that are both observed is reported twice, by its source and by its destination,
//! perhaps on two nodes. [`join`] makes one [`Edge`] of them. What it may not join for certain it leaves apart: a
//! report without its counterpart is an edge with one side, which is no loss.
//!
//! Each report's packets are in exactly one of an edge's [`sent`](Edge::sent), [`received`](Edge::received) and
//! [`elsewhere`](Edge::elsewhere).

use std::{cmp::Reverse, collections::HashMap, net::IpAddr};

use prost_types::Timestamp;

use crate::v1::{
    Attribution, Direction, Endpoint, EndpointKind, Flow, FlowSort, Reporter, observation_point::Point,
};
pub use crate::v1::{Edge, EdgeCounts as Counts};

impl Edge {
    /// Packets sent and not received: negative if more were received than sent, `None` with one report only.
    #[must_use]
    pub fn lost_packets(&self) -> Option<i128> {
        let (sent, received) = (self.sent.as_ref()?, self.received.as_ref()?);
        Some(i128::from(sent.packets) - i128::from(received.packets))
    }

    /// Bytes (layer 3) sent and not received, as [`Edge::lost_packets`].
    #[must_use]
    pub fn lost_bytes(&self) -> Option<i128> {
        let (sent, received) = (self.sent.as_ref()?, self.received.as_ref()?);
        Some(i128::from(sent.bytes) - i128::from(received.bytes))
    }

    /// What travelled, as far as is known: the source's count, else the destination's, else what passed by.
    #[must_use]
    pub fn counts(&self) -> Option<&Counts> {
        self.sent
            .as_ref()
            .or(self.received.as_ref())
            .or(self.elsewhere.as_ref())
    }
}

/// Whether the source is the end that reported `flow`.
#[must_use]
pub fn reported_by_source(flow: &Flow) -> bool {
    match (flow.reporter(), flow.direction()) {
        (Reporter::Source, _) => true,
        (Reporter::Destination, _) => false,
        (Reporter::Unspecified, direction) => direction != Direction::Ingress,
    }
}

/// Joins reports of flows into edges, sorted as flows are sorted, equal ones in the order in which each is first met; at
/// most `limit` edges unless that is 0. Also how many there are before the limit.
///
/// Two reports are of the same edge if their protocol, addresses and ports agree (after translation: reports name
/// the client and the backend behind a Service), and nothing that is known of their ends contradicts it. Equal
/// addresses are told apart by the pods' UIDs; loopback and link-local addresses mean something on one node only.
/// A report that would fit two edges is left alone. Costs O(n log n) time and O(n) memory; what is beyond the limit is not
/// named, which costs half.
#[must_use]
pub fn join<'a>(
    flows: impl IntoIterator<Item = &'a Flow>,
    sort: FlowSort,
    limit: usize,
) -> (Vec<Edge>, usize) {
    let mut all = joined(flows);
    let time = |time: Option<Timestamp>| time.map(order);
    match sort {
        FlowSort::Bytes => {
            all.sort_by_cached_key(|joined| Reverse(joined.counts().map(|counts| counts.bytes)));
        }
        FlowSort::Packets => {
            all.sort_by_cached_key(|joined| Reverse(joined.counts().map(|counts| counts.packets)));
        }
        FlowSort::Last => all.sort_by_cached_key(|joined| Reverse(time(joined.figures.last))),
        FlowSort::First => {
            all.sort_by_cached_key(|joined| (joined.figures.first.is_none(), time(joined.figures.first)));
        }
        FlowSort::Rtt => all.sort_by_cached_key(|joined| Reverse(joined.figures.rtt_us)),
        FlowSort::Retransmits => all.sort_by_cached_key(|joined| Reverse(joined.figures.retransmits)),
    }
    let found = all.len();
    if limit > 0 {
        all.truncate(limit);
    }
    (all.into_iter().map(Joined::edge).collect(), found)
}

/// The reports of one edge, and what they say together but for the names of its ends.
struct Joined<'a> {
    /// Of its first report.
    index: usize,
    sent: Vec<&'a Flow>,
    received: Vec<&'a Flow>,
    figures: Box<Edge>,
}

fn joined<'a>(flows: impl IntoIterator<Item = &'a Flow>) -> Vec<Joined<'a>> {
    let mut buckets: HashMap<Key<'a>, Vec<(usize, &'a Flow)>> = HashMap::new();
    let mut all = Vec::new();
    for (index, flow) in flows.into_iter().enumerate() {
        if flow.ip_version == 0 || flow.remainder {
            // Seen at one point; there is nothing to tell its counterpart by.
            all.push(Joined::new(index, &[flow]));
        } else {
            buckets.entry(Key::of(flow)).or_default().push((index, flow));
        }
    }
    for reports in buckets.into_values() {
        all.extend(
            clusters(reports)
                .into_iter()
                .map(|(index, flows)| Joined::new(index, &flows)),
        );
    }
    all.sort_unstable_by_key(|joined| joined.index);
    all
}

/// What reports of one edge have in common.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    ip_version: u32,
    protocol: u32,
    icmp: (Option<u32>, Option<u32>),
    src: (&'a str, u32),
    dst: (&'a str, u32),
    fragment: bool,
    malformed: bool,
    /// Where an address means something on this node only.
    node: Option<&'a str>,
}

impl<'a> Key<'a> {
    fn of(flow: &'a Flow) -> Self {
        let end = |end: Option<&'a Endpoint>| end.map(|end| (end.ip.as_str(), end.port)).unwrap_or_default();
        let (src, dst) = (end(flow.src.as_ref()), end(flow.dst.as_ref()));
        let local = is_of_one_node(src.0) || is_of_one_node(dst.0);
        Self {
            ip_version: flow.ip_version,
            protocol: flow.protocol,
            icmp: (flow.icmp_type, flow.icmp_code),
            src,
            dst,
            fragment: flow.fragment,
            malformed: flow.malformed,
            node: local.then_some(flow.node.as_str()),
        }
    }
}

/// Whether the same address exists on other nodes too. What is no address tells nothing.
fn is_of_one_node(ip: &str) -> bool {
    match ip.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
        Err(_) => true,
    }
}

/// Who the two ends are, as far as is known.
#[derive(Clone, Copy, Debug, Default)]
struct Identity<'a> {
    src: EndIdentity<'a>,
    dst: EndIdentity<'a>,
}

#[derive(Clone, Copy, Debug, Default)]
struct EndIdentity<'a> {
    uid: &'a str,
    pod: (&'a str, &'a str),
}

impl<'a> EndIdentity<'a> {
    fn of(end: Option<&'a Endpoint>) -> Self {
        end.map(|end| Self {
            uid: &end.pod_uid,
            pod: (&end.namespace, &end.pod),
        })
        .unwrap_or_default()
    }

    fn agrees(&self, other: &Self) -> bool {
        if !self.uid.is_empty() && !other.uid.is_empty() {
            return self.uid == other.uid;
        }
        self.pod.1.is_empty() || other.pod.1.is_empty() || self.pod == other.pod
    }

    fn learn(&mut self, other: Self) {
        if self.uid.is_empty() {
            self.uid = other.uid;
        }
        if self.pod.1.is_empty() {
            self.pod = other.pod;
        }
    }

    const fn known(self) -> u8 {
        !self.uid.is_empty() as u8 * 2 + !self.pod.1.is_empty() as u8
    }
}

impl<'a> Identity<'a> {
    fn of(flow: &'a Flow) -> Self {
        Self {
            src: EndIdentity::of(flow.src.as_ref()),
            dst: EndIdentity::of(flow.dst.as_ref()),
        }
    }

    fn agrees(&self, other: &Self) -> bool {
        self.src.agrees(&other.src) && self.dst.agrees(&other.dst)
    }
}

/// Divides reports of one key among edges; each with the index of its first report.
fn clusters<'a>(mut reports: Vec<(usize, &'a Flow)>) -> Vec<(usize, Vec<&'a Flow>)> {
    // Who knows most goes first, so that who knows little is compared with all that is known.
    reports.sort_by_cached_key(|(index, flow)| {
        let identity = Identity::of(flow);
        (Reverse(identity.src.known() + identity.dst.known()), *index)
    });
    let mut clusters: Vec<(usize, Identity<'a>, Vec<&'a Flow>)> = Vec::new();
    for (index, flow) in reports {
        let identity = Identity::of(flow);
        let mut fitting = clusters
            .iter_mut()
            .filter(|(_, known, _)| known.agrees(&identity));
        match (fitting.next(), fitting.next()) {
            (Some((first, known, flows)), None) => {
                known.src.learn(identity.src);
                known.dst.learn(identity.dst);
                *first = index.min(*first);
                flows.push(flow);
            }
            _ => clusters.push((index, identity, vec![flow])),
        }
    }
    clusters
        .into_iter()
        .map(|(index, _, flows)| (index, flows))
        .collect()
}

impl<'a> Joined<'a> {
    /// Of all reports of an edge, at least one.
    fn new(index: usize, flows: &[&'a Flow]) -> Self {
        let mut edge = Box::<Edge>::default();
        let (mut sent, mut received): (Vec<&Flow>, Vec<&Flow>) =
            flows.iter().partition(|flow| reported_by_source(flow));
        sort_reports(&mut sent, true);
        sort_reports(&mut received, false);
        if let Some(flow) = sent.first().or(received.first()) {
            edge.ip_version = flow.ip_version;
            edge.protocol = flow.protocol;
            edge.ethertype = flow.ethertype;
            edge.icmp_type = flow.icmp_type;
            edge.icmp_code = flow.icmp_code;
            edge.fragment = flow.fragment;
            edge.malformed = flow.malformed;
            edge.remainder = flow.remainder;
        }
        for flow in sent.iter().chain(&received) {
            edge.tcp_flags |= flow.tcp_flags;
            edge.first = earlier(edge.first, flow.first);
            edge.last = later(edge.last, flow.last);
        }
        let mut by_time = sent.clone();
        by_time.sort_by_key(|flow| Reverse(flow.last.map(order)));
        edge.rtt_us = by_time.iter().find_map(|flow| flow.rtt_us);
        edge.connect_us = by_time.iter().find_map(|flow| flow.connect_us);
        for flow in &sent {
            if let Some(retransmits) = flow.retransmits {
                edge.retransmits = Some(edge.retransmits.unwrap_or_default().saturating_add(retransmits));
            }
            edge.failed_connects = edge.failed_connects.saturating_add(flow.failed_connects);
        }
        edge.sent = count(&sent, true, &mut edge.elsewhere);
        edge.received = count(&received, false, &mut edge.elsewhere);
        Self {
            index,
            sent,
            received,
            figures: edge,
        }
    }

    fn counts(&self) -> Option<&Counts> {
        self.figures.counts()
    }

    /// The edge, with its ends.
    fn edge(self) -> Edge {
        let ends = |from: fn(&Flow) -> Option<&Endpoint>, first: &[&Flow], then: &[&Flow]| {
            let mut all = first.iter().chain(then).filter_map(|flow| from(flow));
            let mut end = all.next()?.clone();
            all.for_each(|other| complete(&mut end, other));
            Some(end)
        };
        let (sent, received) = (&self.sent, &self.received);
        let mut services = sent
            .iter()
            .chain(received)
            .filter_map(|flow| flow.service.clone());
        Edge {
            src: ends(|flow| flow.src.as_ref(), sent, received),
            dst: ends(|flow| flow.dst.as_ref(), received, sent),
            service: services.next(),
            ..*self.figures
        }
    }
}

/// Adds up one end's reports, and those that are the same packets at further points apart.
fn count(reports: &[&Flow], source: bool, elsewhere: &mut Option<Counts>) -> Option<Counts> {
    let mut counts: Option<Counts> = None;
    let mut accepted: Vec<&Flow> = Vec::new();
    for flow in reports {
        // A workload's own interface or sockets tell what the end sent or received. Beside them, an uplink has
        // seen the same packets once more; so has a second interface, unless it came after the first (a workload
        // that was moved from its interface to its sockets).
        let counted = accepted.is_empty()
            || (is_workload_point(flow, source) || !is_workload_point(accepted[0], source))
                && accepted
                    .iter()
                    .all(|other| is_same_point(flow, other) || !overlap(flow, other));
        if counted {
            accepted.push(flow);
            add(&mut counts, flow);
        } else {
            add(elsewhere, flow);
        }
    }
    counts
}

/// The best observation point first: the workload's own, interfaces (wire-exact) before sockets, then by bytes.
fn sort_reports(reports: &mut [&Flow], source: bool) {
    reports.sort_by_cached_key(|flow| {
        (
            !is_workload_point(flow, source),
            is_socket(flow),
            Reverse(flow.bytes),
            flow.node.as_str(),
            flow.first.map(order),
            flow.point.as_ref().map(|point| point.ifindex),
        )
    });
}

/// Whether the report is from the end's own interface or socket, by how the end got its name.
fn is_workload_point(flow: &Flow, source: bool) -> bool {
    let own = if source { &flow.src } else { &flow.dst };
    is_socket(flow)
        || own.as_ref().is_some_and(|own| {
            matches!(
                own.attribution(),
                Attribution::Veth | Attribution::Cgroup | Attribution::Socket
            )
        })
}

fn is_socket(flow: &Flow) -> bool {
    flow.point
        .as_ref()
        .is_some_and(|point| matches!(point.point, Some(Point::CgroupId(_))))
}

/// One hook sees all sockets of a node, each packet once, whichever cgroups they are in.
fn is_same_point(a: &Flow, b: &Flow) -> bool {
    a.node == b.node && (a.point == b.point || is_socket(a) && is_socket(b))
}

/// Whether the spans of two reports have a moment in common. An unknown span may be any.
fn overlap(a: &Flow, b: &Flow) -> bool {
    match (a.first, a.last, b.first, b.last) {
        (Some(a_first), Some(a_last), Some(b_first), Some(b_last)) => {
            order(a_first) <= order(b_last) && order(b_first) <= order(a_last)
        }
        _ => a.packets > 0 && b.packets > 0,
    }
}

fn add(counts: &mut Option<Counts>, flow: &Flow) {
    let counts = counts.get_or_insert_with(|| Counts {
        node: flow.node.clone(),
        ..Counts::default()
    });
    counts.packets = counts.packets.saturating_add(flow.packets);
    counts.bytes = counts.bytes.saturating_add(flow.bytes);
    counts.wire_bytes = counts.wire_bytes.saturating_add(flow.wire_bytes);
    counts.reports = counts.reports.saturating_add(1);
    counts.first = earlier(counts.first, flow.first);
    counts.last = later(counts.last, flow.last);
}

/// Fills what `end` lacks from another report of the same end.
fn complete(end: &mut Endpoint, other: &Endpoint) {
    for (field, from) in [
        (&mut end.namespace, &other.namespace),
        (&mut end.pod, &other.pod),
        (&mut end.workload, &other.workload),
        (&mut end.container, &other.container),
        (&mut end.unit, &other.unit),
        (&mut end.process, &other.process),
        (&mut end.netns, &other.netns),
        (&mut end.cgroup, &other.cgroup),
        (&mut end.pod_uid, &other.pod_uid),
        (&mut end.dns_name, &other.dns_name),
        (&mut end.node, &other.node),
    ] {
        if field.is_empty() {
            field.clone_from(from);
        }
    }
    if end.pid == 0 {
        end.pid = other.pid;
    }
    let unnamed = matches!(
        end.kind(),
        EndpointKind::Unspecified | EndpointKind::External | EndpointKind::Host
    );
    if end.attribution() == Attribution::Unknown && unnamed && other.attribution() != Attribution::Unknown {
        end.kind = other.kind;
        end.attribution = other.attribution;
    }
}

const fn order(time: Timestamp) -> (i64, i32) {
    (time.seconds, time.nanos)
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().min_by_key(|time| order(*time))
}

fn later(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().max_by_key(|time| order(*time))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1::{ObservationPoint, Service};

    /// All edges, in the order in which each is first met.
    fn join(flows: impl IntoIterator<Item = Flow>) -> Vec<Edge> {
        let flows: Vec<Flow> = flows.into_iter().collect();
        joined(&flows).into_iter().map(Joined::edge).collect()
    }

    #[test]
    fn the_first_are_the_largest_and_all_are_counted() {
        let flows: Vec<Flow> = [(1, 5), (2, 9), (3, 7), (2, 1)]
            .into_iter()
            .map(|(port, packets)| {
                let mut flow = report(Reporter::Source, packets, ("a", "b"));
                flow.dst.as_mut().unwrap().port = port;
                flow
            })
            .collect();
        let (edges, found) = super::join(&flows, FlowSort::Packets, 2);
        let ports = |edges: &[Edge]| -> Vec<u32> {
            edges.iter().map(|edge| edge.dst.as_ref().unwrap().port).collect()
        };
        assert_eq!((ports(&edges), found), (vec![2, 3], 3));
        assert_eq!(ports(&super::join(&flows, FlowSort::Packets, 0).0), [2, 3, 1]);
    }

    fn end(ip: &str, port: u32, uid: &str) -> Option<Endpoint> {
        Some(Endpoint {
            ip: ip.into(),
            port,
            pod_uid: uid.into(),
            attribution: Attribution::Veth.into(),
            ..Endpoint::default()
        })
    }

    fn report(reporter: Reporter, packets: u64, uids: (&str, &str)) -> Flow {
        Flow {
            node: "n1".into(),
            reporter: reporter.into(),
            ip_version: 4,
            protocol: 6,
            src: end("10.0.0.1", 40_000, uids.0),
            dst: end("10.0.0.2", 80, uids.1),
            packets,
            bytes: packets * 100,
            first: Some(Timestamp { seconds: 1, nanos: 0 }),
            last: Some(Timestamp { seconds: 5, nanos: 0 }),
            point: interface("veth0"),
            ..Flow::default()
        }
    }

    fn interface(name: &str) -> Option<ObservationPoint> {
        Some(ObservationPoint {
            point: Some(Point::Interface(name.into())),
            ifindex: 1,
        })
    }

    fn socket(id: u64) -> Option<ObservationPoint> {
        Some(ObservationPoint {
            point: Some(Point::CgroupId(id)),
            ifindex: 0,
        })
    }

    #[test]
    fn two_reports_are_one_edge_and_their_difference_is_lost() {
        let mut received = report(Reporter::Destination, 7, ("", "b"));
        received.rtt_us = Some(1);
        received.dst.as_mut().unwrap().container = "app".into();
        let mut sent = report(Reporter::Source, 10, ("a", ""));
        sent.rtt_us = Some(9);
        sent.retransmits = Some(3);
        sent.service = Some(Service {
            name: "web".into(),
            ..Service::default()
        });
        for flows in [[received.clone(), sent.clone()], [sent, received]] {
            let edges = join(flows);
            assert_eq!(edges.len(), 1);
            let edge = &edges[0];
            assert_eq!((edge.lost_packets(), edge.lost_bytes()), (Some(3), Some(300)));
            assert_eq!((edge.rtt_us, edge.retransmits), (Some(9), Some(3)));
            assert_eq!(edge.service.as_ref().unwrap().name, "web");
            let (src, dst) = (edge.src.as_ref().unwrap(), edge.dst.as_ref().unwrap());
            assert_eq!((&*src.pod_uid, &*dst.pod_uid, &*dst.container), ("a", "b", "app"));
        }
    }

    #[test]
    fn one_report_is_no_loss_and_more_received_than_sent_is_not_hidden() {
        let edges = join([report(Reporter::Source, 10, ("a", "b"))]);
        assert_eq!(
            (edges[0].lost_packets(), edges[0].received.is_none()),
            (None, true)
        );
        let edges = join([
            report(Reporter::Source, 10, ("a", "b")),
            report(Reporter::Destination, 12, ("a", "b")),
        ]);
        assert_eq!(edges[0].lost_packets(), Some(-2));
    }

    #[test]
    fn the_same_address_of_two_pods_is_two_edges() {
        let edges = join([
            report(Reporter::Source, 1, ("a", "b")),
            report(Reporter::Destination, 1, ("c", "b")),
        ]);
        assert_eq!(edges.len(), 2);
        // What fits both is left alone.
        let edges = join([
            report(Reporter::Source, 1, ("a", "b")),
            report(Reporter::Source, 2, ("c", "b")),
            report(Reporter::Destination, 3, ("", "b")),
        ]);
        assert_eq!(edges.len(), 3);
        assert!(edges.iter().all(|edge| edge.lost_packets().is_none()));
        // Without UIDs, names tell.
        let named = |reporter, pod: &str| {
            let mut flow = report(reporter, 1, ("", ""));
            flow.src.as_mut().unwrap().pod = pod.into();
            flow
        };
        assert_eq!(
            join([named(Reporter::Source, "x"), named(Reporter::Destination, "y")]).len(),
            2
        );
    }

    #[test]
    fn loopback_is_joined_on_its_node_only() {
        let of = |node: &str, reporter| Flow {
            node: node.into(),
            src: end("127.0.0.1", 1, ""),
            dst: end("127.0.0.1", 2, ""),
            ..report(reporter, 1, ("", ""))
        };
        let edges = join([
            of("n1", Reporter::Source),
            of("n2", Reporter::Destination),
            of("n1", Reporter::Destination),
        ]);
        assert_eq!(edges.len(), 2);
        assert_eq!(edges[0].lost_packets(), Some(0));
    }

    #[test]
    fn further_points_are_not_added() {
        let mut uplink = report(Reporter::Source, 10, ("a", "b"));
        uplink.point = interface("eth0");
        uplink.src.as_mut().unwrap().set_attribution(Attribution::PodIp);
        let at_sockets = Flow {
            point: socket(1),
            ..report(Reporter::Source, 9, ("a", "b"))
        };
        let edges = join([
            uplink.clone(),
            at_sockets.clone(),
            report(Reporter::Source, 10, ("a", "b")),
        ]);
        assert_eq!(edges[0].sent.as_ref().unwrap().packets, 10);
        assert_eq!(edges[0].elsewhere.as_ref().unwrap().packets, 19);
        // Nothing but the uplink has seen it: that is what is known.
        assert_eq!(join([uplink])[0].sent.as_ref().unwrap().packets, 10);
        // Moved from its interface to its sockets, or sockets of two cgroups: parts of one whole.
        let later = Flow {
            first: Some(Timestamp { seconds: 6, nanos: 0 }),
            last: Some(Timestamp { seconds: 7, nanos: 0 }),
            ..at_sockets.clone()
        };
        let edges = join([report(Reporter::Source, 10, ("a", "b")), later]);
        assert_eq!(edges[0].sent.as_ref().unwrap().packets, 19);
        let other = Flow {
            point: socket(2),
            ..at_sockets.clone()
        };
        assert_eq!(join([at_sockets, other])[0].sent.as_ref().unwrap().packets, 18);
    }

    fn any_flow() -> impl Strategy<Value = Flow> {
        let name = |text: &'static str| prop::sample::select(text.split(' ').collect::<Vec<_>>());
        let point = prop_oneof![
            Just(None),
            Just(interface("veth0")),
            Just(interface("eth0")),
            Just(socket(1)),
            Just(socket(2))
        ];
        (
            (name("n1 n2"), 0..3_i32, 0..3_i32, point, 0..2_i32),
            (
                name("10.0.0.1 127.0.0.1 ::1 x"),
                name("10.0.0.2 fe80::1 10.0.0.1"),
            ),
            (name("|a b"), name("|a b"), 0..10_i32),
            (0..1000_u64, 0..3_i64, 0..3_i64),
            (any::<bool>(), prop::sample::select(vec![0_u32, 4, 4, 4, 6])),
        )
            .prop_map(
                |(
                    (node, reporter, direction, point, protocol),
                    ips,
                    uids,
                    (packets, first, length),
                    flags,
                )| {
                    let uid = |uid: &str| uid.replace('|', "");
                    let end = |ip: &str, text: &str| {
                        let mut end = end(ip, 1, &uid(text)).unwrap();
                        end.attribution = uids.2;
                        Some(end)
                    };
                    Flow {
                        node: node.into(),
                        reporter,
                        direction,
                        ip_version: flags.1,
                        protocol: protocol.unsigned_abs(),
                        src: end(ips.0, uids.0),
                        dst: end(ips.1, uids.1),
                        packets,
                        bytes: packets * 7,
                        wire_bytes: packets * 9,
                        point,
                        first: Some(Timestamp {
                            seconds: first,
                            nanos: 0,
                        }),
                        last: Some(Timestamp {
                            seconds: first + length,
                            nanos: 0,
                        }),
                        remainder: flags.0 && packets % 5 == 0,
                        ..Flow::default()
                    }
                },
            )
    }

    /// Packets, bytes, layer 2 bytes and reports of all parts.
    fn sums<'a>(parts: impl Iterator<Item = &'a Counts>) -> (u64, u64, u64, u32) {
        parts.fold((0, 0, 0, 0), |sum, part| {
            (
                sum.0 + part.packets,
                sum.1 + part.bytes,
                sum.2 + part.wire_bytes,
                sum.3 + part.reports,
            )
        })
    }

    proptest! {
        #[test]
        fn every_report_is_in_exactly_one_place(flows in prop::collection::vec(any_flow(), 0..40)) {
            let edges = join(flows.clone());
            let parts = edges.iter().flat_map(|edge| [&edge.sent, &edge.received, &edge.elsewhere].into_iter().flatten());
            let expected = flows.iter().fold((0, 0, 0, 0), |sum, flow| {
                (sum.0 + flow.packets, sum.1 + flow.bytes, sum.2 + flow.wire_bytes, sum.3 + 1)
            });
            prop_assert_eq!(sums(parts), expected);
            // A side is never made of the other side's reports.
            let from_sources: u64 = flows.iter().filter(|flow| reported_by_source(flow)).map(|flow| flow.packets).sum();
            let sent: u64 = edges.iter().filter_map(|edge| edge.sent.as_ref()).map(|counts| counts.packets).sum();
            prop_assert!(sent <= from_sources);
        }

        #[test]
        fn an_edge_has_one_identity(flows in prop::collection::vec(any_flow(), 0..40)) {
            let uids = |flow: &Flow| (flow.src.clone().unwrap().pod_uid, flow.dst.clone().unwrap().pod_uid);
            for a in &flows {
                for b in &flows {
                    let contradict = |x: &str, y: &str| !x.is_empty() && !y.is_empty() && x != y;
                    let ((a_src, a_dst), (b_src, b_dst)) = (uids(a), uids(b));
                    if contradict(&a_src, &b_src) || contradict(&a_dst, &b_dst) {
                        prop_assert_eq!(join([a.clone(), b.clone()]).len(), 2);
                    }
                }
            }
        }

        #[test]
        fn order_of_reports_changes_no_sum(flows in prop::collection::vec(any_flow(), 0..12)) {
            let totals = |flows: Vec<Flow>| {
                let mut totals: Vec<_> = join(flows)
                    .iter()
                    .map(|edge| {
                        let packets = |counts: &Option<Counts>| counts.as_ref().map(|counts| counts.packets);
                        (packets(&edge.sent).unwrap_or_default(), packets(&edge.received).unwrap_or_default())
                    })
                    .collect();
                totals.sort_unstable();
                totals.iter().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
            };
            // Fully known identities: then the answer may not depend on the order.
            let known: Vec<Flow> = flows
                .into_iter()
                .filter(|flow| [&flow.src, &flow.dst].into_iter().flatten().all(|end| !end.pod_uid.is_empty()))
                .collect();
            let turned: Vec<Flow> = known.iter().rev().cloned().collect();
            prop_assert_eq!(totals(known), totals(turned));
        }
    }
}
