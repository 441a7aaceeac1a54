//! The agent's state.

use orb8_proto::v1::{
    AgentStatus, InterfaceStatus, KubernetesStatus, LedgerRow, Limit, ProgramStatus, Setting, State,
    WatchStatus,
};
use prost_types::Duration;
use serde::Serialize;

use super::{
    checks::{self, CheckRecord},
    flow_json, footer,
    table::{Cell, Column, Table},
};
use crate::{
    humanise,
    ledger::{Losses, adds_up},
    sanitise,
    terminal::{Style, Tone},
    timestamp,
};

/// The state for scripts.
#[derive(Debug, Serialize)]
struct StatusRecord<'a> {
    version: &'a str,
    node: &'a str,
    kernel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    uptime_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    history_from: Option<String>,
    flows_active: u64,
    rss_bytes: u64,
    map_bytes: u64,
    cpu_seconds: f64,
    programs: Vec<ProgramRecord<'a>>,
    interfaces: Vec<InterfaceRecord<'a>>,
    ledger: Vec<LedgerRecord<'a>>,
    limits: Vec<LimitRecord<'a>>,
    checks: Vec<CheckRecord<'a>>,
    settings: Vec<SettingRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubernetes: Option<KubernetesRecord<'a>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    transport: String,
}

#[derive(Debug, Serialize)]
struct KubernetesRecord<'a> {
    state: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    server: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    source: &'a str,
    watches: Vec<WatchRecord<'a>>,
}

#[derive(Debug, Serialize)]
struct WatchRecord<'a> {
    resource: &'a str,
    state: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    objects: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_seconds: Option<f64>,
    events: u64,
    restarts: u64,
}

#[derive(Debug, Serialize)]
struct ProgramRecord<'a> {
    family: &'a str,
    name: &'a str,
    state: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    attachments: u32,
    run_count: u64,
    run_time_ns: u64,
}

#[derive(Debug, Serialize)]
struct InterfaceRecord<'a> {
    ifindex: u32,
    name: &'a str,
    state: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mechanism: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    role: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    owner: &'a str,
    interface_rx: u64,
    interface_tx: u64,
    seen_rx: u64,
    seen_tx: u64,
    bypassed: u64,
}

#[derive(Debug, Serialize)]
struct LedgerRecord<'a> {
    family: &'a str,
    stage: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    unit: &'a str,
    seen: u64,
    counted: u64,
    filtered: u64,
    lost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_bytes: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    advice: &'a str,
}

#[derive(Debug, Serialize)]
struct LimitRecord<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    unit: &'a str,
    used: u64,
    max: u64,
    turned_away: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    setting: &'a str,
}

#[derive(Debug, Serialize)]
struct SettingRecord<'a> {
    name: &'a str,
    value: &'a str,
    source: &'a str,
}

/// One object.
pub(crate) fn json(status: &AgentStatus) -> anyhow::Result<String> {
    flow_json::line(&StatusRecord {
        version: &status.version,
        node: &status.node,
        kernel: &status.kernel,
        started: timestamp::rfc3339(status.started.as_ref()),
        uptime_seconds: seconds(status.uptime.as_ref()),
        history_from: timestamp::rfc3339(status.history_from.as_ref()),
        flows_active: status.flows_active,
        rss_bytes: status.rss_bytes,
        map_bytes: status.map_bytes,
        cpu_seconds: seconds(status.cpu.as_ref()),
        programs: status.programs.iter().map(program).collect(),
        interfaces: status.interfaces.iter().map(interface).collect(),
        ledger: status.ledger.iter().map(ledger_row).collect(),
        limits: status.limits.iter().map(limit).collect(),
        checks: checks::records(&status.checks),
        settings: status.settings.iter().map(setting).collect(),
        kubernetes: status.kubernetes.as_ref().map(kubernetes_record),
        transport: sanitise::json(status.transport.clone()),
    })
}

