//! What address translation (NAT) made of connections: Services of Kubernetes, port forwards, masquerading.
//!
//! The kernel's connection tracking is read through ctnetlink (net/netfilter/nf_conntrack_netlink.c), in the network
//! namespace of the thread that calls [`Conntrack::open`]. Connections that are not translated are dropped by a
//! filter inside the kernel and are not kept. Whether the translation was made by iptables, nftables or IPVS does not
//! matter, nor whether conntrack keeps accounts; what a program of eBPF translates without conntrack (Cilium's
//! replacement of kube-proxy) cannot be seen here.

use std::{
    collections::HashSet,
    fs::File,
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    time::{Duration, Instant},
};

use tracing::{debug, info};

use self::{
    message::{Connection, Reading},
    table::{Hit, Inserted, Key, Table},
};
use crate::netlink::Socket;

mod filter;
mod message;
mod table;

/// An address and a port.
pub type Endpoint = (IpAddr, u16);

/// How long an ended connection stays findable, for records that arrive late.
const KEEP_ENDED: Duration = Duration::from_secs(30);
/// Notifications handled in one [`Conntrack::refresh`], so that a flood does not hold the caller for ever.
const MOST_NOTIFICATIONS: usize = 1 << 18;
/// How often lookups are allowed anew.
const LOOKUP_PERIOD: Duration = Duration::from_secs(1);
/// How long the kernel's word about one tuple is taken without asking again.
const TRUST: Duration = Duration::from_secs(2);
/// The whole table is read again so often: where nothing tells of ends, where something might not, and otherwise.
const LIST_WITHOUT_EVENTS: Duration = Duration::from_secs(30);
const LIST_UNFOLLOWED: Duration = Duration::from_secs(60);
const LIST: Duration = Duration::from_secs(300);
/// And never more often than this, nor for more than a twentieth of the time.
const LIST_PAUSE: Duration = Duration::from_secs(1);

/// How much is kept and asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConntrackLimits {
    /// Translated connections kept, with those that ended in the last 30 s. One takes some 150 bytes.
    pub connections: usize,
    /// Single connections asked of the kernel in a second, because nothing was known of a packet.
    pub lookups: u32,
    /// Bytes of the kernel's queue of notifications; one takes some 640 of them (measured on Linux 6.18: 8 MiB hold
    /// 13,000), and a connection makes two.
    pub receive_buffer: i32,
}

impl Default for ConntrackLimits {
    fn default() -> Self {
        Self {
            connections: 65_536,
            lookups: 200,
            receive_buffer: 8 << 20,
        }
    }
}

/// A failure to read connection tracking.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// Netlink refuses us.
    #[error("connection tracking: {action}: not permitted; reading it needs CAP_NET_ADMIN")]
    NotPermitted {
        /// What was tried.
        action: &'static str,
    },
    /// Netlink failed.
    #[error("connection tracking: {action}: {source}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl ConntrackError {
    fn new(action: &'static str, source: io::Error) -> Self {
        if source.raw_os_error() == Some(libc::EPERM) {
            Self::NotPermitted { action }
        } else {
            Self::Netlink { action, source }
        }
    }
}

/// A packet's addresses as seen somewhere on its way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// IP protocol number. Only TCP, UDP, UDP-Lite, SCTP and DCCP are ever translated here.
    pub protocol: u8,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

impl Tuple {
    fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
        }
    }
}

/// A translated connection, as its client meant it and as it went.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Translation {
    /// Who opened it.
    pub client: Endpoint,
    /// The destination that the client addressed: a cluster IP, a node port, a load balancer, or the backend itself.
    pub asked: Endpoint,
    /// Where it really went.
    pub backend: Endpoint,
    /// The source that the backend saw: the client, or what it was hidden behind.
    pub reply_to: Endpoint,
    /// Whether the packet asked for goes to the backend (`false`: to the client).
    pub towards_backend: bool,
}

/// What the kernel tells of beginnings and ends (`net.netfilter.nf_conntrack_events`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Events {
    /// Of all (1).
    All,
    /// Of connections that began while someone listened, as we do now (2, the default since 6.0).
    Listened,
    /// Of none (0, or the kernel cannot): what is not found is asked for one by one, within
    /// [`ConntrackLimits::lookups`], and the table is read again every 30 s.
    Off,
}

