//! What is kept of calls: history, totals and baselines, fed interval by interval.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    baseline::{Baseline, Verdict},
    call::Call,
    history::{CallHistory, Key, Record},
    totals::{CallTotals, Counted},
    workload::Workload,
};
use crate::{
    identity::owner::{Owner, OwnerId, OwnerTable},
    store::Labels,
};

/// So many intervals counts wait for the name of their pod, before they are filed as they are.
const HOLD: u32 = 5;

/// Everything that is kept of calls.
#[derive(Debug)]
pub(crate) struct SyscallStore {
    pub(crate) history: CallHistory,
    pub(crate) totals: CallTotals,
    pub(crate) baseline: Baseline,
    /// Counts of owners that may get a name soon, with the first one's interval. Bounded by the owners of [`HOLD`] intervals.
    waiting: HashMap<OwnerId, (Counted, u32)>,
    /// Pods get names from an API server.
    kubernetes: bool,
    /// This node's name, once the API server has told of it.
    own_node: Option<Arc<str>>,
    /// Calls of other nodes' pods, left out.
    elsewhere: u64,
    seq: u32,
}

impl SyscallStore {
    pub(crate) fn new(
        history: CallHistory,
        totals: CallTotals,
        baseline: Baseline,
        kubernetes: bool,
    ) -> Self {
        Self {
            history,
            totals,
            baseline,
            waiting: HashMap::new(),
            kubernetes,
            own_node: None,
            elsewhere: 0,
            seq: 0,
        }
    }

    /// Says which node this is, where it is one of a cluster's.
    pub(crate) fn set_own_node(&mut self, node: Option<&str>) {
        if self.own_node.as_deref() != node {
            self.own_node = node.map(Arc::from);
        }
    }

    /// Whether an owner is a pod of another node. The programs see all calls of a kernel, and nodes may share one: those of
    /// a cluster in containers do. Its own agent tells of it.
    pub(crate) fn is_elsewhere(&self, owner: &Owner) -> bool {
        match (&self.own_node, owner.named_pod()) {
            (Some(own), Some(pod)) => !pod.node.is_empty() && *pod.node != **own,
            _ => false,
        }
    }

    /// Calls of other nodes' pods, which are left out.
    pub(crate) const fn elsewhere(&self) -> u64 {
        self.elsewhere
    }

    /// Counts calls that are left out.
    pub(crate) fn leave_out(&mut self, count: u64) {
        self.elsewhere = self.elsewhere.saturating_add(count);
    }

    /// The record of the open interval to add to.
    pub(crate) fn record(&mut self, owner: OwnerId, call: Call) -> &mut Record {
        self.history.record(owner, call)
    }

    /// Ends an interval at `to_ns` (Unix time); what it changed. `measured`: whether how calls ended was measured in it.
    pub(crate) fn commit(&mut self, to_ns: u64, measured: bool, owners: &OwnerTable) -> Vec<Verdict> {
        self.seq = self.seq.wrapping_add(1);
        let mut by_owner = std::mem::take(&mut self.waiting);
        for (owner, counted) in group(&self.history.commit(to_ns, measured)) {
            by_owner
                .entry(owner)
                .or_insert_with(|| (Counted::default(), self.seq))
                .0
                .append(counted);
        }
        for (id, (counted, first)) in by_owner {
            let owner = owners.get(id);
            if self.may_be_named(&owner) && self.seq.saturating_sub(first) < HOLD {
                self.waiting.insert(id, (counted, first));
                continue;
            }
            if self.is_elsewhere(&owner) {
                // It got its name too late to be left out at once; answers leave it out.
                self.leave_out(counted.calls.iter().map(|(_, count)| count).sum());
                continue;
            }
            self.totals.add(&owner, &counted, self.seq);
            self.baseline.add(&Workload::of(&owner), &counted.calls, to_ns);
        }
        self.baseline.end_interval(to_ns)
    }

    fn may_be_named(&self, owner: &Owner) -> bool {
        self.kubernetes && owner.pod.is_some() && owner.named_pod().is_none()
    }

