//! Pods, and what is known of each.

use orb8_proto::v1::{ContainerStatus, PodHealth, PodInterface, PodStatus};
use serde::Serialize;

use super::{
    flow_json,
    table::{Cell, Column, Table},
};
use crate::{
    command::Told,
    ends, humanise, sanitise,
    terminal::{Style, Tone},
    timestamp,
};

/// Where nothing was found.
const NONE: &str = "-";

/// The table that fits the terminal.
pub(crate) fn narrow(rows: &[Told], style: &Style) -> String {
    let mut table = Table::new([
        Column::workload("POD", 16),
        Column::name("NODE", 6),
        Column::name("IP", 10),
        Column::name("INTERFACE", 9),
        Column::text("CONTAINERS"),
        Column::number("BYTES"),
        Column::text("HEALTH"),
    ]);
    for (node, pod) in rows {
        let ip = match pod.ips.as_slice() {
            [] => NONE.to_owned(),
            [ip] => ip.clone(),
            [ip, more @ ..] => format!("{ip} +{}", more.len()),
        };
        table.row([
            Cell::new(ends::qualified(&pod.namespace, &pod.name)),
            Cell::new(node),
            Cell::new(ip),
            Cell::new(interfaces(pod)),
            Cell::new(containers_known(pod)),
            Cell::new(humanise::bytes(pod.bytes)),
            health(pod),
        ]);
    }
    table.render(Some(style.width), style)
}

/// The table with all columns, however wide.
pub(crate) fn wide(rows: &[Told], style: &Style) -> String {
    let mut table = Table::new([
        Column::text("POD"),
        Column::text("WORKLOAD"),
        Column::text("NODE"),
        Column::text("PHASE"),
        Column::text("QOS"),
        Column::text("STARTED"),
        Column::text("IPS"),
        Column::text("INTERFACES"),
        Column::text("NETNS"),
        Column::text("CONTAINERS"),
        Column::text("CGROUPS"),
        Column::number("BYTES"),
        Column::number("PACKETS"),
        Column::text("HEALTH"),
        Column::text("REASON"),
    ]);
    for (node, pod) in rows {
        let containers: Vec<String> = pod
            .containers
            .iter()
            .map(|container| match container.state.as_str() {
                "running" | "" => container.name.clone(),
                state => format!("{} ({state})", container.name),
            })
            .collect();
        let cgroups: Vec<&str> = pod
            .containers
            .iter()
            .map(|container| {
                if container.cgroup.is_empty() {
                    NONE
                } else {
                    &container.cgroup
                }
            })
            .collect();
        table.row([
            Cell::new(ends::qualified(&pod.namespace, &pod.name)),
            Cell::new(&pod.workload),
            Cell::new(node),
            Cell::new(&pod.phase),
            Cell::new(&pod.qos_class),
            Cell::new(timestamp::date_clock(pod.started.as_ref())),
            Cell::new(pod.ips.join(",")),
            Cell::new(interfaces(pod)),
            Cell::new(netns(pod)),
            Cell::new(containers.join(",")),
            Cell::new(cgroups.join(",")),
            Cell::new(pod.bytes.to_string()),
            Cell::new(pod.packets.to_string()),
            health(pod),
            Cell::new(&pod.reason),
        ]);
    }
    table.render(None, style)
}

/// Why pods have a gap, or wait, a line each.
pub(crate) fn reasons(rows: &[Told], style: &Style) -> String {
    let mut text = String::new();
    for (_, pod) in rows.iter().filter(|(_, pod)| !pod.reason.is_empty()) {
        let tone = match pod.health() {
            PodHealth::Gap => Tone::Bad,
            PodHealth::Waiting => Tone::Warn,
            PodHealth::Ok | PodHealth::Ended | PodHealth::Unspecified => continue,
        };
        let name = ends::qualified(&pod.namespace, &pod.name);
        let line = format!("! {}: {}", sanitise::line(&name), sanitise::line(&pod.reason));
        text.push_str(&format!("{}\n", style.paint(&line, tone)));
    }
    text
}

