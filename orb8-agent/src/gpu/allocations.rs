//! Asks the kubelet which container holds which device.

use std::{path::PathBuf, sync::Arc, time::Duration};

use orb8_gpu::{Owners, kubelet::PodResources};
use tokio_util::sync::CancellationToken;

use super::{Asked, Gpus};

/// What an answer may take at most.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Where there is no GPU, one may be plugged in, or a device plugin started: so often that is looked for.
const UNUSED: Duration = Duration::from_secs(30);

/// Asks until `stop`.
pub(super) async fn follow(
    gpus: Arc<Gpus>,
    owners: Arc<dyn Owners + Send + Sync>,
    socket: PathBuf,
    stop: CancellationToken,
) {
    let mut kubelet = PodResources::new(&socket, TIMEOUT);
    let mut absences = 0;
    loop {
        let listed = tokio::select! {
            () = stop.cancelled() => return,
            listed = kubelet.list() => listed,
        };
        let asked = match listed {
            Ok(allocations) => {
                absences = 0;
                let (gpus, owners) = (gpus.clone(), owners.clone());
                let taken = tokio::task::spawn_blocking(move || gpus.allocated(allocations, &*owners));
                match taken.await {
                    Ok(()) => Asked::Answered,
                    Err(error) => Asked::Failed(format!("its answer could not be taken in: {error}")),
                }
            }
            Err(error) => {
                gpus.allocations_unknown();
                // A kubelet that restarts is back in seconds.
                absences += 1;
                if socket.exists() {
                    Asked::Failed(error.to_string())
                } else {
                    Asked::Absent(error.to_string())
                }
            }
        };
        gpus.asked("pod-resources", &asked);
        let wait = if absences == 0 && gpus.is_empty() {
            UNUSED
        } else {
            gpus.wait(absences)
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
