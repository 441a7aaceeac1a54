//! Saves what has been learned, every minute and at the end.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::baseline;
use crate::core::{Core, lock};

/// How often.
const INTERVAL: Duration = Duration::from_secs(60);

/// Saves every minute until `stop`.
pub(crate) async fn save_regularly(core: Arc<Core>, directory: PathBuf, stop: CancellationToken) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The first is at once: a directory that cannot be written to is told of at the start.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (core, directory) = (core.clone(), directory.clone());
        // A write that fails is tried again in a minute.
        let _ = tokio::task::spawn_blocking(move || save(&core, &directory)).await;
    }
}

/// Saves now. Cost: linear in what is known, and a flush of the disk.
pub(crate) fn save(core: &Core, directory: &std::path::Path) {
    let text = lock(&core.store).syscalls.baseline.to_saved();
    if let Err(error) = baseline::save(directory, &text) {
        warn!(%error, "what was learned about workloads' calls is not saved");
    }
}
