//! Metrics and health over HTTP.

use std::{convert::Infallible, sync::Arc, time::Duration};

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

use crate::status::State;

/// Connections at once; more wait.
const CONNECTIONS: usize = 32;
/// A request must have come by then, and a connection be over.
const HEADER_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(60);
const PLAIN: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `listener` until `stop`.
pub(crate) async fn serve(state: Arc<State>, listener: TcpListener, stop: CancellationToken) {
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
        let (state, stop) = (state.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| std::future::ready(answer(&state, &request)));
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

fn answer(state: &State, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = |status, text: String, kind: &'static str| {
        Response::builder()
            .status(status)
            .header(CONTENT_TYPE, kind)
            .body(Full::new(Bytes::from(text)))
            .unwrap_or_default()
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD\n".to_owned(),
            PLAIN,
        ));
    }
    Ok(match request.uri().path() {
        "/metrics" => match state.metrics.page(state) {
            Ok(page) => text(StatusCode::OK, page, OPENMETRICS),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"), PLAIN),
        },
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned(), PLAIN),
        "/readyz" if state.is_ready() => text(StatusCode::OK, "ready\n".to_owned(), PLAIN),
        "/readyz" => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "it is not known yet which agents there are ({})\n",
                state.discovery.source
            ),
            PLAIN,
        ),
        _ => text(
            StatusCode::NOT_FOUND,
            "try /metrics, /healthz or /readyz\n".to_owned(),
            PLAIN,
        ),
    })
}
