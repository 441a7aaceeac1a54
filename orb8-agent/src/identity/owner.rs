//! Owners of flows' ends, and small integer ids for them.

use std::{collections::HashMap, sync::Arc};

/// How the name of an end was found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Attribution {
    /// Not found.
    #[default]
    Unknown,
    /// The interface belongs to the workload's network namespace.
    Veth,
    /// The socket's cgroup.
    Cgroup,
    /// The address belongs to this machine.
    HostIp,
    /// The address is set in the workload's network namespace.
    NetnsIp,
    /// The process that made the socket.
    Socket,
    /// The other end's own observation of the same flow.
    PeerReport,
    /// The address belongs to the pod.
    PodIp,
    /// The address is a Service's.
    ServiceIp,
    /// The address belongs to another node of the cluster.
    NodeIp,
    /// A DNS answer to the reporter named the address.
    Dns,
    /// The address and port are an endpoint of one Service.
    Endpoint,
    /// Connection tracking told what an address was translated from or to.
    Conntrack,
}

/// What kind of end it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Kind {
    /// Outside of this machine.
    #[default]
    External,
    /// This machine, owner not known more closely.
    Host,
    /// A workload of this machine: unit, container, process or network namespace.
    Process,
    /// A Kubernetes pod.
    Pod,
    /// A Kubernetes Service, where its backend is not known.
    Service,
    /// Another node of the cluster.
    Node,
    /// The cluster's API server.
    ApiServer,
}

impl Kind {
    /// Its name in labels and filters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Host => "host",
            Self::Process => "process",
            Self::Pod => "pod",
            Self::Service => "service",
            Self::Node => "node",
            Self::ApiServer => "kube-apiserver",
        }
    }
}

/// A pod's names. All but the uid are empty until the API server has told them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PodName {
    /// As its cgroup's path has it: of a static pod it is the hash of its configuration.
    pub uid: String,
    /// `namespace/name`.
    pub full: String,
    /// `Kind/name` of what made it.
    pub workload: String,
    /// The node that it runs on.
    pub node: String,
}

impl PodName {
    /// Namespace and name; both empty if they are not known.
    #[must_use]
    pub fn parts(&self) -> (&str, &str) {
        self.full.split_once('/').unwrap_or_default()
    }
}

/// One end's owner. Fields that are unknown are empty (or 0).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Owner {
    /// What kind of end it is.
    pub kind: Kind,
    /// How the name was found.
    pub attribution: Attribution,
    /// Systemd unit.
    pub unit: String,
    /// The pod.
    pub pod: Option<Arc<PodName>>,
    /// Container id (64 hex digits as a rule); of a pod whose status is known, the container's name.
    pub container: String,
    /// Name of the process (`comm`).
    pub process: String,
    /// Its pid (tgid), in the agent's pid namespace.
    pub pid: u32,
    /// Name of the network namespace, where it has one.
    pub netns: String,
    /// Path of the cgroup below the cgroup2 mount, with a leading slash.
    pub cgroup: String,
    /// Name of what is no workload of this machine: of a node, of a Service (`namespace/name`), of an external address
    /// by DNS.
    pub alias: String,
    /// Tells owners apart of which nothing else is known yet, so that each can be named later; 0 otherwise.
    pub nameless: u64,
}

impl Owner {
    /// Somebody of whom nothing is known yet, so that what is counted meanwhile can be named later; `number` tells them
    /// apart.
    #[must_use]
    pub fn nameless(number: u64) -> Self {
        Self {
            kind: Kind::Process,
            nameless: number,
            ..Self::default()
        }
    }

    /// The shortest name that tells this owner from others: pod, container (12 digits of its id), unit, process, network
    /// namespace, cgroup, alias; or empty.
    #[must_use]
    pub fn name(&self) -> &str {
        let container = match &self.pod {
            Some(pod) if !pod.full.is_empty() => &pod.full,
            _ => self.container.get(..12).unwrap_or(&self.container),
        };
        [
            container,
            &self.unit,
            &self.process,
            &self.netns,
            &self.cgroup,
            &self.alias,
        ]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_default()
    }

    /// Its pod, if that has a name.
    #[must_use]
    pub fn named_pod(&self) -> Option<&PodName> {
        self.pod.as_deref().filter(|pod| !pod.full.is_empty())
    }

    /// Whether two names of one end of a flow cannot both be right: they are of different pods.
    #[must_use]
    pub fn contradicts(&self, other: &Self) -> bool {
        match (&self.pod, &other.pod) {
            (Some(pod), Some(other)) => pod.uid != other.uid,
            _ => false,
        }
    }
}

/// Id of an [`Owner`] in an [`OwnerTable`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct OwnerId(
    /// Index in the table.
    pub u32,
);

impl OwnerId {
    /// The owner of which nothing is known.
    pub const UNKNOWN: Self = Self(0);
}

