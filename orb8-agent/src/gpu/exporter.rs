//! Scrapes dcgm-exporter.

use std::{sync::Arc, time::Duration};

use orb8_gpu::{
    Owners,
    dcgm::{DcgmError, Scraper},
};
use tokio_util::sync::CancellationToken;

use super::{Asked, Gpus};

/// A page of 16 GPUs with all fields has some 300 KiB.
const MAX_PAGE: usize = 8 << 20;
/// What a scrape may take at most.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Samples the page until `stop`.
pub(super) async fn follow(
    gpus: Arc<Gpus>,
    owners: Arc<dyn Owners + Send + Sync>,
    url: String,
    stop: CancellationToken,
) {
    let scraper = match Scraper::new(&url, TIMEOUT.min(gpus.interval()), MAX_PAGE) {
        Ok(scraper) => scraper,
        Err(error) => {
            gpus.asked("dcgm", &Asked::Failed(error.to_string()));
            return;
        }
    };
    let mut absences = 0;
    loop {
        let sample = tokio::select! {
            () = stop.cancelled() => return,
            sample = scraper.sample() => sample,
        };
        let asked = match sample {
            Ok(snapshot) => {
                absences = 0;
                let (gpus, owners) = (gpus.clone(), owners.clone());
                let taken = tokio::task::spawn_blocking(move || gpus.scraped(snapshot, &*owners));
                match taken.await {
                    Ok(asked) => asked,
                    Err(error) => Asked::Failed(format!("its answer could not be taken in: {error}")),
                }
            }
            Err(error) => {
                absences += 1;
                match error {
                    DcgmError::Unreachable { .. } => Asked::Absent(error.to_string()),
                    error => Asked::Failed(error.to_string()),
                }
            }
        };
        gpus.asked("dcgm", &asked);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(gpus.wait(absences)) => {}
        }
    }
}