/// What happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConntrackCounters {
    /// Notifications of translated connections.
    pub events: u64,
    /// Messages of the kernel that could not be read.
    pub malformed: u64,
    /// Times that notifications were lost because our queue was full; the table was read again after each.
    pub overruns: u64,
    /// Times that the table was read.
    pub listings: u64,
    /// Connections that had no room, all others being alive; again each time that the table is read. A packet of
    /// theirs is looked up singly.
    pub turned_away: u64,
    /// Ended connections forgotten before their 30 s, for want of room.
    pub forgotten_early: u64,
    /// Connections that the kernel was asked for singly.
    pub lookups: u64,
    /// Lookups that were not made, because there had been too many in that second.
    pub lookups_refused: u64,
    /// Translations that only a lookup found.
    pub found_by_lookup: u64,
}

/// Translated connections of one network namespace.
///
/// Neither synchronised nor asynchronous: calls into the kernel take microseconds, except reading the whole table,
/// which takes 20 ms where it is empty but has 262,144 buckets (measured on Linux 6.18), and more with what it holds.
/// To keep the kernel's queue short, call [`Conntrack::refresh`] whenever its descriptor ([`AsFd`]) is readable, or
/// at least every second.
#[derive(Debug)]
pub struct Conntrack {
    limits: ConntrackLimits,
    counters: ConntrackCounters,
    notifications: Socket,
    requests: Socket,
    /// The sysctl of our namespace: the file stays with the namespace in which it was opened.
    mode: Option<File>,
    events: Events,
    table: Table,
    /// Counts listings, to find what is no longer there.
    generation: u32,
    lost: bool,
    listed: Instant,
    list_allowed: Instant,
    now: Instant,
    lookups_left: u32,
    lookups_since: Instant,
    recent: Answers,
    older: Answers,
    answers_since: Instant,
}

/// What the kernel said lately of tuples of which we know no translation, or doubt one. Bounded by the lookups.
#[derive(Debug, Default)]
struct Answers {
    /// Connections that are not translated.
    plain: HashSet<Key>,
    /// No connections.
    nothing: HashSet<Key>,
}

/// The kernel's answer about one tuple.
enum Asked {
    Translated(Connection),
    Plain,
    Nothing,
    /// Too many questions, or it did not answer.
    Unknown,
}

impl AsFd for Conntrack {
    /// Readable when notifications wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }
}

impl Conntrack {
    /// Subscribes to the beginnings and ends of connections, and reads those that exist.
    ///
    /// `None`, and a line in the log, where the kernel has no connection tracking or no netlink access to it.
    ///
    /// # Errors
    ///
    /// Without `CAP_NET_ADMIN`, or when netlink fails.
    pub fn open(limits: ConntrackLimits) -> Result<Option<Self>, ConntrackError> {
        let subscribed = Socket::subscribe(
            libc::NETLINK_NETFILTER,
            // UPDATE is left out: it is the most frequent, and a connection's translation never changes.
            &[message::GROUP_NEW, message::GROUP_DESTROY],
            limits.receive_buffer,
            &filter::translated_only(),
        );
        let notifications = match subscribed {
            Ok(socket) => socket,
            Err(error) if is_absent(&error) => return Ok(absent(&error)),
            Err(error) => return Err(ConntrackError::new("subscribe to its events", error)),
        };
        let requests = Socket::open(libc::NETLINK_NETFILTER)
            .map_err(|error| ConntrackError::new("open netlink", error))?;
        let now = Instant::now();
        let mut conntrack = Self {
            limits,
            counters: ConntrackCounters::default(),
            notifications,
            requests,
            mode: File::open("/proc/sys/net/netfilter/nf_conntrack_events").ok(),
            events: Events::Off,
            table: Table::new(limits.connections, now),
            generation: 0,
            lost: false,
            listed: now,
            list_allowed: now,
            now,
            lookups_left: limits.lookups,
            lookups_since: now,
            recent: Answers::default(),
            older: Answers::default(),
            answers_since: now,
        };
        conntrack.events = conntrack.read_mode();
        match conntrack.list(now) {
            Ok(()) => Ok(Some(conntrack)),
            Err(ConntrackError::Netlink { source, .. }) if is_absent(&source) => Ok(absent(&source)),
            Err(error) => Err(error),
        }
    }