/// Owners that flows of the history refer to, each stored once.
///
/// Bounded: when full, [`OwnerTable::intern`] returns [`OwnerId::UNKNOWN`] and counts it. The id of an owner is
/// valid until [`OwnerTable::retain`] drops it.
#[derive(Debug)]
pub struct OwnerTable {
    owners: Vec<Option<Arc<Owner>>>,
    ids: HashMap<Arc<Owner>, OwnerId>,
    free: Vec<u32>,
    max: usize,
    turned_away: u64,
}

impl OwnerTable {
    /// An empty table of at most `max` owners.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let unknown = Arc::new(Owner::default());
        Self {
            ids: HashMap::from([(unknown.clone(), OwnerId::UNKNOWN)]),
            owners: vec![Some(unknown)],
            free: Vec::new(),
            max,
            turned_away: 0,
        }
    }

    /// The id of `owner`, which is stored if it is new.
    pub fn intern(&mut self, owner: Owner) -> OwnerId {
        if let Some(&id) = self.ids.get(&owner) {
            return id;
        }
        let owner = Arc::new(owner);
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.owners.len() < self.max => {
                self.owners.push(None);
                self.owners.len() as u32 - 1
            }
            None => {
                self.turned_away += 1;
                return OwnerId::UNKNOWN;
            }
        };
        self.owners[index as usize] = Some(owner.clone());
        self.ids.insert(owner, OwnerId(index));
        OwnerId(index)
    }

    /// Gives an owner another name: for all flows that refer to it, also those of the past.
    pub fn rename(&mut self, id: OwnerId, owner: Owner) {
        if id == OwnerId::UNKNOWN {
            return;
        }
        let Some(slot) = self.owners.get_mut(id.0 as usize) else {
            return;
        };
        let Some(before) = slot.take() else {
            return;
        };
        let owner = Arc::new(owner);
        *slot = Some(owner.clone());
        if self.ids.get(&before) == Some(&id) {
            self.ids.remove(&before);
        }
        // Where another id has that name already, both mean it.
        self.ids.entry(owner).or_insert(id);
    }

    /// Renames every owner for which `name` has something better. Cost: one call an owner.
    pub fn rename_each(&mut self, mut name: impl FnMut(&Owner) -> Option<Owner>) {
        for index in 1..self.owners.len() {
            if let Some(owner) = &self.owners[index]
                && let Some(better) = name(owner)
            {
                self.rename(OwnerId(index as u32), better);
            }
        }
    }

    /// The owner behind an id; the unknown owner if the id was dropped.
    #[must_use]
    pub fn get(&self, id: OwnerId) -> Arc<Owner> {
        self.owners
            .get(id.0 as usize)
            .cloned()
            .flatten()
            .unwrap_or_else(|| self.owners[0].clone().unwrap_or_default())
    }

    /// All owners.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Owner>> {
        self.owners.iter().flatten()
    }

    /// Drops every owner for which `used` is false. Cost: one call an owner.
    pub fn retain(&mut self, mut used: impl FnMut(OwnerId) -> bool) {
        for index in 1..self.owners.len() {
            if !used(OwnerId(index as u32))
                && let Some(owner) = self.owners[index].take()
            {
                if self.ids.get(&owner) == Some(&OwnerId(index as u32)) {
                    self.ids.remove(&owner);
                }
                self.free.push(index as u32);
            }
        }
    }

    /// Owners stored.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.len() - self.free.len()
    }

    /// Whether nothing but the unknown owner is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() <= 1
    }

    /// Most owners.
    #[must_use]
    pub const fn max(&self) -> usize {
        self.max
    }

    /// Owners that had no room.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str) -> Owner {
        Owner {
            process: name.to_owned(),
            ..Owner::default()
        }
    }

    #[test]
    fn a_new_name_is_also_that_of_the_past() {
        let mut owners = OwnerTable::new(10);
        let (a, b) = (owners.intern(process("a")), owners.intern(process("b")));
        owners.rename(a, process("c"));
        assert_eq!(owners.get(a).process, "c");
        assert_eq!(owners.intern(process("c")), a);
        assert_ne!(owners.intern(process("a")), a);
        // Two ids of one name: both mean it, and dropping one leaves the other.
        owners.rename(b, process("c"));
        assert_eq!(owners.get(b).process, "c");
        assert_eq!(owners.intern(process("c")), a);
        owners.retain(|id| id != b);
        assert_eq!(owners.intern(process("c")), a);
        owners.rename(OwnerId::UNKNOWN, process("x"));
        assert_eq!(*owners.get(OwnerId::UNKNOWN), Owner::default());
        assert_eq!(owners.len(), 3);
    }

    #[test]
    fn only_different_pods_contradict_each_other() {
        let pod = |uid: &str, full: &str| Owner {
            pod: Some(Arc::new(PodName {
                uid: uid.to_owned(),
                full: full.to_owned(),
                ..PodName::default()
            })),
            ..Owner::default()
        };
        assert!(pod("1", "n/a").contradicts(&pod("2", "n/a")));
        assert!(!pod("1", "").contradicts(&pod("1", "n/a")));
        assert!(!Owner::default().contradicts(&pod("1", "n/a")));
    }
}
