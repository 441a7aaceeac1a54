//! A seccomp profile of the calls that were seen, in the format of the OCI runtime specification, which is that of
//! Kubernetes' `localhostProfile`.

mod runtime;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use orb8_proto::v1::{SyscallAbi, SyscallRow};
use serde::Serialize;

use crate::{ends, syscall};
use runtime::{NEEDED, NEW_NAMESPACES, SET_UP, THREADS};

/// A profile. Its field names are the specification's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Profile {
    default_action: &'static str,
    architectures: Vec<&'static str>,
    syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Rule {
    names: Vec<String>,
    action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Argument>,
}

/// A condition on an argument: `(argument & value) == value_two`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    value_two: u64,
    op: &'static str,
}

/// What a profile rests on, added up row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    names: BTreeSet<String>,
    abis: BTreeSet<i32>,
    /// Calls of all rows.
    pub(crate) calls: u64,
    /// Calls of numbers without a name, by table and number.
    nameless: BTreeMap<String, u64>,
    /// Calls whose kind had no room in the agent.
    pub(crate) unknown: u64,
    /// `namespace/Kind/name`; the names of what is no workload of Kubernetes.
    pub(crate) workloads: BTreeSet<String>,
    /// `namespace/name` of pods.
    pub(crate) pods: BTreeSet<String>,
    /// Containers: node, pod, name.
    containers: BTreeSet<(String, String, String)>,
}

impl Seen {
    /// Adds a row of one container and call.
    pub(crate) fn add(&mut self, row: &SyscallRow) {
        if row.count == 0 {
            return;
        }
        self.calls = self.calls.saturating_add(row.count);
        let owner = row.owner.clone().unwrap_or_default();
        let pod = if owner.pod.is_empty() {
            String::new()
        } else {
            ends::qualified(&owner.namespace, &owner.pod)
        };
        let name = syscall::owner(row.owner.as_ref()).unwrap_or_else(|| "(unknown)".to_owned());
        self.workloads
            .insert(match (pod.is_empty(), owner.workload.is_empty()) {
                (false, false) => ends::qualified(&owner.namespace, &owner.workload),
                // A pod of no workload stands for itself.
                (false, true) => pod.clone(),
                (true, _) => name.clone(),
            });
        let container = if pod.is_empty() { name } else { owner.container };
        self.containers.insert((row.node.clone(), pod.clone(), container));
        if !pod.is_empty() {
            self.pods.insert(pod);
        }
        let bucket = if row.syscall.is_empty() || row.syscall == syscall::OTHER {
            &mut self.unknown
        } else if row.syscall.starts_with('#') {
            self.nameless
                .entry(syscall::call(&row.syscall, row.abi()))
                .or_default()
        } else {
            self.names.insert(row.syscall.clone());
            self.abis.insert(row.abi);
            return;
        };
        *bucket = bucket.saturating_add(row.count);
    }

    /// How many different calls were seen.
    pub(crate) fn kinds(&self) -> usize {
        self.names.len()
    }

    /// How many containers (or units) called.
    pub(crate) fn containers(&self) -> usize {
        self.containers.len()
    }

    /// Names of the pods' containers.
    pub(crate) fn container_names(&self) -> BTreeSet<&str> {
        self.containers
            .iter()
            .map(|(_, _, container)| container.as_str())
            .filter(|name| !name.is_empty())
            .collect()
    }

    /// How many calls were not seen, and are allowed since a container's start needs them.
    pub(crate) fn added(&self) -> usize {
        NEEDED
            .iter()
            .map(|(name, _)| *name)
            .chain([THREADS])
            .filter(|name| !self.names.contains(*name))
            .count()
    }