/// Tables: what is attached, what is bounded, what was lost.
pub(crate) fn text(status: &AgentStatus, losses: &Losses, style: &Style) -> String {
    let mut text = format!(
        "orb8-agent {} on {}, kernel {}; up {}, history from {}\n{} active; memory {} + {} in eBPF maps; CPU {}\n",
        sanitise::line(&status.version),
        sanitise::line(&status.node),
        sanitise::line(&status.kernel),
        humanise::seconds(seconds(status.uptime.as_ref())),
        timestamp::date_clock(status.history_from.as_ref()),
        humanise::counted(status.flows_active, "flow", "flows"),
        humanise::bytes(status.rss_bytes),
        humanise::bytes(status.map_bytes),
        humanise::seconds(seconds(status.cpu.as_ref())),
    );
    if !status.transport.is_empty() {
        text.push_str(&format!("asked over: {}\n", sanitise::line(&status.transport)));
    }
    if let Some(kubernetes) = &status.kubernetes {
        text.push_str(&kubernetes_line(kubernetes));
    }
    for (title, table) in [
        ("Cluster", status.kubernetes.as_ref().and_then(watches)),
        ("Programs", programs(&status.programs)),
        ("Interfaces", interfaces(&status.interfaces)),
        ("Limits", limits(&status.limits)),
        (
            "Ledger (seen = counted + filtered + lost)",
            ledger(&status.ledger),
        ),
    ] {
        if let Some(table) = table {
            text.push_str(&format!("\n{}\n", style.paint(title, Tone::Strong)));
            text.push_str(&table.render(Some(style.width), style));
        }
    }
    let troubles: Vec<_> = status
        .checks
        .iter()
        .filter(|check| check.verdict() != orb8_proto::v1::Verdict::Ok)
        .cloned()
        .collect();
    if !troubles.is_empty() {
        text.push_str(&format!("\n{}\n", style.paint("Checks", Tone::Strong)));
        text.push_str(&checks::text(&troubles, style));
    }
    text.push('\n');
    text.push_str(&footer::losses(losses, style));
    text
}

/// The server's own state, before that of its agents.
pub(crate) fn of_server(status: &AgentStatus, style: &Style) -> String {
    let mut text = format!(
        "orb8-server {} on {}; up {}; memory {}; CPU {}\nasked over: {}\n",
        sanitise::line(&status.version),
        sanitise::line(&status.node),
        humanise::seconds(seconds(status.uptime.as_ref())),
        humanise::bytes(status.rss_bytes),
        humanise::seconds(seconds(status.cpu.as_ref())),
        sanitise::line(&status.transport),
    );
    if let Some(kubernetes) = &status.kubernetes {
        text.push_str(&kubernetes_line(kubernetes));
    }
    for (title, table) in [
        ("Cluster", status.kubernetes.as_ref().and_then(watches)),
        ("Limits", limits(&status.limits)),
    ] {
        if let Some(table) = table {
            text.push_str(&format!("\n{}\n", style.paint(title, Tone::Strong)));
            text.push_str(&table.render(Some(style.width), style));
        }
    }
    text.push_str(&format!("\n{}\n", style.paint("Agents", Tone::Strong)));
    text
}

/// A line an agent: is it up, what does it know, what did it lose.
pub(crate) fn overview(answers: &[(String, AgentStatus)], losses: &Losses, style: &Style) -> String {
    let mut table = Table::new([
        Column::workload("AGENT", 10),
        Column::text("VERSION"),
        Column::text("UP"),
        Column::number("FLOWS"),
        Column::number("MEMORY"),
        Column::number("MAPS"),
        Column::text("CLUSTER"),
        Column::text("PROGRAMS"),
        Column::number("LOST"),
    ]);
    for (name, status) in answers {
        let failed = status
            .programs
            .iter()
            .filter(|program| program.state() == State::Failed)
            .count();
        let lost = status
            .ledger
            .iter()
            .map(|row| row.lost)
            .fold(0, u64::saturating_add);
        table.row([
            Cell::new(if status.node.is_empty() {
                name
            } else {
                &status.node
            }),
            Cell::new(&status.version),
            Cell::new(humanise::seconds(seconds(status.uptime.as_ref()))),
            Cell::new(humanise::count(status.flows_active)),
            Cell::new(humanise::bytes(status.rss_bytes)),
            Cell::new(humanise::bytes(status.map_bytes)),
            status
                .kubernetes
                .as_ref()
                .map(|kubernetes| state(kubernetes.state()))
                .unwrap_or_default(),
            match failed {
                0 => Cell::toned("ok", Tone::Good),
                n => Cell::toned(format!("{n} failed"), Tone::Bad),
            },
            Cell::toned(lost.to_string(), if lost > 0 { Tone::Bad } else { Tone::Plain }),
        ]);
    }
    format!(
        "{}\n{}{}",
        table.render(Some(style.width), style),
        "`orb8 status --node NAME` (or one --agent) tells more of one.\n",
        footer::losses(losses, style)
    )
}