    /// Takes all notifications that wait, without blocking; forgets connections that ended 30 s before `now`; reads
    /// the whole table again where notifications were lost or when it is time.
    ///
    /// Costs about 3 µs a notification (20,000 in 57 ms on the machine of docs/PERFORMANCE.md).
    ///
    /// # Errors
    ///
    /// When netlink fails. What is known stays, and the next call tries again.
    pub fn refresh(&mut self, now: Instant) -> Result<(), ConntrackError> {
        self.now = now;
        if now.saturating_duration_since(self.lookups_since) >= LOOKUP_PERIOD {
            self.lookups_since = now;
            self.lookups_left = self.limits.lookups;
        }
        if now.saturating_duration_since(self.answers_since) >= TRUST {
            self.answers_since = now;
            self.older = std::mem::take(&mut self.recent);
        }
        self.take_notifications(now)?;
        self.table.expire(now, KEEP_ENDED);
        let age = now.saturating_duration_since(self.listed);
        if age >= LIST_WITHOUT_EVENTS {
            self.events = self.read_mode();
        }
        let interval = match self.events {
            Events::Off => LIST_WITHOUT_EVENTS,
            Events::Listened if self.table.unfollowed() > 0 => LIST_UNFOLLOWED,
            Events::Listened | Events::All => LIST,
        };
        if (self.lost || age >= interval) && now >= self.list_allowed {
            self.list(now)?;
        }
        Ok(())
    }

    /// The translation of the connection that a packet with this tuple belongs to, in either direction, before or
    /// behind any of its translations; `None` if it is not translated as far as is known.
    ///
    /// What is not known is asked of the kernel (some 10 µs) if `ask`, at most [`ConntrackLimits::lookups`] times a second:
    /// most packets are of connections that are not translated, and events tell of those that are.
    pub fn translation(&mut self, tuple: &Tuple, ask: bool) -> Option<Translation> {
        if !message::PROTOCOLS.contains(&tuple.protocol) {
            return None;
        }
        let tuple = Tuple {
            src: tuple.src.to_canonical(),
            dst: tuple.dst.to_canonical(),
            ..*tuple
        };
        let key = Key::of(&tuple);
        let Some(hit) = self.table.find(&key) else {
            if !ask || self.answered(&key) {
                return None;
            }
            let Asked::Translated(connection) = self.ask(&tuple, &key) else {
                return None;
            };
            self.counters.found_by_lookup += 1;
            return connection.translation(&tuple);
        };
        if !self.is_doubtful(&hit) {
            return hit.connection.translation(&tuple);
        }
        if self.recent.plain.contains(&key) || self.older.plain.contains(&key) {
            return None;
        }
        if !self.answered(&key) {
            match self.ask(&tuple, &key) {
                Asked::Translated(connection) => return connection.translation(&tuple),
                Asked::Plain => return None,
                Asked::Nothing => {
                    if hit.exact {
                        self.table.end(&hit, self.now);
                    }
                }
                // A connection past both translations is rarely seen in between; better no name than a wrong one.
                Asked::Unknown if !hit.exact => return None,
                Asked::Unknown => {}
            }
        }
        hit.connection.translation(&tuple)
    }

    /// What the kernel tells us.
    #[must_use]
    pub fn events(&self) -> Events {
        self.events
    }

    /// The limits in force.
    #[must_use]
    pub const fn limits(&self) -> ConntrackLimits {
        self.limits
    }

    /// Connections kept, with the ended ones.
    #[must_use]
    pub fn used(&self) -> usize {
        self.table.len()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> ConntrackCounters {
        self.counters
    }

    /// Whether another connection could have this tuple by now, so that the kernel has to be asked:
    /// - the middle of two translations is no key of the kernel's, and a direct connection may have the same;
    /// - an ended connection's backend may since talk to the same client without a translation;
    /// - the end of a connection that no notification will tell of.
    fn is_doubtful(&self, hit: &Hit) -> bool {
        !hit.exact
            || (hit.ended && !hit.original)
            || (!hit.followed && !hit.ended && self.table.age(hit, self.now) > TRUST)
    }

    fn answered(&self, key: &Key) -> bool {
        [&self.recent, &self.older]
            .iter()
            .any(|answers| answers.nothing.contains(key) || answers.plain.contains(key))
    }

    /// Asks the kernel for the connection that has this tuple in either direction.
    fn ask(&mut self, tuple: &Tuple, key: &Key) -> Asked {
        if self.lookups_left == 0 {
            self.counters.lookups_refused += 1;
            return Asked::Unknown;
        }
        self.lookups_left -= 1;
        self.counters.lookups += 1;
        // The kernel looks a tuple up among those of both directions, but knows each only as it is first seen:
        // before translation.
        for tuple in [*tuple, tuple.reversed()] {
            let Some(body) = message::lookup(&tuple) else {
                return Asked::Unknown;
            };
            let reading = self.requests.request(message::GET, &body, |message| {
                (message.kind == message::NEW).then(|| message::read(message.payload))
            });
            match reading {
                Ok(Some(Reading::Translated(connection))) => {
                    let followed = self.events == Events::All;
                    let inserted = self.table.insert(connection, followed, self.generation, self.now);
                    self.counters.count(inserted);
                    return Asked::Translated(connection);
                }
                Ok(Some(Reading::Untranslated)) => {
                    self.recent.plain.insert(*key);
                    return Asked::Plain;
                }
                Ok(Some(Reading::Malformed)) => {
                    self.counters.malformed += 1;
                    return Asked::Unknown;
                }
                Ok(None) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => {
                    debug!(%error, "a connection could not be looked up");
                    return Asked::Unknown;
                }
            }
        }
        self.recent.nothing.insert(*key);
        Asked::Nothing
    }

    fn take_notifications(&mut self, now: Instant) -> Result<(), ConntrackError> {
        for _ in 0..MOST_NOTIFICATIONS {
            match self.notifications.notification() {
                Ok(Some(messages)) => {
                    for message in messages {
                        if message.kind != message::NEW && message.kind != message::DELETE {
                            continue;
                        }
                        match message::read(message.payload) {
                            Reading::Translated(connection) if message.kind == message::NEW => {
                                self.counters.events += 1;
                                let inserted = self.table.insert(connection, true, self.generation, now);
                                self.counters.count(inserted);
                            }
                            Reading::Translated(connection) => {
                                self.counters.events += 1;
                                self.table.destroyed(&connection, now);
                            }
                            Reading::Untranslated => {}
                            Reading::Malformed => self.counters.malformed += 1,
                        }
                    }
                }
                Ok(None) => break,
                // The kernel queues nothing more until everything has been read.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.counters.overruns += 1;
                    self.lost = true;
                }
                Err(error) => return Err(ConntrackError::new("read its events", error)),
            }
        }
        Ok(())
    }

