//! Interfaces that are observed, or should be.

use std::collections::{BTreeMap, HashMap};

use orb8_proto::v1;

use super::attach::Attachment;
use crate::{
    identity::owner::{Owner, OwnerId},
    interfaces::{Counters, Interface, LinkLayer, Role},
};

/// One interface that is observed, or should be.
#[derive(Debug)]
pub struct Point {
    /// As rtnetlink last said.
    pub interface: Interface,
    /// The programs, unless they could not be attached.
    pub attachment: Option<Attachment>,
    /// Why they could not.
    pub failure: String,
    /// Whose it is.
    pub owner: Owner,
    /// The same in the store's owner table.
    pub owner_id: OwnerId,
    /// The interface's counters from which on what it counts is held against what its programs see: those at its coming, for
    /// one that has come since the agent is there, else those after the programs were attached; `None` until they were read.
    pub baseline: Option<Counters>,
    /// The interface's counters when they were last read.
    pub counters: Counters,
    /// Frames that came out of the kernel for this interface: received and sent.
    pub seen: [u64; 2],
    /// Frames that the interface counted and the programs did not see.
    pub bypassed: u64,
    /// The gap at the last look: what is still in flight is in one look only.
    gap: u64,
    /// Epochs since the interface went away; what was counted on it may still be on the way.
    gone: Option<u32>,
}

impl Point {
    /// An interface that the programs were attached to, or not.
    #[must_use]
    pub fn new(interface: Interface, owner: Owner, attached: Result<Attachment, String>) -> Self {
        let (attachment, failure) = match attached {
            Ok(attachment) => (Some(attachment), String::new()),
            Err(failure) => (None, failure),
        };
        Self {
            baseline: None,
            counters: interface.counters,
            interface,
            attachment,
            failure,
            owner,
            owner_id: OwnerId::UNKNOWN,
            seen: [0; 2],
            bypassed: 0,
            gap: 0,
            gone: None,
        }
    }

    /// Whether tc ingress is what the workload sent: the programs are at the far end of its interface.
    #[must_use]
    pub fn is_inverted(&self) -> bool {
        self.interface.role == Role::Workload
    }

    /// Whether the interface is still there.
    #[must_use]
    pub const fn is_present(&self) -> bool {
        self.gone.is_none()
    }

    /// It is observed no more.
    fn end(&mut self, last: Counters) {
        if self.gone.is_none() {
            self.gone = Some(0);
            self.counters = most(self.counters, last);
        }
    }

    /// Frames that the interface counted, and that have not come out of the kernel.
    fn unseen(&self) -> u64 {
        let Some(baseline) = self.baseline else {
            return 0;
        };
        // What was dropped at the interface's own door reached no program, and is not a packet that it let by.
        let received = self.counters.rx_packets.saturating_sub(baseline.rx_packets);
        let sent = self.counters.tx_packets.saturating_sub(baseline.tx_packets);
        received.saturating_sub(self.seen[0]) + sent.saturating_sub(self.seen[1])
    }

    fn status(&self) -> v1::InterfaceStatus {
        let baseline = self.baseline.unwrap_or(self.counters);
        let since = |now: u64, then: u64| now.saturating_sub(then);
        v1::InterfaceStatus {
            ifindex: self.interface.ifindex,
            name: self.interface.name.clone(),
            state: if self.attachment.is_some() {
                v1::State::Active
            } else {
                v1::State::Failed
            }
            .into(),
            reason: self.failure.clone(),
            mechanism: self
                .attachment
                .as_ref()
                .map(|attachment| attachment.mechanism().as_str().to_owned())
                .unwrap_or_default(),
            role: match self.interface.role {
                Role::Workload => "workload",
                Role::Uplink => "uplink",
            }
            .to_owned(),
            owner: self.owner.name().to_owned(),
            interface_rx: since(self.counters.rx_packets, baseline.rx_packets),
            interface_tx: since(self.counters.tx_packets, baseline.tx_packets),
            seen_rx: self.seen[0],
            seen_tx: self.seen[1],
            bypassed: self.bypassed,
        }
    }
}