    /// Whether calls were made that the profile cannot allow.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.unknown > 0 || !self.nameless.is_empty()
    }

    /// What the reader must know of the profile, a sentence each.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut numbers = String::new();
        for (name, count) in &self.nameless {
            let _ = write!(
                numbers,
                "{}{name} ({count} calls)",
                if numbers.is_empty() { "" } else { ", " }
            );
        }
        if !numbers.is_empty() {
            notes.push(format!(
                "numbers without a name are not in the profile: {numbers}; a kernel that does not know them fails \
                 them anyway"
            ));
        }
        if self.unknown > 0 {
            notes.push(format!(
                "{} calls are of kinds that had no room in the agent, and may not be in the profile: watch again \
                 with fewer callers, or raise the agent's limits (`orb8 status`)",
                self.unknown
            ));
        }
        let set_up: Vec<&str> = SET_UP
            .iter()
            .copied()
            .filter(|name| self.names.contains(*name))
            .collect();
        if !set_up.is_empty() && !self.pods.is_empty() {
            notes.push(format!(
                "it allows {}: a runtime calls these in a container's cgroup to set it up, before a profile holds; \
                 unless the workload itself needs them (`orb8 trace syscalls` tells who calls), take them out",
                set_up.join(", ")
            ));
        }
        for abi in self.abis.iter().filter_map(|abi| SyscallAbi::try_from(*abi).ok()) {
            if let (SyscallAbi::I386 | SyscallAbi::X32 | SyscallAbi::Arm, Some(name)) =
                (abi, syscall::abi_name(abi))
            {
                notes.push(format!(
                    "{name} calls were made: the profile allows that architecture too, and each name on all of its \
                     architectures"
                ));
            }
        }
        notes
    }

    /// The profile that allows what was seen, and what a container's start needs; `log`: what else is called is only
    /// logged. None if nothing was seen.
    pub(crate) fn profile(&self, log: bool) -> Option<Profile> {
        if self.names.is_empty() {
            return None;
        }
        let mut names = self.names.clone();
        names.extend(NEEDED.iter().map(|(name, _)| (*name).to_owned()));
        let allow = "SCMP_ACT_ALLOW";
        let mut syscalls = Vec::new();
        let threads = !names.contains(THREADS);
        syscalls.push(Rule {
            names: names.into_iter().collect(),
            action: allow,
            args: Vec::new(),
        });
        if threads {
            syscalls.push(Rule {
                names: vec![THREADS.to_owned()],
                action: allow,
                args: vec![Argument {
                    index: 0,
                    value: NEW_NAMESPACES,
                    value_two: 0,
                    op: "SCMP_CMP_MASKED_EQ",
                }],
            });
        }
        Some(Profile {
            default_action: if log { "SCMP_ACT_LOG" } else { "SCMP_ACT_ERRNO" },
            architectures: self.architectures(),
            syscalls,
        })
    }

    /// The machine's architecture, and those of other tables that were used.
    fn architectures(&self) -> Vec<&'static str> {
        let used = |abi: SyscallAbi| self.abis.contains(&i32::from(abi));
        let arm = used(SyscallAbi::Arm64) || used(SyscallAbi::Arm);
        let mut architectures = vec![if arm {
            "SCMP_ARCH_AARCH64"
        } else {
            "SCMP_ARCH_X86_64"
        }];
        for (abi, name) in [
            (SyscallAbi::I386, "SCMP_ARCH_X86"),
            (SyscallAbi::X32, "SCMP_ARCH_X32"),
            (SyscallAbi::Arm, "SCMP_ARCH_ARM"),
        ] {
            if used(abi) {
                architectures.push(name);
            }
        }
        // On a mixed cluster, one profile serves all its nodes.
        if arm && (used(SyscallAbi::X8664) || used(SyscallAbi::I386) || used(SyscallAbi::X32)) {
            architectures.insert(0, "SCMP_ARCH_X86_64");
        }
        architectures
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::Endpoint;

    use super::*;

    fn row(workload: &str, pod: &str, syscall: &str, abi: SyscallAbi) -> SyscallRow {
        SyscallRow {
            owner: Some(Endpoint {
                namespace: "shop".into(),
                pod: pod.into(),
                container: "c".into(),
                workload: workload.into(),
                ..Endpoint::default()
            }),
            syscall: syscall.into(),
            abi: abi.into(),
            count: 3,
            ..SyscallRow::default()
        }
    }

    fn seen(rows: &[SyscallRow]) -> Seen {
        let mut seen = Seen::default();
        rows.iter().for_each(|row| seen.add(row));
        seen
    }

    #[test]
    fn nothing_seen_is_no_profile() {
        assert_eq!(Seen::default().profile(false), None);
        let nameless = seen(&[
            row("d", "p", "#999", SyscallAbi::X8664),
            row("d", "p", "other", SyscallAbi::X8664),
        ]);
        assert_eq!(nameless.profile(false), None);
        let zero = SyscallRow {
            count: 0,
            ..row("d", "p", "read", SyscallAbi::X8664)
        };
        assert_eq!(seen(&[zero]).profile(false), None);
    }

    #[test]
    fn the_format_is_the_specification_s() {
        let seen = seen(&[
            row("Deployment/a", "a-1", "accept4", SyscallAbi::X8664),
            row("Deployment/a", "a-1", "accept4", SyscallAbi::X8664),
        ]);
        let json = serde_json::to_value(seen.profile(false).unwrap()).unwrap();
        assert_eq!(json["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(json["architectures"], serde_json::json!(["SCMP_ARCH_X86_64"]));
        let names: Vec<&str> = json["syscalls"][0]["names"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        assert!(names.is_sorted() && names.contains(&"accept4") && names.contains(&"capset"));
        assert_eq!(names.len(), NEEDED.len() + 1);
        assert_eq!(json["syscalls"][0].get("args"), None);
        assert_eq!(
            json["syscalls"][1],
            serde_json::json!({
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            })
        );
        assert_eq!((seen.kinds(), seen.containers(), seen.calls), (1, 1, 6));
    }

    #[test]
    fn a_clone_that_was_seen_is_allowed_as_it_was() {
        let profile = seen(&[row("d", "p", "clone", SyscallAbi::Arm64)])
            .profile(true)
            .unwrap();
        assert_eq!(profile.default_action, "SCMP_ACT_LOG");
        assert_eq!(profile.syscalls.len(), 1);
        assert_eq!(profile.architectures, ["SCMP_ARCH_AARCH64"]);
    }

    #[test]
    fn other_tables_and_numbers_are_said() {
        let seen = seen(&[
            row("d", "p", "read", SyscallAbi::X8664),
            row("d", "p", "mmap2", SyscallAbi::I386),
            row("d", "p", "#999", SyscallAbi::I386),
            row("d", "p", "other", SyscallAbi::X8664),
        ]);
        let profile = seen.profile(false).unwrap();
        assert_eq!(profile.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
        assert!(profile.syscalls[0].names.contains(&"mmap2".to_owned()));
        assert!(!profile.syscalls[0].names.iter().any(|name| name.starts_with('#')));
        let notes = seen.notes().join("\n");
        for expected in [
            "i386:#999 (3 calls)",
            "3 calls are of kinds",
            "i386 calls were made",
        ] {
            assert!(notes.contains(expected), "{notes}");
        }
        assert!(seen.is_incomplete());
    }

    #[test]
    fn what_a_runtime_calls_to_set_up_is_said() {
        let seen = seen(&[
            row("d", "p", "mount", SyscallAbi::X8664),
            row("d", "p", "read", SyscallAbi::X8664),
        ]);
        let notes = seen.notes();
        assert!(
            notes.len() == 1 && notes[0].starts_with("it allows mount: "),
            "{notes:?}"
        );
    }

    #[test]
    fn workloads_are_told_apart() {
        let mut unit = row("", "", "read", SyscallAbi::X8664);
        unit.owner = Some(Endpoint {
            unit: "nginx.service".into(),
            ..Endpoint::default()
        });
        let seen = seen(&[
            row("Deployment/a", "a-1", "read", SyscallAbi::X8664),
            row("Deployment/a", "a-2", "read", SyscallAbi::X8664),
            row("", "alone", "read", SyscallAbi::X8664),
            unit,
        ]);
        assert_eq!(
            seen.workloads.iter().map(String::as_str).collect::<Vec<_>>(),
            ["nginx.service", "shop/Deployment/a", "shop/alone"]
        );
        assert_eq!((seen.pods.len(), seen.containers()), (3, 4));
    }
}
