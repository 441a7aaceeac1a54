//! Events as they happen: from the kernel's ring to every subscriber, each at its own pace.
//!
//! The programs send records only while somebody listens.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use orb8_common::network::{DnsAnswer, Event, Hook, event, kind};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    core::{Core, lock},
    identity::owner::Owner,
    naming::peer_address,
    pipeline::ip,
    probe::{
        kernel_clock::KernelClock,
        network::load::{ControlMap, EventRing},
    },
    ring,
    store::{Direction, LiveEvent},
};

/// Subscribers to events.
#[derive(Debug)]
pub(crate) struct Live {
    sender: broadcast::Sender<Arc<LiveEvent>>,
    /// How many listen. The lock makes the count and the programs' switch one.
    listeners: Mutex<u32>,
    control: ControlMap,
    /// Fullest that the ring was found since the last look, in bytes.
    peak: AtomicU64,
    /// Events that subscribers were too slow for.
    pub(crate) missed: AtomicU64,
    /// Events handed to subscribers.
    pub(crate) delivered: AtomicU64,
}

impl Live {
    /// Keeps up to `buffer` events for slow subscribers.
    pub(crate) fn new(control: ControlMap, buffer: u32) -> Self {
        Self {
            sender: broadcast::channel(buffer as usize).0,
            listeners: Mutex::new(0),
            control,
            peak: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        }
    }

    /// Listens from now on.
    ///
    /// # Errors
    /// If the programs cannot be told to send events.
    pub(crate) fn subscribe(core: &Arc<Core>) -> Result<Subscription, aya::maps::MapError> {
        let mut listeners = lock(&core.live.listeners);
        if *listeners == 0 {
            core.live.control.update(|control| control.events = 1)?;
        }
        *listeners += 1;
        Ok(Subscription {
            receiver: core.live.sender.subscribe(),
            core: core.clone(),
        })
    }

    /// Fullest that the ring was since the last call, in bytes.
    pub(crate) fn take_peak(&self) -> u64 {
        self.peak.swap(0, Ordering::Relaxed)
    }
}

/// Events for one listener.
#[derive(Debug)]
pub(crate) struct Subscription {
    receiver: broadcast::Receiver<Arc<LiveEvent>>,
    core: Arc<Core>,
}

/// What a listener gets.
#[derive(Debug)]
pub(crate) enum Received {
    /// An event.
    Event(Arc<LiveEvent>),
    /// So many events were missed here.
    Missed(u64),
}

impl Subscription {
    /// The next event; `None` when the agent ends. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Received> {
        match self.receiver.recv().await {
            Ok(event) => {
                self.core.live.delivered.fetch_add(1, Ordering::Relaxed);
                Some(Received::Event(event))
            }
            Err(RecvError::Lagged(missed)) => {
                self.core.live.missed.fetch_add(missed, Ordering::Relaxed);
                Some(Received::Missed(missed))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut listeners = lock(&self.core.live.listeners);
        *listeners -= 1;
        if *listeners == 0
            && let Err(error) = self.core.live.control.update(|control| control.events = 0)
        {
            warn!(%error, "the programs go on sending events that nobody reads");
        }
    }
}

/// Reads the ring of events until `stop`.
pub(crate) async fn read_events(core: Arc<Core>, events: EventRing, stop: CancellationToken) {
    let each = |record: &[u8], clock| {
        // Each record has a header of 8 bytes; other sizes there are none.
        let Some(record) = read_record::<Event>(record) else {
            return;
        };
        if record.kind == event::PRESSURE {
            core.drain_early();
            return;
        }
        let _ = core.live.sender.send(Arc::new(named(&core, &record, clock)));
    };
    let read = |count| {
        let bytes = (count * (size_of::<Event>() + 8)) as u64;
        core.live.peak.fetch_max(bytes, Ordering::Relaxed);
    };
    ring::follow(events, "live events", stop, each, read).await;
}

/// Reads the ring of DNS answers until `stop`.
pub(crate) async fn read_dns_answers(core: Arc<Core>, answers: EventRing, stop: CancellationToken) {
    let each = |record: &[u8], clock: KernelClock| {
        let Some(answer) = read_record::<DnsAnswer>(record) else {
            return;
        };
        let len = (answer.len as usize).min(answer.payload.len());
        let time_ns = clock.unix_ns(answer.time_ns);
        lock(&core.names)
            .dns
            .learn(answer.point, time_ns, &answer.payload[..len]);
    };
    ring::follow(answers, "names of external addresses", stop, each, |_| ()).await;
}

/// A record of the programs. `T` is one of orb8-common's, for which any bytes are valid.
fn read_record<T: Copy>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as the record has, and any will do: integers without padding.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// An event with the names of its ends.
fn named(core: &Core, event: &Event, clock: KernelClock) -> LiveEvent {
    let key = event.key;
    let socket = key.kind & kind::SOCKET != 0;
    let (owner, inverted, interface) = if socket {
        (None, false, None)
    } else {
        let points = lock(&core.points);
        match points.get(u32::try_from(key.point).unwrap_or(0)) {
            Some(point) => (
                Some(point.owner.clone()),
                point.is_inverted(),
                Some(point.interface.name.clone()),
            ),
            None => (Some(Owner::default()), false, None),
        }
    };
    let direction = Direction::of(key.kind, inverted);
    let (local, port) = if direction == Direction::Egress {
        (&key.src, key.sport)
    } else {
        (&key.dst, key.dport)
    };
    let is_ip = key.kind & (kind::IPV4 | kind::IPV6) != 0;
    let time_ns = clock.unix_ns(event.time_ns);
    let mut names = lock(&core.names);
    let owner = owner.unwrap_or_else(|| {
        names.socket_owner(key.point, event.tgid, None, Some((key.protocol, ip(local), port)))
    });
    let via = names.via(&key, false);
    let peer = if is_ip {
        let (address, port) = peer_address(&key, direction, via.as_ref());
        names.peer(address, port, key.protocol, key.point, time_ns)
    } else {
        Owner::default()
    };
    LiveEvent {
        key,
        direction,
        owner,
        peer,
        via,
        interface,
        kind: event.kind,
        time_ns,
        bytes: event.bytes,
        tcp_flags: event.tcp_flags,
        weight: event.weight,
    }
}

/// Records that the ring had no room for, and that sampling left out, since the start.
pub(crate) fn ring_losses(core: &Core) -> (u64, u64) {
    core.counters
        .hook(Hook::Events)
        .map_or((0, 0), |stats| (stats.lost, stats.filtered))
}
