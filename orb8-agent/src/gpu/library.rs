//! Reads NVML, on threads of its own: a GPU in trouble may keep a call for seconds.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use orb8_gpu::{
    Owners,
    nvml::{EventWatcher, Library, NvmlError},
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Asked, Gpus};

/// How long the driver is waited for, for an error to be told: so long a stop may find the thread waiting.
const EVENT_WAIT: Duration = Duration::from_secs(1);

/// Samples all GPUs until `stop`.
pub(super) fn follow(
    gpus: &Arc<Gpus>,
    owners: Arc<dyn Owners + Send + Sync>,
    path: Option<PathBuf>,
    stop: CancellationToken,
) {
    let handle = Handle::current();
    let started = thread::Builder::new().name("orb8-nvml".to_owned()).spawn({
        let gpus = gpus.clone();
        move || run(&gpus, &*owners, path.as_deref(), &stop, &handle)
    });
    if let Err(error) = started {
        gpus.asked(
            "nvml",
            &Asked::Failed(format!("a thread for it cannot be started: {error}")),
        );
    }
}

fn run(
    gpus: &Arc<Gpus>,
    owners: &dyn Owners,
    path: Option<&std::path::Path>,
    stop: &CancellationToken,
    handle: &Handle,
) {
    let mut absences = 0;
    let mut opened: Option<(Library, Watch)> = None;
    loop {
        let begun = Instant::now();
        let asked = match &mut opened {
            None => match Library::open(path) {
                Ok(library) => {
                    let watch = Watch::start(gpus, &library, stop);
                    opened = Some((library, watch));
                    absences = 0;
                    // Sampled at once.
                    continue;
                }
                Err(NvmlError::Static { path }) => {
                    let reason = NvmlError::Static { path }.to_string();
                    gpus.asked("nvml", &Asked::Absent(reason));
                    return;
                }
                Err(error) => {
                    absences += 1;
                    let reason = error.to_string();
                    if error.is_absent() {
                        Asked::Absent(reason)
                    } else {
                        Asked::Failed(reason)
                    }
                }
            },
            Some((library, _)) => match library.sample() {
                Ok(snapshot) => {
                    gpus.sampled(snapshot, owners);
                    Asked::Answered
                }
                Err(error) => {
                    absences += 1;
                    opened = None;
                    Asked::Failed(error.to_string())
                }
            },
        };
        gpus.asked("nvml", &asked);
        let wait = gpus.wait(absences).saturating_sub(begun.elapsed());
        let stopped = handle.block_on(async { tokio::time::timeout(wait, stop.cancelled()).await.is_ok() });
        if stopped {
            return;
        }
    }
}

/// A thread that waits for errors, as long as the library stays open.
struct Watch {
    over: Arc<AtomicBool>,
}

impl Watch {
    fn start(gpus: &Arc<Gpus>, library: &Library, stop: &CancellationToken) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let watcher = match library.watch() {
            Ok(watcher) => watcher,
            Err(error) => {
                info!(%error, "GPUs: XID errors are not told by NVML as they happen");
                return Self { over };
            }
        };
        for reason in watcher.unwatched() {
            info!(reason, "GPUs: XID errors of a GPU are not told as they happen");
        }
        let (gpus, stop) = (gpus.clone(), stop.clone());
        let started = thread::Builder::new().name("orb8-xid".to_owned()).spawn({
            let over = over.clone();
            move || watch(&gpus, watcher, &over, &stop)
        });
        if let Err(error) = started {
            warn!(%error, "GPUs: XID errors are not told by NVML as they happen");
        }
        Self { over }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn watch(gpus: &Gpus, mut watcher: EventWatcher, over: &AtomicBool, stop: &CancellationToken) {
    let mut failing = false;
    while !over.load(Ordering::Relaxed) && !stop.is_cancelled() {
        match watcher.wait(EVENT_WAIT) {
            Ok(event) => {
                failing = false;
                if let Some(event) = event {
                    gpus.happened(&event);
                }
            }
            Err(error) => {
                if !failing {
                    warn!(%error, "GPUs: XID errors cannot be waited for");
                }
                failing = true;
            }
        }
    }
}
