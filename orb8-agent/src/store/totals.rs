//! Totals since the start, by owner, direction, protocol and kind of peer: what counters are exported from.

use std::collections::{BTreeMap, HashMap, HashSet};

use orb8_common::network::{FlowKey, kind, protocol};

use super::Direction;
use crate::identity::owner::{Kind, Owner, OwnerId, OwnerTable};

/// Protocols that have totals of their own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP.
    Icmp,
    /// ICMPv6.
    Icmpv6,
    /// SCTP.
    Sctp,
    /// Any other IP protocol.
    Other,
    /// Not IP.
    NonIp,
    /// Not known: the packets' flows had no room in the kernel.
    Unknown,
}

impl Protocol {
    /// The protocol of a flow.
    #[must_use]
    pub const fn of(key: &FlowKey) -> Self {
        if key.kind & (kind::IPV4 | kind::IPV6) == 0 {
            return Self::NonIp;
        }
        match key.protocol {
            protocol::TCP => Self::Tcp,
            protocol::UDP => Self::Udp,
            protocol::ICMP => Self::Icmp,
            protocol::ICMPV6 => Self::Icmpv6,
            protocol::SCTP => Self::Sctp,
            _ => Self::Other,
        }
    }

    /// Its name in labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
            Self::Icmpv6 => "ICMPv6",
            Self::Sctp => "SCTP",
            Self::Other => "other",
            Self::NonIp => "non-IP",
            Self::Unknown => "unknown",
        }
    }
}

/// How a series is called.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Labels {
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// `Kind/name` of what made the pod.
    pub workload: String,
    /// Of what is no pod: its name, so marked that owners of different sorts never share one.
    pub owner: String,
}

impl Labels {
    /// Labels of an owner's series.
    pub(crate) fn of(owner: &Owner) -> Self {
        match owner.named_pod() {
            Some(pod) => {
                let (namespace, name) = pod.parts();
                Self {
                    namespace: namespace.to_owned(),
                    pod: name.to_owned(),
                    workload: pod.workload.clone(),
                    owner: String::new(),
                }
            }
            None => Self {
                owner: label(owner),
                ..Self::default()
            },
        }
    }
}

/// Totals of one owner, direction, protocol and kind of peer since the start (or since the owner came back, if its
/// series had been folded).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Series {
    /// The owner.
    pub labels: Labels,
    /// Direction, seen from the owner.
    pub direction: Direction,
    /// Protocol.
    pub protocol: Protocol,
    /// Kind of the other end; `None` where the packets' flows had no room.
    pub peer: Option<Kind>,
    /// Wire segments.
    pub packets: u64,
    /// Layer-3 bytes.
    pub bytes: u64,
}

/// Packets of which it is not known whose they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unattributed {
    /// What is missing.
    pub reason: &'static str,
    /// Wire segments.
    pub packets: u64,
    /// Layer-3 bytes.
    pub bytes: u64,
}

/// Why an owner counts as not known.
fn missing(owner: &Owner, kubernetes: bool) -> Option<usize> {
    if kubernetes && owner.pod.as_ref().is_some_and(|pod| pod.full.is_empty()) {
        return Some(0);
    }
    if !owner.name().is_empty() || owner.kind == Kind::Host {
        return None;
    }
    Some(if owner.nameless != 0 { 1 } else { 2 })
}

/// Reasons of [`Unattributed`], by what [`missing`] returns.
const REASONS: [&str; 3] = ["pod_unknown", "interface_without_owner", "socket_without_owner"];
/// So many intervals a count waits for its owner's name, before it is filed as it is.
const HOLD: u32 = 5;

/// Name of the series that take what has none of its own.
pub(crate) const OTHER: &str = "other";

/// What an owner's totals are divided by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Dimensions {
    pub(crate) direction: Direction,
    pub(crate) protocol: Protocol,
    pub(crate) peer: Option<Kind>,
}

#[derive(Debug, Default)]
struct OwnerTotals {
    // A hundred at most, and mostly two to six: a list is smaller than a map.
    series: Vec<(Dimensions, Count)>,
    last_seq: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    packets: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Totals since the start, exact, in a bounded number of series.
///
/// What has no room is summed under the owner `other`. When the series run out, those of owners that have been
/// quiet for long are folded into `other` to make room: the sum over all series never decreases, and neither
/// does `other`.
#[derive(Debug)]
pub struct Totals {
    owners: BTreeMap<Labels, OwnerTotals>,
    other: OwnerTotals,
    /// Counts of the current interval, whose owners' names are looked up when it ends, and of some intervals before
    /// where the owner has no name yet; with the first one's sequence number, 0 until its end.
    open: HashMap<(OwnerId, Dimensions), (Count, u32)>,
    unattributed: [Count; REASONS.len()],
    removed: Count,
    kubernetes: bool,
    series: usize,
    max_series: usize,
    /// Intervals without traffic after which an owner may be folded.
    quiet: u32,
    turned_away: u64,
    folded: u64,
}

impl Totals {
    pub(crate) fn new(max_series: usize, quiet: u32, kubernetes: bool) -> Self {
        Self {
            owners: BTreeMap::new(),
            other: OwnerTotals::default(),
            open: HashMap::new(),
            unattributed: [Count::default(); REASONS.len()],
            removed: Count::default(),
            kubernetes,
            series: 0,
            max_series,
            quiet,
            turned_away: 0,
            folded: 0,
        }
    }