    /// Reads the whole table; what is not in it has ended.
    fn list(&mut self, now: Instant) -> Result<(), ConntrackError> {
        let began = Instant::now();
        let turned_away = self.counters.turned_away;
        let ended = self.list_once(now)?;
        if self.counters.turned_away > turned_away && ended > 0 {
            // Those that had no room have some now.
            self.counters.turned_away = turned_away;
            self.list_once(now)?;
        }
        self.lost = false;
        self.listed = now;
        self.list_allowed = now + (began.elapsed() * 20).max(LIST_PAUSE);
        Ok(())
    }

    /// Returns how many had ended unnoticed.
    fn list_once(&mut self, now: Instant) -> Result<usize, ConntrackError> {
        let generation = self.generation.wrapping_add(1);
        let followed = self.events == Events::All;
        // A filter's bits must all match: first those with a translated destination, then those without.
        for (wanted, mask) in [
            (message::DST_NAT, message::DST_NAT),
            (message::SRC_NAT, message::SRC_NAT | message::DST_NAT),
        ] {
            let (table, counters) = (&mut self.table, &mut self.counters);
            let mut unfiltered = false;
            self.requests
                .dump(
                    message::GET,
                    &message::list(wanted, mask),
                    |message| -> Option<()> {
                        if message.kind != message::NEW {
                            return None;
                        }
                        match message::read(message.payload) {
                            Reading::Translated(connection) => {
                                unfiltered |= connection.status & mask != wanted;
                                counters.count(table.insert(connection, followed, generation, now));
                            }
                            // Also ICMP passes the kernel's filter.
                            Reading::Untranslated => {}
                            Reading::Malformed => counters.malformed += 1,
                        }
                        None
                    },
                )
                .map_err(|error| ConntrackError::new("read its table", error))?;
            // A kernel that ignores the filter has told everything.
            if unfiltered {
                break;
            }
        }
        self.generation = generation;
        self.counters.listings += 1;
        Ok(self.table.end_unlisted(generation, now))
    }

    fn read_mode(&self) -> Events {
        let mut text = [0; 4];
        let Some(Ok(length)) = self.mode.as_ref().map(|file| file.read_at(&mut text, 0)) else {
            return Events::Off;
        };
        match text[..length].trim_ascii() {
            b"1" => Events::All,
            b"2" => Events::Listened,
            _ => Events::Off,
        }
    }
}

impl ConntrackCounters {
    fn count(&mut self, inserted: Inserted) {
        match inserted {
            Inserted::Kept => {}
            Inserted::InsteadOfEnded => self.forgotten_early += 1,
            Inserted::TurnedAway => self.turned_away += 1,
        }
    }
}

/// Whether the kernel says that it lacks nfnetlink (`EPROTONOSUPPORT`) or ctnetlink (`EINVAL`: nobody has registered
/// the subsystem, `nfnetlink_rcv_msg`).
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

fn absent(error: &io::Error) -> Option<Conntrack> {
    info!(
        "connection tracking cannot be read ({error}): translated connections are shown as they are on the wire; \
         `modprobe nf_conntrack_netlink` on the node helps if the kernel has it as a module"
    );
    None
}
