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
}

/// What kind of end it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Kind {
    /// Outside of this machine.
    #[default]
    External,
    /// This machine, owner not known more closely.
    Host,
    /// A workload of this machine: unit, container, process or network namespace.
    Process,
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
    /// Container id (64 hex digits as a rule).
    pub container: String,
    /// Name of the process (`comm`).
    pub process: String,
    /// Its pid (tgid), in the agent's pid namespace.
    pub pid: u32,
    /// Name of the network namespace, where it has one.
    pub netns: String,
    /// Path of the cgroup below the cgroup2 mount, with a leading slash.
    pub cgroup: String,
}

impl Owner {
    /// The shortest name that tells this owner from others: container (12 digits), unit, process, network
    /// namespace, cgroup; or empty.
    #[must_use]
    pub fn name(&self) -> &str {
        let container = self.container.get(..12).unwrap_or(&self.container);
        [container, &self.unit, &self.process, &self.netns, &self.cgroup]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or_default()
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

    /// The owner behind an id; the unknown owner if the id was dropped.
    #[must_use]
    pub fn get(&self, id: OwnerId) -> Arc<Owner> {
        self.owners
            .get(id.0 as usize)
            .cloned()
            .flatten()
            .unwrap_or_else(|| self.owners[0].clone().unwrap_or_default())
    }

    /// Drops every owner for which `used` is false. Cost: one call an owner.
    pub fn retain(&mut self, mut used: impl FnMut(OwnerId) -> bool) {
        for index in 1..self.owners.len() {
            if !used(OwnerId(index as u32))
                && let Some(owner) = self.owners[index].take()
            {
                self.ids.remove(&owner);
                self.free.push(index as u32);
            }
        }
    }

    /// Owners stored.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
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
