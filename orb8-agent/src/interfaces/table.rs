//! What is known of all interfaces, and what a message changes about it.

use std::collections::{BTreeMap, HashSet};

use super::{Change, Counters, Interface, Role, link::Link};

/// All interfaces.
#[derive(Debug, Default)]
pub(super) struct Table {
    links: BTreeMap<u32, Link>,
    /// Interfaces that carry a default route of ours.
    defaults: HashSet<u32>,
}

impl Table {
    /// A link as a notification shows it: the interface with that number is still the one that we know, since a
    /// removal would have been notified.
    pub(super) fn seen(&mut self, mut link: Link, changes: &mut Vec<Change>) {
        self.assign_role(&mut link.interface);
        let after = link.interface.clone();
        match self.links.insert(after.ifindex, link) {
            None => changes.push(Change::Added(after)),
            Some(before) if differs(&before.interface, &after) => changes.push(Change::Changed {
                before: before.interface,
                after,
            }),
            Some(_) => {}
        }
    }

    /// The notification of a removal, with the last state.
    pub(super) fn gone(&mut self, link: &Link, changes: &mut Vec<Change>) {
        let ifindex = link.interface.ifindex;
        self.defaults.remove(&ifindex);
        if let Some(known) = self.links.remove(&ifindex) {
            let mut interface = known.interface;
            interface.counters = link.interface.counters;
            changes.push(Change::Removed(interface));
        }
    }

    /// A complete list, after notifications were lost: a number can stand for another interface now.
    pub(super) fn listed(&mut self, links: Vec<Link>, changes: &mut Vec<Change>) {
        let present: HashSet<u32> = links.iter().map(|link| link.interface.ifindex).collect();
        let gone = |ifindex: &u32| !present.contains(ifindex);
        for ifindex in self.links.keys().copied().filter(gone).collect::<Vec<_>>() {
            self.replaced(ifindex, changes);
        }
        for link in links {
            let ifindex = link.interface.ifindex;
            let known = self.links.get(&ifindex);
            if known.is_some_and(|known| is_another(known, &link)) {
                self.replaced(ifindex, changes);
            }
            self.seen(link, changes);
        }
    }

    fn replaced(&mut self, ifindex: u32, changes: &mut Vec<Change>) {
        self.defaults.remove(&ifindex);
        if let Some(known) = self.links.remove(&ifindex) {
            changes.push(Change::Removed(known.interface));
        }
    }

    /// Which interfaces carry a default route.
    pub(super) fn routes(&mut self, defaults: HashSet<u32>, changes: &mut Vec<Change>) {
        self.defaults = defaults;
        let links: Vec<Link> = self.links.values().cloned().collect();
        for link in links {
            self.seen(link, changes);
        }
    }

    /// Whether a default route can have changed without a notification: IPv4's vanish silently when their interface
    /// goes down.
    pub(super) fn carries_default(&self, ifindex: u32) -> bool {
        self.defaults.contains(&ifindex)
    }

    /// Ends of pairs whose other end, so far in our namespace too, is `ifindex`. When that one leaves, it may have
    /// moved to another namespace; nothing is notified for the end that stays.
    pub(super) fn partners(&self, ifindex: u32) -> impl Iterator<Item = u32> {
        self.links.values().filter_map(move |link| {
            let interface = &link.interface;
            (interface.peer_ifindex == Some(ifindex) && interface.peer_netnsid.is_none())
                .then_some(interface.ifindex)
        })
    }

    fn assign_role(&self, interface: &mut Interface) {
        let is_pair = matches!(interface.kind.as_str(), "veth" | "netkit");
        let elsewhere = is_pair && interface.peer_netnsid.is_some();
        interface.role = if elsewhere && !self.defaults.contains(&interface.ifindex) {
            Role::Workload
        } else {
            Role::Uplink
        };
    }
}

/// Apart from counters.
fn differs(before: &Interface, after: &Interface) -> bool {
    let without = |interface: &Interface| Interface {
        counters: Counters::default(),
        ..interface.clone()
    };
    without(before) != without(after)
}