/// Whether the agent knows the cluster, and from where.
fn kubernetes_line(kubernetes: &KubernetesStatus) -> String {
    let mut text = format!("cluster: {}", state_name(kubernetes.state()));
    for (word, value) in [("", &kubernetes.server), ("by ", &kubernetes.source)] {
        if !value.is_empty() {
            text.push_str(&format!(", {word}{}", sanitise::line(value)));
        }
    }
    if !kubernetes.reason.is_empty() {
        text.push_str(&format!(": {}", sanitise::line(&kubernetes.reason)));
    }
    text.push('\n');
    text
}

fn watches(kubernetes: &KubernetesStatus) -> Option<Table> {
    let mut table = Table::new([
        Column::text("WATCH"),
        Column::text("STATE"),
        Column::number("OBJECTS"),
        Column::number("AGE"),
        Column::number("EVENTS"),
        Column::number("RESTARTS"),
        Column::name("WHY", 10),
    ]);
    for row in &kubernetes.watches {
        table.row([
            Cell::new(&row.resource),
            state(row.state()),
            Cell::new(humanise::count(row.objects)),
            Cell::new(row.age.map_or_else(
                || "never".to_owned(),
                |age| humanise::seconds(seconds(Some(&age))),
            )),
            Cell::new(humanise::count(row.events)),
            Cell::new(humanise::count(row.restarts)),
            Cell::new(&row.reason),
        ]);
    }
    (!kubernetes.watches.is_empty()).then_some(table)
}

fn kubernetes_record(kubernetes: &KubernetesStatus) -> KubernetesRecord<'_> {
    KubernetesRecord {
        state: state_name(kubernetes.state()),
        reason: &kubernetes.reason,
        server: &kubernetes.server,
        source: &kubernetes.source,
        watches: kubernetes.watches.iter().map(watch).collect(),
    }
}

fn watch(row: &WatchStatus) -> WatchRecord<'_> {
    WatchRecord {
        resource: &row.resource,
        state: state_name(row.state()),
        reason: &row.reason,
        objects: row.objects,
        age_seconds: row.age.as_ref().map(|age| seconds(Some(age))),
        events: row.events,
        restarts: row.restarts,
    }
}

fn programs(rows: &[ProgramStatus]) -> Option<Table> {
    let mut table = Table::new([
        Column::text("PROGRAM"),
        Column::text("STATE"),
        Column::number("ATTACHED"),
        Column::number("NS/RUN"),
        Column::name("WHY", 10),
    ]);
    for row in rows {
        let mean = row
            .run_time_ns
            .checked_div(row.run_count)
            .map(|ns| ns.to_string())
            .unwrap_or_default();
        table.row([
            Cell::new(format!("{}/{}", row.family, row.name)),
            state(row.state()),
            Cell::new(row.attachments.to_string()),
            Cell::new(mean),
            Cell::new(&row.reason),
        ]);
    }
    (!rows.is_empty()).then_some(table)
}

fn interfaces(rows: &[InterfaceStatus]) -> Option<Table> {
    let mut table = Table::new([
        Column::name("INTERFACE", 8),
        Column::text("STATE"),
        Column::text("BY"),
        Column::name("OWNER", 8),
        Column::number("RX"),
        Column::number("SEEN"),
        Column::number("TX"),
        Column::number("SEEN"),
        Column::number("BYPASSED"),
        Column::name("WHY", 6),
    ]);
    for row in rows {
        let tone = if row.bypassed > 0 { Tone::Bad } else { Tone::Plain };
        table.row([
            Cell::new(&row.name),
            state(row.state()),
            Cell::new(&row.mechanism),
            Cell::new(if row.owner.is_empty() {
                &row.role
            } else {
                &row.owner
            }),
            Cell::new(humanise::count(row.interface_rx)),
            Cell::new(humanise::count(row.seen_rx)),
            Cell::new(humanise::count(row.interface_tx)),
            Cell::new(humanise::count(row.seen_tx)),
            Cell::toned(row.bypassed.to_string(), tone),
            Cell::new(&row.reason),
        ]);
    }
    (!rows.is_empty()).then_some(table)
}

