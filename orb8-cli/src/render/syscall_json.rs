//! A row of system calls as JSON: the contract with scripts. Fields are only ever added; unknown ones are left out.

use std::collections::BTreeMap;

use orb8_proto::v1::{Endpoint, SyscallAbi, SyscallChange, SyscallEvent, SyscallKind, SyscallRow};
use serde::Serialize;

use super::{flow_json, syscall_table::number};
use crate::{
    query::syscall::{UNBOUNDED, seconds},
    syscall, timestamp,
};

/// One row, in the order in which its fields are written.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct SyscallRecord {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) node: String,
    #[serde(flatten)]
    pub(crate) owner: OwnerRecord,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) syscall: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) abi: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) number: Option<i64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) category: String,
    pub(crate) count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) returned: Option<u64>,
    /// By name; none: not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) errors: Option<BTreeMap<String, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<String>,
    /// By class.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) waits: BTreeMap<String, WaitRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) change: Option<ChangeRecord>,
}

/// Who called.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct OwnerRecord {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) pod_uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) container: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) workload: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) unit: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) process: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) cgroup: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attribution: Option<String>,
}

/// Time in calls of one class.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct WaitRecord {
    pub(crate) total_ns: u64,
    pub(crate) count: u64,
}

/// A verdict, with the numbers that it rests on.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ChangeRecord {
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watched_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<String>,
    /// Calls a second.
    pub(crate) rate: f64,
    pub(crate) mean_rate: f64,
    pub(crate) deviation: f64,
    pub(crate) score: f64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) explanation: String,
}

/// One event, in the order in which its fields are written.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct EventRecord {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    event: &'static str,
    /// Calls that it stands for, where they are sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    node: String,
    #[serde(flatten)]
    owner: OwnerRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    comm: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    syscall: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    abi: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    arguments: Vec<ArgumentRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<ChangeRecord>,
}

#[derive(Clone, Debug, Serialize)]
struct ArgumentRecord {
    name: String,
    value: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

impl From<&SyscallRow> for SyscallRecord {
    fn from(row: &SyscallRow) -> Self {
        let measured = syscall::is_measured(row);
        Self {
            node: row.node.clone(),
            owner: OwnerRecord::from(row.owner.as_ref()),
            syscall: row.syscall.clone(),
            abi: abi(&row.syscall, row.abi()),
            number: number(row),
            category: row.category.clone(),
            count: row.count,
            returned: measured.then_some(row.returned),
            errors: measured.then(|| row.errors.clone().into_iter().collect()),
            total_ns: row.total_ns,
            p50_ns: row.p50_ns.filter(|ns| *ns != UNBOUNDED),
            p99_ns: row.p99_ns.filter(|ns| *ns != UNBOUNDED),
            first: timestamp::rfc3339(row.first.as_ref()),
            last: timestamp::rfc3339(row.last.as_ref()),
            waits: row
                .waits
                .iter()
                .map(|wait| {
                    let record = WaitRecord {
                        total_ns: wait.total_ns,
                        count: wait.count,
                    };
                    (wait.class.clone(), record)
                })
                .collect(),
            change: row.change.as_ref().map(ChangeRecord::from),
        }
    }
}

impl From<Option<&Endpoint>> for OwnerRecord {
    /// Nothing, if nothing is known of it or all is summed over.
    fn from(owner: Option<&Endpoint>) -> Self {
        let Some(owner) = owner.filter(|owner| **owner != Endpoint::default()) else {
            return Self::default();
        };
        Self {
            namespace: owner.namespace.clone(),
            pod: owner.pod.clone(),
            container: owner.container.clone(),
            pod_uid: owner.pod_uid.clone(),
            workload: owner.workload.clone(),
            unit: owner.unit.clone(),
            process: owner.process.clone(),
            cgroup: owner.cgroup.clone(),
            attribution: Some(flow_json::attribution(owner.attribution())),
        }
    }
}

impl From<&SyscallChange> for ChangeRecord {
    fn from(change: &SyscallChange) -> Self {
        Self {
            kind: match change.kind() {
                SyscallKind::New => "new",
                SyscallKind::Anomalies => "anomaly",
                SyscallKind::All => "unknown",
            },
            watched_seconds: change.watched.as_ref().map(seconds),
            time: timestamp::rfc3339(change.time.as_ref()),
            rate: change.rate,
            mean_rate: change.mean_rate,
            deviation: change.deviation,
            score: change.score,
            explanation: change.explanation.clone(),
        }
    }
}

impl From<&SyscallEvent> for EventRecord {
    fn from(event: &SyscallEvent) -> Self {
        let change = event.change.as_ref().map(ChangeRecord::from);
        Self {
            time: timestamp::rfc3339(event.time.as_ref()),
            event: change.as_ref().map_or("syscall", |change| change.kind),
            weight: (event.weight > 1).then_some(event.weight),
            node: event.node.clone(),
            owner: OwnerRecord::from(event.owner.as_ref()),
            pid: (event.pid != 0).then_some(event.pid),
            tid: (event.tid != 0).then_some(event.tid),
            comm: event.comm.clone(),
            syscall: event.syscall.clone(),
            abi: abi(&event.syscall, event.abi()),
            arguments: event
                .arguments
                .iter()
                .map(|argument| ArgumentRecord {
                    name: argument.name.clone(),
                    value: argument.value.clone(),
                    truncated: argument.truncated,
                })
                .collect(),
            change,
        }
    }
}

/// Of a row that sums over calls, or over kinds of them, none.
fn abi(syscall: &str, abi: SyscallAbi) -> Option<&'static str> {
    syscall::abi_name(abi).filter(|_| !syscall.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sanitise;

    #[test]
    fn only_what_is_known_is_written() {
        let sum = SyscallRow {
            count: 5,
            abi: SyscallAbi::X8664.into(),
            ..SyscallRow::default()
        };
        assert_eq!(
            flow_json::line(&SyscallRecord::from(&sum)).unwrap(),
            "{\"count\":5}\n"
        );
        let read = SyscallRow {
            syscall: "read".into(),
            total_ns: Some(0),
            ..sum
        };
        assert_eq!(
            flow_json::line(&SyscallRecord::from(&read)).unwrap(),
            "{\"syscall\":\"read\",\"abi\":\"x86_64\",\"number\":0,\"count\":5,\"returned\":0,\"errors\":{},\"total_ns\":0}\n"
        );
    }

    #[test]
    fn hostile_names_stay_data() {
        let event = SyscallEvent {
            comm: "\x1b[2J\u{202e}".into(),
            ..SyscallEvent::default()
        };
        let text = flow_json::line(&EventRecord::from(&event)).unwrap();
        assert!(!text.trim_end().contains(sanitise::is_hostile));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["comm"], "\x1b[2J\u{202e}");
    }
}