fn health(pod: &PodStatus) -> Cell {
    match pod.health() {
        PodHealth::Ok => Cell::toned("ok", Tone::Good),
        PodHealth::Waiting => Cell::toned("waiting", Tone::Warn),
        PodHealth::Ended => Cell::toned("ended", Tone::Dim),
        PodHealth::Gap => Cell::toned("GAP", Tone::Bad),
        PodHealth::Unspecified => Cell::new("?"),
    }
}

/// `veth1a2b`, `host`, or `(veth1a2b)` where it is known and not observed.
fn interfaces(pod: &PodStatus) -> String {
    if pod.host_network {
        return "host".to_owned();
    }
    if pod.interfaces.is_empty() {
        return NONE.to_owned();
    }
    let names: Vec<String> = pod
        .interfaces
        .iter()
        .map(|interface| {
            if interface.observed {
                interface.name.clone()
            } else {
                format!("({})", interface.name)
            }
        })
        .collect();
    names.join(",")
}

fn netns(pod: &PodStatus) -> String {
    match pod.netns_inode {
        _ if pod.host_network => "host".to_owned(),
        0 => NONE.to_owned(),
        inode => inode.to_string(),
    }
}

/// How many of the running containers have a cgroup that was found: `2/2`.
fn containers_known(pod: &PodStatus) -> String {
    let running = pod
        .containers
        .iter()
        .filter(|container| container.state == "running");
    let (all, known) = running.fold((0, 0), |(all, known), container| {
        (
            all + 1,
            known + u32::from(container.cgroup_id != 0 || !container.cgroup.is_empty()),
        )
    });
    format!("{known}/{all}")
}

#[derive(Debug, Serialize)]
struct PodRecord<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    namespace: &'a str,
    pod: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    phase: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    qos_class: &'a str,
    host_network: bool,
    ips: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    interfaces: Vec<InterfaceRecord<'a>>,
    containers: Vec<ContainerRecord<'a>>,
    health: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    packets: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct InterfaceRecord<'a> {
    name: &'a str,
    ifindex: u32,
    observed: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

#[derive(Debug, Serialize)]
struct ContainerRecord<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(rename = "type", skip_serializing_if = "str::is_empty")]
    kind: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    state: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    cgroup: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_id: Option<u64>,
}

/// One pod as a line of JSON.
pub(crate) fn json(node: &str, pod: &PodStatus) -> anyhow::Result<String> {
    flow_json::line(&PodRecord {
        node,
        namespace: &pod.namespace,
        pod: &pod.name,
        uid: &pod.uid,
        workload: &pod.workload,
        phase: &pod.phase,
        qos_class: &pod.qos_class,
        host_network: pod.host_network,
        ips: &pod.ips,
        started: timestamp::rfc3339(pod.started.as_ref()),
        netns: (pod.netns_inode != 0).then_some(pod.netns_inode),
        interfaces: pod.interfaces.iter().map(interface).collect(),
        containers: pod.containers.iter().map(container).collect(),
        health: flow_json::short(pod.health().as_str_name(), "POD_HEALTH_"),
        reason: &pod.reason,
        packets: pod.packets,
        bytes: pod.bytes,
    })
}

fn interface(interface: &PodInterface) -> InterfaceRecord<'_> {
    InterfaceRecord {
        name: &interface.name,
        ifindex: interface.ifindex,
        observed: interface.observed,
        reason: &interface.reason,
    }
}

fn container(container: &ContainerStatus) -> ContainerRecord<'_> {
    ContainerRecord {
        name: &container.name,
        id: &container.id,
        kind: &container.r#type,
        state: &container.state,
        cgroup: &container.cgroup,
        cgroup_id: (container.cgroup_id != 0).then_some(container.cgroup_id),
    }
}