    pub(crate) fn add(&mut self, owner: OwnerId, dimensions: Dimensions, packets: u64, bytes: u64) {
        self.open
            .entry((owner, dimensions))
            .or_default()
            .0
            .add(Count { packets, bytes });
    }

    /// Owners that counts are not filed under yet.
    pub(crate) fn waiting_owners(&self) -> HashSet<OwnerId> {
        self.open.keys().map(|(owner, _)| *owner).collect()
    }

    /// Ends an interval: files its counts under their owners' names.
    pub(crate) fn end_interval(&mut self, owners: &OwnerTable, seq: u32) {
        let mut folded_once = false;
        let mut open = std::mem::take(&mut self.open);
        open.retain(|&(id, dimensions), (count, first)| {
            let owner = owners.get(id);
            let missing = missing(&owner, self.kubernetes);
            if *first == 0 {
                *first = seq;
            }
            // An owner without a name may get one: not what has no id of its own.
            if missing.is_some() && id != OwnerId::UNKNOWN && seq.saturating_sub(*first) < HOLD {
                return true;
            }
            if let Some(reason) = missing {
                self.unattributed[reason].add(*count);
            }
            self.file(&owner, dimensions, *count, seq, &mut folded_once);
            false
        });
        self.open = open;
        self.open.shrink_to(256);
    }

    fn file(
        &mut self,
        owner: &Owner,
        dimensions: Dimensions,
        count: Count,
        seq: u32,
        folded_once: &mut bool,
    ) {
        let labels = Labels::of(owner);
        let known = self
            .owners
            .get(&labels)
            .is_some_and(|totals| totals.has(dimensions));
        if !known && self.series >= self.max_series && !*folded_once {
            *folded_once = true;
            let (series, folded) = fold(&mut self.owners, &mut self.other, seq, self.quiet);
            self.series -= series;
            self.folded += folded;
        }
        if known || self.series < self.max_series {
            let totals = self.owners.entry(labels).or_default();
            totals.last_seq = seq;
            self.series += usize::from(totals.add(dimensions, count));
        } else {
            self.turned_away += 1;
            self.other.add(dimensions, count);
        }
    }

    /// Drops the series of owners that have `ended` and been quiet; what they counted is in [`Totals::removed`].
    pub(crate) fn remove_ended(&mut self, seq: u32, mut ended: impl FnMut(&Labels) -> bool) {
        let Self {
            owners,
            removed,
            series,
            quiet,
            ..
        } = self;
        owners.retain(|labels, totals| {
            let keep = seq.saturating_sub(totals.last_seq) <= *quiet || !ended(labels);
            if !keep {
                *series -= totals.series.len();
                for (_, count) in &totals.series {
                    removed.add(*count);
                }
            }
            keep
        });
    }

    /// All series, those under `other` last. In no interval's midst: as of the last one that ended.
    pub fn series(&self) -> impl Iterator<Item = Series> {
        let other = Labels {
            owner: OTHER.to_owned(),
            ..Labels::default()
        };
        self.owners
            .iter()
            .map(|(labels, totals)| (labels.clone(), totals))
            .chain([(other, &self.other)])
            .flat_map(|(labels, totals)| {
                totals.series.iter().map(move |&(dimensions, count)| Series {
                    labels: labels.clone(),
                    direction: dimensions.direction,
                    protocol: dimensions.protocol,
                    peer: dimensions.peer,
                    packets: count.packets,
                    bytes: count.bytes,
                })
            })
    }

    /// Packets and bytes of one pod since the start, both directions.
    #[must_use]
    pub fn of_pod(&self, namespace: &str, pod: &str) -> (u64, u64) {
        // The workload is between the pod and the end of the order.
        let first = Labels {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            ..Labels::default()
        };
        self.owners
            .range(first..)
            .take_while(|(labels, _)| labels.namespace == namespace && labels.pod == pod)
            .flat_map(|(_, totals)| &totals.series)
            .fold((0, 0), |(packets, bytes), (_, count)| {
                (packets + count.packets, bytes + count.bytes)
            })
    }

    /// Packets of which it is not known whose they are, by reason.
    pub fn unattributed(&self) -> impl Iterator<Item = Unattributed> {
        REASONS
            .into_iter()
            .zip(self.unattributed)
            .map(|(reason, count)| Unattributed {
                reason,
                packets: count.packets,
                bytes: count.bytes,
            })
    }

    /// Packets and bytes of series that were removed, since their pods had ended.
    #[must_use]
    pub const fn removed(&self) -> (u64, u64) {
        (self.removed.packets, self.removed.bytes)
    }

