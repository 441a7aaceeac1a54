//! Events as they happen: from the kernel's ring to every subscriber, each at its own pace.
//!
//! The programs send records only while somebody listens.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use orb8_common::network::{Event, Hook, event, kind};
use tokio::{
    io::unix::AsyncFd,
    sync::broadcast::{self, error::RecvError},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    core::{Core, lock},
    identity::owner::Owner,
    naming::peer_address,
    pipeline::ip,
    probe::{
        kernel_clock::KernelClock,
        network::load::{ControlMap, EventRing},
    },
    store::{Direction, LiveEvent},
};

/// Records that are read before others get their turn.
const BATCH: usize = 256;

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

/// Reads the ring until `stop`, woken by epoll.
pub(crate) async fn read_ring(core: Arc<Core>, ring: EventRing, stop: CancellationToken) {
    // SAFETY: the descriptor stays open, and the same, as long as the ring lives.
    let mut ring = match unsafe { AsyncFd::register(RingFd(ring)) } {
        Ok(ring) => ring,
        Err(error) => {
            error!(%error, "the event ring cannot be polled: there are no live events");
            return;
        }
    };
    loop {
        let mut guard = tokio::select! {
            () = stop.cancelled() => return,
            guard = ring.readable_mut() => match guard {
                Ok(guard) => guard,
                Err(error) => {
                    error!(%error, "the event ring cannot be polled any more: there are no live events");
                    return;
                }
            },
        };
        let clock = KernelClock::now();
        let mut read = 0;
        let ring = &mut guard.get_inner_mut().0.0;
        while let Some(item) = ring.next() {
            read += 1;
            if item.len() == size_of::<Event>() {
                // SAFETY: the programs write this record, of this size, and any bytes are a valid one.
                let record: Event = unsafe { item.as_ptr().cast::<Event>().read_unaligned() };
                drop(item);
                if record.kind == event::PRESSURE {
                    core.drain_early();
                    continue;
                }
                let _ = core.live.sender.send(Arc::new(named(&core, &record, clock)));
            }
            if read == BATCH {
                break;
            }
        }
        // Each record has a header of 8 bytes.
        let bytes = (read * (size_of::<Event>() + 8)) as u64;
        core.live.peak.fetch_max(bytes, Ordering::Relaxed);
        if read < BATCH {
            guard.clear_ready();
        } else {
            tokio::task::yield_now().await;
        }
    }
}

struct RingFd(EventRing);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl AsFd for RingFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring is open for as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.0.as_raw_fd()) }
    }
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
