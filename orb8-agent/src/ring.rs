//! Reading a ring buffer of the programs, woken by epoll.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::probe::{kernel_clock::KernelClock, object::EventRing};

/// Records that are read before others get their turn.
const BATCH: usize = 256;

/// Hands each record of `ring` to `each` until `stop`, and then the number of records that were read at once to `read`.
/// `what` there will be none of where the ring cannot be read.
pub(crate) async fn follow(
    ring: EventRing,
    what: &str,
    stop: CancellationToken,
    mut each: impl FnMut(&[u8], KernelClock),
    mut read: impl FnMut(usize),
) {
    // SAFETY: the descriptor stays open, and the same, as long as the ring lives.
    let mut ring = match unsafe { AsyncFd::register(RingFd(ring)) } {
        Ok(ring) => ring,
        Err(error) => {
            error!(%error, "a ring of the programs cannot be polled: there are no {what}");
            return;
        }
    };
    loop {
        let mut guard = tokio::select! {
            () = stop.cancelled() => return,
            guard = ring.readable_mut() => match guard {
                Ok(guard) => guard,
                Err(error) => {
                    error!(%error, "a ring of the programs cannot be polled any more: there are no {what}");
                    return;
                }
            },
        };
        let clock = KernelClock::now();
        let mut count = 0;
        let ring = &mut guard.get_inner_mut().0.0;
        while let Some(item) = ring.next() {
            count += 1;
            each(&item, clock);
            drop(item);
            if count == BATCH {
                break;
            }
        }
        read(count);
        if count < BATCH {
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