    /// Packets that wait for their owner's name, and are in no series yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.open.values().map(|(count, _)| count.packets).sum()
    }

    /// Series with a name of their own.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.series
    }

    /// Whether nothing has a name of its own.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.series == 0
    }

    /// The most series with a name of their own.
    #[must_use]
    pub const fn max(&self) -> usize {
        self.max_series
    }

    /// How often a series, in an interval, had no room and was counted under `other`.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Owners whose series were folded into `other` after they had been quiet.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    pub(crate) fn memory(&self) -> usize {
        // Name, tree node share and a list of a few entries.
        self.owners.len() * 160
            + self.series * size_of::<(Dimensions, Count)>()
            + self.open.capacity() * (size_of::<((OwnerId, Dimensions), (Count, u32))>() + 1)
    }
}

impl OwnerTotals {
    fn has(&self, dimensions: Dimensions) -> bool {
        self.series.iter().any(|&(own, _)| own == dimensions)
    }

    /// Whether that made a new series.
    fn add(&mut self, dimensions: Dimensions, count: Count) -> bool {
        if let Some((_, sum)) = self.series.iter_mut().find(|(own, _)| *own == dimensions) {
            sum.add(count);
            return false;
        }
        self.series.push((dimensions, count));
        true
    }
}

/// Moves the series of owners quiet for longer than `quiet` intervals to `other`. How many series and owners.
fn fold(
    owners: &mut BTreeMap<Labels, OwnerTotals>,
    other: &mut OwnerTotals,
    seq: u32,
    quiet: u32,
) -> (usize, u64) {
    let (mut series, mut folded) = (0, 0);
    owners.retain(|_, totals| {
        let keep = seq.saturating_sub(totals.last_seq) <= quiet;
        if !keep {
            folded += 1;
            series += totals.series.len();
            for &(dimensions, count) in &totals.series {
                other.add(dimensions, count);
            }
        }
        keep
    });
    (series, folded)
}

/// An owner's name as a label: a process can call itself what it likes, so a name that could be taken for a
/// unit, a container, another sort of owner or one of our own words is marked.
pub(crate) fn label(owner: &Owner) -> String {
    let name = owner.name();
    if name.is_empty() {
        return match owner.kind {
            Kind::Host => "host".to_owned(),
            _ => "unknown".to_owned(),
        };
    }
    if !owner.container.is_empty() || !owner.unit.is_empty() {
        return name.to_owned();
    }
    if !owner.process.is_empty() {
        let container_like = name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let misleading = container_like
            || ["other", "unknown", "host"].contains(&name)
            || name
                .bytes()
                .any(|byte| matches!(byte, b'.' | b':' | b'/') || byte.is_ascii_control());
        return if misleading {
            format!("process:{name}")
        } else {
            name.to_owned()
        };
    }
    if !owner.netns.is_empty() {
        return format!("netns:{name}");
    }
    name.to_owned()
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

    const TCP: Dimensions = Dimensions {
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        peer: None,
    };

    fn sum(totals: &Totals) -> u64 {
        totals.series().map(|series| series.packets).sum()
    }

    #[test]
    fn labels_tell_sorts_of_owners_apart() {
        assert_eq!(label(&process("curl")), "curl");
        assert_eq!(label(&process("sshd.service")), "process:sshd.service");
        assert_eq!(label(&process("0123456789ab")), "process:0123456789ab");
        assert_eq!(label(&process("other")), "process:other");
        assert_eq!(
            label(&Owner {
                netns: "curl".into(),
                ..Owner::default()
            }),
            "netns:curl"
        );
        assert_eq!(
            label(&Owner {
                unit: "sshd.service".into(),
                ..Owner::default()
            }),
            "sshd.service"
        );
        assert_eq!(label(&Owner::default()), "unknown");
    }

    #[test]
    fn beyond_the_bound_everything_is_under_other_and_nothing_is_lost() {
        let mut owners = OwnerTable::new(100);
        let mut totals = Totals::new(3, 5, false);
        for n in 0..10 {
            let owner = owners.intern(process(&format!("p{n}")));
            totals.add(owner, TCP, 1, 10);
        }
        totals.end_interval(&owners, 1);
        assert_eq!(totals.len(), 3);
        assert_eq!(totals.turned_away(), 7);
        assert_eq!(sum(&totals), 10);
        let other = |totals: &Totals| {
            totals
                .series()
                .filter(|s| s.labels.owner == OTHER)
                .map(|s| s.packets)
                .sum::<u64>()
        };
        assert_eq!(other(&totals), 7);

        // Long after, a new owner gets the place of the quiet ones; the sum is as it was, and one more.
        let new = owners.intern(process("new"));
        totals.add(new, TCP, 1, 10);
        totals.end_interval(&owners, 10);
        assert_eq!((totals.len(), totals.folded()), (1, 3));
        assert_eq!(sum(&totals), 11);
        assert_eq!(other(&totals), 10);
    }
}
