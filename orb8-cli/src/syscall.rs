//! What system calls, their callers and the agents' modes are called.

use orb8_proto::v1::{Endpoint, SyscallAbi, SyscallMode, SyscallRow};

use crate::ends;

/// Name of calls whose kind had no room in the agent.
pub(crate) const OTHER: &str = "other";

/// Classes of waits, in the order in which they are shown.
pub(crate) const WAITS: [&str; 6] = ["network", "disk", "futex", "poll", "sleep", "other"];

/// The caller's name, as far as the answer keeps it apart: `shop/cart-0 (server)`, `nginx.service`,
/// `shop/Deployment/cart`.
pub(crate) fn owner(owner: Option<&Endpoint>) -> Option<String> {
    let owner = owner?;
    if owner.pod.is_empty() && !owner.namespace.is_empty() && !owner.workload.is_empty() {
        return Some(ends::qualified(&owner.namespace, &owner.workload));
    }
    ends::full_name(owner)
}

/// The call's name, with its table in front where it is not the machine's own: `openat`, `i386:openat`; nothing if the
/// row is a sum over calls.
pub(crate) fn call(name: &str, abi: SyscallAbi) -> String {
    match (abi, abi_name(abi)) {
        (SyscallAbi::I386 | SyscallAbi::X32 | SyscallAbi::Arm, Some(abi)) if !name.is_empty() => {
            format!("{abi}:{name}")
        }
        _ => name.to_owned(),
    }
}

/// The table's name, if it is known.
pub(crate) const fn abi_name(abi: SyscallAbi) -> Option<&'static str> {
    match abi {
        SyscallAbi::Unspecified => None,
        SyscallAbi::X8664 => Some("x86_64"),
        SyscallAbi::I386 => Some("i386"),
        SyscallAbi::X32 => Some("x32"),
        SyscallAbi::Arm64 => Some("arm64"),
        SyscallAbi::Arm => Some("arm"),
    }
}

/// The mode, as it is typed.
pub(crate) const fn mode_name(mode: SyscallMode) -> &'static str {
    match mode {
        SyscallMode::Unspecified => "unknown",
        SyscallMode::Off => "off",
        SyscallMode::Counts => "counts",
        SyscallMode::Latency => "latency",
    }
}

/// Whether errors and times of the row's calls were measured.
pub(crate) fn is_measured(row: &SyscallRow) -> bool {
    row.total_ns.is_some() || row.returned > 0 || row.failed > 0 || !row.waits.is_empty()
}

/// The row's errors, the most frequent first, then by name.
pub(crate) fn errors(row: &SyscallRow) -> Vec<(&str, u64)> {
    let mut errors: Vec<_> = row
        .errors
        .iter()
        .map(|(name, count)| (name.as_str(), *count))
        .collect();
    errors.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    errors
}

/// Time that was spent in waits of this class, and calls.
pub(crate) fn wait(row: &SyscallRow, class: &str) -> Option<(u64, u64)> {
    row.waits
        .iter()
        .find(|wait| wait.class == class)
        .map(|wait| (wait.total_ns, wait.count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_have_the_name_that_the_grouping_left_them() {
        let named = |namespace: &str, pod: &str, container: &str, workload: &str| {
            owner(Some(&Endpoint {
                namespace: namespace.into(),
                pod: pod.into(),
                container: container.into(),
                workload: workload.into(),
                ..Endpoint::default()
            }))
        };
        assert_eq!(
            named("shop", "cart-0", "server", "StatefulSet/cart").unwrap(),
            "shop/cart-0 (server)"
        );
        assert_eq!(
            named("shop", "", "", "StatefulSet/cart").unwrap(),
            "shop/StatefulSet/cart"
        );
        assert_eq!(named("", "", "", ""), None);
        assert_eq!(owner(None), None);
    }

    #[test]
    fn other_tables_than_the_machine_s_are_told() {
        assert_eq!(call("openat", SyscallAbi::X8664), "openat");
        assert_eq!(call("openat", SyscallAbi::I386), "i386:openat");
        assert_eq!(call("", SyscallAbi::I386), "");
    }
}
