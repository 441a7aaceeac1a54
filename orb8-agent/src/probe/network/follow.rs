//! Keeps the programs on every interface that should have them.
//!
//! Invariant: after each batch of changes from rtnetlink, exactly the interfaces that are a workload's, or that a
//! setting names, are in [`super::points::Points`], each attached or with the reason why not. An index that a new
//! interface got from an old one is attached only after the old one's counts are out of the kernel, so that no packet is
//! attributed to the wrong one.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    attach::{Framing, Mechanism, attach},
    points::Point,
};
use crate::{
    core::{Core, lock},
    identity::owner::Owner,
    interfaces::{
        self, Change, Interface, InterfaceError, InterfacePattern, InterfaceWatcher, LinkLayer, Role,
    },
    pipeline::name_points_of,
};

/// How often interface counters are held against what the programs saw, and failed interfaces tried again.
const RECONCILE: Duration = Duration::from_secs(10);

/// Follows interfaces and keeps the programs on them.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) core: Arc<Core>,
    pub(crate) watcher: InterfaceWatcher,
    pub(crate) patterns: Vec<InterfacePattern>,
    pub(crate) mechanism: Mechanism,
    /// Interfaces so far, for their owners' sake; see [`Owner::nameless`].
    pub(crate) nameless: u64,
}

/// When an interface came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Came {
    /// Before the agent did: of what passed so far nothing is known.
    Before,
    /// While the agent follows interfaces.
    Now,
}

impl Follower {
    /// Attaches to the interfaces that are there.
    ///
    /// # Errors
    /// If rtnetlink fails.
    pub(crate) async fn first(&mut self) -> Result<(), InterfaceError> {
        let changes = self.watcher.next().await?;
        self.apply(changes, Came::Before).await;
        Ok(())
    }

    /// Follows changes until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(RECONCILE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changes = self.watcher.next() => match changes {
                    Ok(changes) => self.apply(changes, Came::Now).await,
                    Err(error) => {
                        warn!(%error, "interfaces cannot be followed; trying again in 1 s");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                _ = tick.tick() => {
                    self.reconcile().await;
                    self.retry();
                }
            }
        }
    }

    fn wants(&self, interface: &Interface) -> bool {
        interface.role == Role::Workload
            || self
                .patterns
                .iter()
                .any(|pattern| pattern.matches(&interface.name))
    }

    async fn apply(&mut self, changes: Vec<Change>, came: Came) {
        let mut added = Vec::new();
        for change in changes {
            match change {
                Change::Added(interface) => added.extend(self.add(interface, came).await),
                Change::Removed(interface) => {
                    debug!(interface = interface.name, "gone");
                    lock(&self.core.points).remove(interface.ifindex, interface.counters);
                }
                Change::Changed { before, after } => added.extend(self.change(&before, after, came).await),
            }
        }
        if !added.is_empty() {
            self.name(&added);
        }
        match interfaces::counters().await {
            Ok(counters) => lock(&self.core.points).set_baselines(&counters),
            Err(error) => warn!(%error, "interface counters cannot be read"),
        }
    }

    async fn change(&mut self, before: &Interface, after: Interface, came: Came) -> Option<Interface> {
        let observed = lock(&self.core.points)
            .get(after.ifindex)
            .is_some_and(Point::is_present);
        match (observed, self.wants(&after)) {
            (false, true) => return self.add(after, came).await,
            (true, false) => {
                // As a rule its other end is gone, and it will be in a moment.
                debug!(interface = after.name, "no longer observed");
                lock(&self.core.points).detach(after.ifindex, after.counters);
            }
            (true, true) => {
                if before.name != after.name {
                    info!(from = before.name, to = after.name, "interface renamed");
                }
                let mut points = lock(&self.core.points);
                if let Some(point) = points.get_mut(after.ifindex) {
                    point.interface = after;
                }
            }
            (false, false) => {}
        }
        None
    }

    /// Puts the programs on, if it is to be observed; whose it is comes after all others have theirs.
    async fn add(&mut self, interface: Interface, came: Came) -> Option<Interface> {
        if !self.wants(&interface) {
            return None;
        }
        let reused = lock(&self.core.points).get(interface.ifindex).is_some();
        if reused {
            self.core.barrier().await;
        }
        self.nameless += 1;
        // Nothing that it counts is stored before it is known.
        let mut points = lock(&self.core.points);
        let attached = self.attach(&interface);
        match &attached {
            Ok(_) => debug!(interface = interface.name, role = ?interface.role, "observed"),
            Err(reason) => warn!(interface = interface.name, reason, "not observed"),
        }
        let mut point = Point::new(interface.clone(), Owner::nameless(self.nameless), attached);
        if came == Came::Now {
            // What passed before the programs were on is not left unsaid.
            point.baseline = Some(interface.counters);
        }
        points.insert(point);
        Some(interface)
    }

    /// Gives interfaces that have come their owners, as far as these are known.
    fn name(&self, came: &[Interface]) {
        {
            let mut names = lock(&self.core.names);
            for interface in came {
                names.identity.interface_came(interface);
            }
        }
        name_points_of(&self.core);
    }

    fn attach(&self, interface: &Interface) -> Result<super::attach::Attachment, String> {
        let framing = match interface.link {
            LinkLayer::Ethernet => Framing::Ethernet,
            LinkLayer::Raw => Framing::Raw,
            LinkLayer::Unsupported(number) => {
                return Err(format!(
                    "frames of link type {number} (if_arp.h) are not understood"
                ));
            }
        };
        let mut programs = lock(&self.core.programs);
        attach(
            &mut programs,
            interface.ifindex,
            &interface.name,
            framing,
            self.mechanism,
        )
        .map_err(|error| error.to_string())
    }

    /// Tries interfaces again that could not be attached.
    fn retry(&self) {
        let failed: Vec<Interface> = lock(&self.core.points)
            .iter_mut()
            .filter(|point| point.attachment.is_none() && point.is_present())
            .map(|point| point.interface.clone())
            .collect();
        for interface in failed {
            let attached = self.attach(&interface);
            let mut points = lock(&self.core.points);
            let Some(point) = points.get_mut(interface.ifindex) else {
                continue;
            };
            match attached {
                Ok(attachment) => {
                    info!(interface = interface.name, "observed after all");
                    point.attachment = Some(attachment);
                    point.failure.clear();
                    point.baseline = None;
                }
                Err(reason) => point.failure = reason,
            }
        }
    }

    async fn reconcile(&self) {
        let counters = match interfaces::counters().await {
            Ok(counters) => counters,
            Err(error) => {
                warn!(%error, "interface counters cannot be read");
                return;
            }
        };
        self.core.barrier().await;
        for (interface, owner, frames) in lock(&self.core.points).reconcile(&counters) {
            warn!(
                interface,
                owner,
                frames,
                "frames passed this interface without passing the programs: they are in the ledger"
            );
        }
    }
}
