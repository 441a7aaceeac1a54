//! Events of GPUs, for all who follow them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use orb8_proto::v1;
use tokio::sync::broadcast::{self, error::RecvError};

/// Subscribers to events.
#[derive(Debug)]
pub(crate) struct GpuLive {
    sender: broadcast::Sender<Arc<v1::GpuEvent>>,
    missed: Arc<AtomicU64>,
    delivered: Arc<AtomicU64>,
}

impl GpuLive {
    /// Keeps up to `buffer` events for slow subscribers.
    pub(super) fn new(buffer: u32) -> Self {
        Self {
            sender: broadcast::channel(buffer.max(1) as usize).0,
            missed: Arc::default(),
            delivered: Arc::default(),
        }
    }

    pub(super) fn send(&self, event: v1::GpuEvent) {
        // Nobody may listen.
        let _ = self.sender.send(Arc::new(event));
    }

    /// Events that subscribers were too slow for.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Events handed to subscribers.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Listens from now on.
    pub(crate) fn subscribe(&self) -> GpuEvents {
        GpuEvents {
            receiver: self.sender.subscribe(),
            missed: self.missed.clone(),
            delivered: self.delivered.clone(),
        }
    }
}

/// Events for one listener.
#[derive(Debug)]
pub(crate) struct GpuEvents {
    receiver: broadcast::Receiver<Arc<v1::GpuEvent>>,
    missed: Arc<AtomicU64>,
    delivered: Arc<AtomicU64>,
}

/// What a listener gets.
#[derive(Debug)]
pub(crate) enum ReceivedGpu {
    /// An event.
    Event(Arc<v1::GpuEvent>),
    /// So many events were missed here.
    Missed(u64),
}

impl GpuEvents {
    /// The next event; `None` when the agent ends. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<ReceivedGpu> {
        match self.receiver.recv().await {
            Ok(event) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                Some(ReceivedGpu::Event(event))
            }
            Err(RecvError::Lagged(missed)) => {
                self.missed.fetch_add(missed, Ordering::Relaxed);
                Some(ReceivedGpu::Missed(missed))
            }
            Err(RecvError::Closed) => None,
        }
    }
}