/// The higher of each: a veth forgets what it received when its other end goes, which comes first.
fn most(one: Counters, other: Counters) -> Counters {
    Counters {
        rx_packets: one.rx_packets.max(other.rx_packets),
        tx_packets: one.tx_packets.max(other.tx_packets),
        ..other
    }
}

/// Interfaces that are observed or should be, by index. Bounded by the interfaces that the kernel has.
#[derive(Debug, Default)]
pub struct Points {
    by_index: HashMap<u32, Point>,
    /// Of interfaces that are gone.
    bypassed_before: u64,
    seen_before: u64,
}

impl Points {
    /// The interface with this index.
    #[must_use]
    pub fn get(&self, ifindex: u32) -> Option<&Point> {
        self.by_index.get(&ifindex)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, ifindex: u32) -> Option<&mut Point> {
        self.by_index.get_mut(&ifindex)
    }

    /// Takes in what interfaces have counted. Those that were attached since the last call, and of whose coming nothing is
    /// known, are compared with their programs from here on: `counters` were read after that.
    pub fn set_baselines(&mut self, counters: &HashMap<u32, Counters>) {
        for (ifindex, point) in &mut self.by_index {
            let Some(&now) = counters.get(ifindex) else {
                continue;
            };
            if point.baseline.is_none() {
                point.baseline = Some(now);
                point.counters = now;
            } else if point.is_present() {
                point.counters = most(point.counters, now);
            }
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Point> {
        self.by_index.values()
    }

    /// All of them, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Point> {
        self.by_index.values_mut()
    }

    /// How many are observed, by how frames begin: Ethernet header, IP header.
    #[must_use]
    pub fn attached_by_framing(&self) -> [usize; 2] {
        let mut counts = [0; 2];
        for point in self.by_index.values().filter(|point| point.attachment.is_some()) {
            counts[usize::from(point.interface.link == LinkLayer::Raw)] += 1;
        }
        counts
    }

    /// Enters an interface; the one with the same index, if any, is past.
    pub fn insert(&mut self, point: Point) {
        if let Some(old) = self.by_index.insert(point.interface.ifindex, point) {
            self.retire(&old);
        }
    }

    /// Notes that an interface is gone, with its last counters. Its name and owner stay until all that was counted on it
    /// has come.
    pub fn remove(&mut self, ifindex: u32, last: Counters) {
        if let Some(point) = self.by_index.get_mut(&ifindex) {
            if let Some(attachment) = point.attachment.take() {
                attachment.forget();
            }
            point.end(last);
        }
    }

    /// Stops to observe an interface that is still there, and has counted so much.
    pub fn detach(&mut self, ifindex: u32, last: Counters) {
        if let Some(point) = self.by_index.get_mut(&ifindex) {
            point.attachment = None;
            point.end(last);
        }
    }

    /// Detaches everything.
    pub fn clear(&mut self) {
        self.by_index.clear();
    }

    /// An epoch has been drained: interfaces that went away before it began are forgotten.
    pub fn epoch_ended(&mut self) {
        let mut past = Vec::new();
        for (&ifindex, point) in &mut self.by_index {
            if let Some(epochs) = &mut point.gone {
                *epochs += 1;
                if *epochs >= 2 {
                    past.push(ifindex);
                }
            }
        }
        for ifindex in past {
            if let Some(point) = self.by_index.remove(&ifindex) {
                self.retire(&point);
            }
        }
    }

    fn retire(&mut self, point: &Point) {
        // Nothing of it is on the way any more: what has not come by now was not seen.
        self.bypassed_before += point.unseen().max(point.bypassed);
        self.seen_before += point.seen[0] + point.seen[1];
    }

    /// Holds what the interfaces counted against what came out of the kernel; `counters` were read before the last
    /// drain, so that a program cannot be behind its interface for any other reason than that it was not asked.
    /// Returns the interfaces on which more was bypassed than before: name, owner, frames.
    pub fn reconcile(&mut self, counters: &HashMap<u32, Counters>) -> Vec<(String, String, u64)> {
        let mut found = Vec::new();
        for (ifindex, point) in &mut self.by_index {
            let (Some(&now), true, true) = (
                counters.get(ifindex),
                point.attachment.is_some(),
                point.gone.is_none(),
            ) else {
                continue;
            };
            point.counters = now;
            let gap = point.unseen();
            // A packet may be counted by the interface and still wait for its program: in one look, not in two.
            let certain = gap.min(point.gap);
            point.gap = gap;
            if certain > point.bypassed {
                found.push((
                    point.interface.name.clone(),
                    point.owner.name().to_owned(),
                    certain - point.bypassed,
                ));
                point.bypassed = certain;
            }
        }
        found
    }

    /// States, in order of index.
    #[must_use]
    pub fn status(&self) -> Vec<v1::InterfaceStatus> {
        let sorted: BTreeMap<_, _> = self.by_index.iter().collect();
        sorted
            .into_values()
            .filter(|point| point.is_present())
            .map(Point::status)
            .collect()
    }

    /// Frames that interfaces counted and programs did not see, and frames that they saw; since the start.
    #[must_use]
    pub fn bypassed_and_seen(&self) -> (u64, u64) {
        self.by_index.values().fold(
            (self.bypassed_before, self.seen_before),
            |(bypassed, seen), point| (bypassed + point.bypassed, seen + point.seen[0] + point.seen[1]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{interfaces::LinkLayer, probe::network::attach::Attachment};

    fn interface(ifindex: u32) -> Interface {
        Interface {
            ifindex,
            name: format!("veth{ifindex}"),
            link: LinkLayer::Ethernet,
            peer_netnsid: Some(0),
            peer_ifindex: None,
            kind: "veth".to_owned(),
            loopback: false,
            up: true,
            role: Role::Workload,
            counters: Counters::default(),
        }
    }

    fn counters(ifindex: u32, rx_packets: u64) -> HashMap<u32, Counters> {
        HashMap::from([(
            ifindex,
            Counters {
                rx_packets,
                ..Counters::default()
            },
        )])
    }

    fn observed() -> Points {
        let mut points = Points::default();
        points.insert(Point::new(interface(7), Owner::default(), Ok(Attachment::none())));
        points.set_baselines(&counters(7, 100));
        points
    }

    #[test]
    fn what_is_in_flight_at_one_look_is_not_bypassed() {
        let mut points = observed();
        points.get_mut(7).unwrap().seen[0] = 40;
        assert!(points.reconcile(&counters(7, 150)).is_empty());
        points.get_mut(7).unwrap().seen[0] = 50;
        assert!(points.reconcile(&counters(7, 150)).is_empty());
        assert_eq!(points.bypassed_and_seen(), (0, 50));
    }

    #[test]
    fn a_gap_that_stays_is_bypassed_and_told_once() {
        let mut points = observed();
        points.get_mut(7).unwrap().seen[0] = 40;
        assert!(points.reconcile(&counters(7, 150)).is_empty());
        assert_eq!(
            points.reconcile(&counters(7, 150)),
            [("veth7".to_owned(), String::new(), 10)]
        );
        assert!(points.reconcile(&counters(7, 150)).is_empty());
        assert_eq!(points.bypassed_and_seen(), (10, 40));
    }

    #[test]
    fn what_a_vanished_interface_counted_stays_in_the_sums() {
        let mut points = observed();
        points.get_mut(7).unwrap().seen = [3, 4];
        points.remove(7, Counters::default());
        // Its last records may still come.
        points.epoch_ended();
        assert!(points.get(7).is_some());
        points.epoch_ended();
        assert!(points.get(7).is_none());
        assert_eq!(points.bypassed_and_seen(), (0, 7));
    }

    #[test]
    fn what_a_short_lived_interface_counted_before_it_was_observed_is_said() {
        let mut points = Points::default();
        let mut point = Point::new(interface(7), Owner::default(), Ok(Attachment::none()));
        point.baseline = Some(Counters::default());
        points.insert(point);
        points.set_baselines(&counters(7, 3));
        points.get_mut(7).unwrap().seen[0] = 8;
        points.remove(7, counters(7, 10)[&7]);
        // One more comes with the last epoch.
        points.epoch_ended();
        points.get_mut(7).unwrap().seen[0] = 9;
        points.epoch_ended();
        assert_eq!(points.bypassed_and_seen(), (1, 9));
    }
}
