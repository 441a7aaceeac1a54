//! Prometheus metrics and health over HTTP.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::metrics::{self, MetricsSnapshot, SyscallMetrics};
use crate::{
    core::{Core, lock},
    live::ring_losses,
    probe::syscall::Mode,
    status::agent_status,
    syscalls::SyscallStore,
};

/// Connections at once; more wait.
const CONNECTIONS: usize = 32;
/// A request must have come by then, and a connection be over.
const HEADER_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// Serves `listener` until `stop`.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: others will be closed.
                    warn!(%error, "a metrics connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (core, stop) = (core.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| answer(core.clone(), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                result = tokio::time::timeout(CONNECTION_TIME, connection) => {
                    if let Ok(Err(error)) = result {
                        debug!(%error, "a metrics connection ended early");
                    }
                }
            }
        });
    }
}

async fn answer(core: Arc<Core>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = |status, text: String, kind: &'static str| {
        Response::builder()
            .status(status)
            .header(CONTENT_TYPE, kind)
            .body(Full::new(Bytes::from(text)))
            .unwrap_or_default()
    };
    const PLAIN: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD\n".to_owned(),
            PLAIN,
        ));
    }
    Ok(match request.uri().path() {
        "/metrics" => {
            let encoded = tokio::task::spawn_blocking(move || metrics::encode(snapshot(&core))).await;
            match encoded {
                Ok(Ok(page)) => text(StatusCode::OK, page, metrics::CONTENT_TYPE),
                Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"), PLAIN),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"), PLAIN),
            }
        }
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned(), PLAIN),
        "/readyz" if core.is_ready() => text(StatusCode::OK, "ready\n".to_owned(), PLAIN),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned(), PLAIN),
        _ => text(
            StatusCode::NOT_FOUND,
            "try /metrics, /healthz or /readyz\n".to_owned(),
            PLAIN,
        ),
    })
}

fn snapshot(core: &Core) -> MetricsSnapshot {
    let status = agent_status(core);
    let peak = core.live.take_peak();
    let mode = lock(&core.syscalls.probe).mode();
    let store = lock(&core.store);
    let totals = store.history.totals();
    MetricsSnapshot {
        status,
        totals: totals.series().collect(),
        unattributed: totals.unattributed().collect(),
        removed: totals.removed(),
        syscalls: syscalls(core, &store.syscalls, mode),
        gpus: core.gpus.devices(),
        gpu_sources: core.gpus.sources(),
        gpu_errors: core.gpus.errors(),
        cuda: core.gpus.cuda.calls(&core.node, None, None),
        cuda_held: core.gpus.cuda.held(),
        pods_tracked: core
            .membership
            .cluster()
            .map(|cluster| cluster.own_pods().iter().filter(|pod| !pod.deleted).count() as u64),
        series_turned_away: totals.turned_away(),
        owners_folded: totals.folded(),
        ring_drops: ring_losses(core).0,
        ring_utilization: (peak as f64 / f64::from(core.limits.ring_bytes)).min(1.0),
    }
}

fn syscalls(core: &Core, store: &SyscallStore, mode: Mode) -> SyscallMetrics {
    let totals = &store.totals;
    SyscallMetrics {
        mode: match mode {
            Mode::Off => "off",
            Mode::Counts => "counts",
            Mode::Latency => "latency",
        },
        calls: totals.calls(),
        errors: totals.errors(),
        events: totals.events(),
        removed: totals.removed(),
        turned_away: totals.turned_away(),
        folded: totals.folded(),
        baseline: store.baseline.counts(),
        workloads: store.baseline.warm(),
        read_failures: core.syscalls.failures.load(Ordering::Relaxed),
    }
}