fn limits(rows: &[Limit]) -> Option<Table> {
    let mut table = Table::new([
        Column::name("LIMIT", 10),
        Column::number("USED"),
        Column::number("MAX"),
        Column::text("UNIT"),
        Column::number("TURNED-AWAY"),
        Column::name("SETTING", 10),
    ]);
    for row in rows {
        let shown = if row.unit == "bytes" {
            humanise::bytes
        } else {
            humanise::count
        };
        let tone = if row.turned_away > 0 {
            Tone::Bad
        } else {
            Tone::Plain
        };
        table.row([
            Cell::new(&row.name),
            Cell::new(shown(row.used)),
            Cell::new(shown(row.max)),
            Cell::new(&row.unit),
            Cell::toned(row.turned_away.to_string(), tone),
            Cell::new(&row.setting),
        ]);
    }
    (!rows.is_empty()).then_some(table)
}

fn ledger(rows: &[LedgerRow]) -> Option<Table> {
    let mut table = Table::new([
        Column::name("STAGE", 12),
        Column::text("UNIT"),
        Column::number("SEEN"),
        Column::number("COUNTED"),
        Column::number("FILTERED"),
        Column::number("LOST"),
    ]);
    for row in rows {
        let tone = if row.lost > 0 || !adds_up(row) {
            Tone::Bad
        } else {
            Tone::Plain
        };
        table.row([
            Cell::new(format!("{}/{}", row.family, row.stage)),
            Cell::new(&row.unit),
            Cell::new(row.seen.to_string()),
            Cell::new(row.counted.to_string()),
            Cell::new(row.filtered.to_string()),
            Cell::toned(row.lost.to_string(), tone),
        ]);
    }
    (!rows.is_empty()).then_some(table)
}

fn state(state: State) -> Cell {
    let tone = match state {
        State::Active => Tone::Good,
        State::Failed => Tone::Bad,
        State::Off | State::Unspecified => Tone::Dim,
    };
    Cell::toned(state_name(state), tone)
}

fn state_name(state: State) -> String {
    flow_json::short(state.as_str_name(), "STATE_")
}

fn seconds(duration: Option<&Duration>) -> f64 {
    duration.map_or(0.0, |duration| {
        duration.seconds as f64 + f64::from(duration.nanos) / 1e9
    })
}

fn program(row: &ProgramStatus) -> ProgramRecord<'_> {
    ProgramRecord {
        family: &row.family,
        name: &row.name,
        state: state_name(row.state()),
        reason: &row.reason,
        attachments: row.attachments,
        run_count: row.run_count,
        run_time_ns: row.run_time_ns,
    }
}

fn interface(row: &InterfaceStatus) -> InterfaceRecord<'_> {
    InterfaceRecord {
        ifindex: row.ifindex,
        name: &row.name,
        state: state_name(row.state()),
        reason: &row.reason,
        mechanism: &row.mechanism,
        role: &row.role,
        owner: &row.owner,
        interface_rx: row.interface_rx,
        interface_tx: row.interface_tx,
        seen_rx: row.seen_rx,
        seen_tx: row.seen_tx,
        bypassed: row.bypassed,
    }
}

fn ledger_row(row: &LedgerRow) -> LedgerRecord<'_> {
    LedgerRecord {
        family: &row.family,
        stage: &row.stage,
        unit: &row.unit,
        seen: row.seen,
        counted: row.counted,
        filtered: row.filtered,
        lost: row.lost,
        lost_bytes: (row.lost_bytes > 0).then_some(row.lost_bytes),
        advice: &row.advice,
    }
}

fn limit(row: &Limit) -> LimitRecord<'_> {
    LimitRecord {
        name: &row.name,
        unit: &row.unit,
        used: row.used,
        max: row.max,
        turned_away: row.turned_away,
        setting: &row.setting,
    }
}

fn setting(row: &Setting) -> SettingRecord<'_> {
    SettingRecord {
        name: &row.name,
        value: &row.value,
        source: &row.source,
    }
}