/// Whether `now`, with the number of `known`, must be or may well be another interface. To be wrong costs taking an
/// interface up again; a missed one would not be counted at all.
fn is_another(known: &Link, now: &Link) -> bool {
    let (old, new) = (&known.interface, &now.interface);
    let backwards = new.counters.rx_packets < old.counters.rx_packets
        || new.counters.tx_packets < old.counters.tx_packets;
    // A rename alone is the same interface, as long as its hardware address tells it from others.
    let no_address = now.address.iter().all(|&byte| byte == 0);
    old.kind != new.kind
        || old.link != new.link
        || old.loopback != new.loopback
        || old.peer_ifindex != new.peer_ifindex
        || old.peer_netnsid != new.peer_netnsid
        || known.address != now.address
        || backwards
        || (old.name != new.name && no_address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::LinkLayer, *};

    fn link(ifindex: u32, name: &str, address: u8) -> Link {
        Link {
            interface: Interface {
                ifindex,
                name: name.to_owned(),
                link: LinkLayer::Ethernet,
                peer_netnsid: Some(1),
                peer_ifindex: Some(2),
                kind: "veth".to_owned(),
                loopback: false,
                up: true,
                role: Role::Uplink,
                counters: Counters::default(),
            },
            address: vec![2, 0, 0, 0, 0, address],
        }
    }

    fn outline(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .map(|change| match change {
                Change::Added(interface) => format!("+{}", interface.name),
                Change::Changed { before, after } => format!("{}>{}", before.name, after.name),
                Change::Removed(interface) => format!("-{}", interface.name),
            })
            .collect()
    }

    #[test]
    fn notifications() {
        let mut table = Table::default();
        let mut changes = Vec::new();
        table.seen(link(3, "a", 1), &mut changes);
        let mut counted = link(3, "a", 1);
        counted.interface.counters.rx_packets = 9;
        table.seen(counted.clone(), &mut changes);
        table.seen(link(3, "b", 1), &mut changes);
        table.gone(&counted, &mut changes);
        table.gone(&counted, &mut changes);
        table.seen(link(3, "b", 1), &mut changes);
        assert_eq!(outline(&changes), ["+a", "a>b", "-b", "+b"]);
        let Change::Removed(last) = &changes[2] else {
            unreachable!()
        };
        assert_eq!(last.counters.rx_packets, 9, "the last counters");
    }

    #[test]
    fn listings_tell_interfaces_apart() {
        let mut table = Table::default();
        let mut changes = Vec::new();
        table.listed(vec![link(3, "a", 1), link(4, "b", 2)], &mut changes);
        changes.clear();
        table.listed(vec![link(3, "a", 1)], &mut changes);
        assert_eq!(outline(&changes), ["-b"]);
        changes.clear();
        table.listed(vec![link(3, "renamed", 1)], &mut changes);
        assert_eq!(outline(&changes), ["a>renamed"]);
        changes.clear();
        let mut other = link(3, "renamed", 9);
        table.listed(vec![other.clone()], &mut changes);
        assert_eq!(outline(&changes), ["-renamed", "+renamed"], "another address");
        changes.clear();
        other.interface.peer_netnsid = Some(2);
        other.interface.counters.rx_packets = 5;
        table.listed(vec![other.clone()], &mut changes);
        assert_eq!(outline(&changes), ["-renamed", "+renamed"], "another peer");
        changes.clear();
        other.interface.counters.rx_packets = 4;
        table.listed(vec![other], &mut changes);
        assert_eq!(outline(&changes), ["-renamed", "+renamed"], "counters went back");
    }

    #[test]
    fn default_routes_make_uplinks() {
        let mut table = Table::default();
        let mut changes = Vec::new();
        table.seen(link(3, "eth0", 1), &mut changes);
        table.routes(HashSet::from([3]), &mut changes);
        assert!(matches!(&changes[1], Change::Changed { after, .. } if after.role == Role::Uplink));
        table.routes(HashSet::new(), &mut changes);
        assert!(matches!(&changes[2], Change::Changed { after, .. } if after.role == Role::Workload));
        assert_eq!(table.partners(2).count(), 0, "the other end is elsewhere already");
    }

    proptest! {
        /// Whatever happens, the changes applied in order give what the table knows, and each is valid by itself.
        #[test]
        fn changes_add_up(steps in proptest::collection::vec(
            (0..4u8, 1..5u32, "[ab]", 0..2u8, proptest::collection::vec((1..5u32, "[ab]", 0..2u8), 0..4)), 0..30,
        )) {
            let mut table = Table::default();
            let mut known: BTreeMap<u32, Interface> = BTreeMap::new();
            for (step, ifindex, name, address, list) in steps {
                let mut changes = Vec::new();
                match step {
                    0 => table.seen(link(ifindex, &name, address), &mut changes),
                    1 => table.gone(&link(ifindex, &name, address), &mut changes),
                    2 => {
                        let list: BTreeMap<_, _> = list.into_iter().map(|(index, name, address)| (index, (name, address))).collect();
                        let list = list.into_iter().map(|(index, (name, address))| link(index, &name, address)).collect();
                        table.listed(list, &mut changes);
                    }
                    _ => table.routes(HashSet::from([ifindex]), &mut changes),
                }
                for change in changes {
                    match change {
                        Change::Added(interface) => prop_assert_eq!(known.insert(interface.ifindex, interface), None),
                        Change::Removed(interface) => prop_assert!(known.remove(&interface.ifindex).is_some()),
                        Change::Changed { before, after } => {
                            prop_assert_eq!(before.ifindex, after.ifindex);
                            prop_assert_eq!(known.insert(after.ifindex, after), Some(before));
                        }
                    }
                }
                let table: BTreeMap<_, _> = table.links.iter().map(|(index, link)| (*index, link.interface.clone())).collect();
                prop_assert_eq!(&known, &table);
            }
        }
    }
}