    /// Drops the totals of owners that have ended and been quiet.
    pub(crate) fn remove_ended(&mut self, ended: impl FnMut(&Labels) -> bool) {
        self.totals.remove_ended(self.seq, ended);
    }

    /// Whether something here names an owner.
    pub(crate) fn names(&self, owner: OwnerId) -> bool {
        self.history.names(owner) || self.waiting.contains_key(&owner)
    }
}

fn group(records: &BTreeMap<Key, Record>) -> HashMap<OwnerId, Counted> {
    let mut grouped = HashMap::<OwnerId, Counted>::new();
    for (key, record) in records {
        let counted = grouped.entry(key.owner).or_default();
        if record.count > 0 {
            counted.calls.push((key.call, record.count));
        }
        if let Some(measured) = &record.measured {
            counted.errors.extend(&measured.errors);
        }
    }
    grouped
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;
    use crate::{
        identity::owner::PodName,
        syscalls::{baseline::BaselineLimits, history::CallHistoryLimits},
    };

    fn pod(full: &str) -> Owner {
        Owner {
            pod: Some(Arc::new(PodName {
                uid: "u".to_owned(),
                full: full.to_owned(),
                workload: "Deployment/cart".to_owned(),
                ..PodName::default()
            })),
            ..Owner::default()
        }
    }

    fn store() -> SyscallStore {
        let limits = CallHistoryLimits {
            span: Duration::from_secs(300),
            bytes: 1 << 20,
        };
        SyscallStore::new(
            CallHistory::new(limits, 0),
            CallTotals::new(1000, 300, BTreeSet::new()),
            Baseline::new(BaselineLimits::default(), 0),
            true,
        )
    }

    #[test]
    fn counts_wait_for_the_name_of_their_pod() {
        let mut store = store();
        let mut owners = OwnerTable::new(10);
        let id = owners.intern(pod(""));
        let call = Call::parse("read").unwrap()[0];
        for second in 1..=2 {
            store.record(id, call).count += 1;
            store.commit(second * 1_000_000_000, false, &owners);
        }
        assert!(store.totals.calls().is_empty() && store.names(id));
        owners.rename(id, pod("shop/cart-1"));
        store.commit(3_000_000_000, false, &owners);
        let series = store.totals.calls();
        assert_eq!((series.len(), series[0].count), (1, 2));
        assert_eq!(series[0].labels.pod, "cart-1");
        let workload = Workload::of(&pod("shop/cart-1"));
        assert_eq!(workload.to_string(), "shop/Deployment/cart");
        assert!(store.baseline.watched(&workload).is_some());
        // One that never gets a name is filed as it is.
        let nameless = owners.intern(Owner {
            container: "x".to_owned(),
            ..pod("")
        });
        store.record(nameless, call).count += 1;
        for second in 4..=9 {
            store.commit(second * 1_000_000_000, false, &owners);
        }
        assert_eq!(store.totals.calls().len(), 2);
    }

    #[test]
    fn other_nodes_pods_are_left_out() {
        let mut store = store();
        let on = |full: &str, node: &str| Owner {
            pod: Some(Arc::new(PodName {
                uid: full.to_owned(),
                full: full.to_owned(),
                node: node.to_owned(),
                ..PodName::default()
            })),
            ..Owner::default()
        };
        let far = on("shop/far", "n2");
        // A node that the API server does not know is no ground to leave anything out.
        assert!(!store.is_elsewhere(&far));
        store.set_own_node(Some("n1"));
        assert!(store.is_elsewhere(&far));
        for near in [
            on("shop/near", "n1"),
            on("shop/new", ""),
            pod(""),
            Owner::default(),
        ] {
            assert!(!store.is_elsewhere(&near), "{near:?}");
        }
        // Counted before it had its name.
        let mut owners = OwnerTable::new(10);
        let id = owners.intern(pod(""));
        let call = Call::parse("read").unwrap()[0];
        store.record(id, call).count += 7;
        store.commit(1_000_000_000, false, &owners);
        owners.rename(id, far);
        store.commit(2_000_000_000, false, &owners);
        assert!(store.totals.calls().is_empty() && store.baseline.watched_all().next().is_none());
        assert_eq!(store.elsewhere(), 7);
    }
}
