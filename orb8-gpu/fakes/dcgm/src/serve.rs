//! The HTTP server.

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::StreamBody;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    compressed::{Bomb, gzip},
    fault::Fault,
};

/// Bytes that are sent at once.
const CHUNK: usize = 16 << 10;
/// In which what was written is sent.
const FLUSH: Duration = Duration::from_millis(100);
/// A row that a page without end goes on with.
const MORE: &str = "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\",UUID=\"GPU-00000000-0000-4000-8000-000000000000\"} 40\n";

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// This.
    Text(String),
    /// What the file holds when it is asked for.
    File(PathBuf),
}

impl<T: Into<String>> From<T> for Page {
    fn from(text: T) -> Self {
        Self::Text(text.into())
    }
}

impl Page {
    fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::File(path) => fs::read(path),
        }
    }
}

#[derive(Debug)]
struct State {
    pages: Mutex<Vec<Page>>,
    fault: Mutex<Fault>,
    requests: AtomicUsize,
}

/// An exporter that runs until it is dropped; then its connections break.
#[derive(Debug)]
pub struct Exporter {
    state: Arc<State>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Exporter {
    /// At this address; port 0 is any that is free. Each page is served once, in this order, and the last from then on.
    ///
    /// # Errors
    /// If the address can't be had, such as when another listens there.
    pub fn start(listen: SocketAddr, pages: Vec<Page>) -> io::Result<Self> {
        let state = Arc::new(State {
            pages: Mutex::new(pages),
            fault: Mutex::default(),
            requests: AtomicUsize::new(0),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fake-dcgm")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _guard = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, Arc::clone(&state)));
        Ok(Self {
            state,
            address,
            runtime: Some(runtime),
        })
    }

    /// On a free port of this machine, with one page.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn local(page: impl Into<Page>) -> io::Result<Self> {
        Self::start(SocketAddr::from(([127, 0, 0, 1], 0)), vec![page.into()])
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Of the page.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// From now on it serves these, each once, and the last from then on.
    pub fn serve(&self, pages: Vec<Page>) {
        *self.state.pages.lock().unwrap_or_else(PoisonError::into_inner) = pages;
    }

    /// From now on it misbehaves in this way.
    pub fn fault(&self, fault: Fault) {
        *self.state.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// How often the page was asked for.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // Not `shutdown_timeout`: that must not be called from within another runtime, where tests are.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // The port is free once the runtime's thread has dropped the listener.
        for _ in 0..200 {
            if std::net::TcpListener::bind(self.address).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files, or so: they may be closed by then.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&state)));
            // It fails when a fault breaks the connection, or the other side did.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body = StreamBody<ReceiverStream<Result<Frame<Bytes>, io::Error>>>;
type Sender = mpsc::Sender<Result<Frame<Bytes>, io::Error>>;

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, Infallible> {
    if request.uri().path() != "/metrics" {
        return Ok(whole(
            StatusCode::NOT_FOUND,
            "text/plain",
            b"404 page not found\n".to_vec(),
        ));
    }
    state.requests.fetch_add(1, Ordering::Relaxed);
    let fault = state.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let page = {
        let mut pages = state.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.len() > 1 {
            Some(pages.remove(0))
        } else {
            pages.first().cloned()
        }
    };
    let page = match page.map(|page| page.read()) {
        None => Vec::new(),
        Some(Ok(page)) => page,
        Some(Err(error)) => {
            let reason = format!("cannot read the page: {error}\n").into_bytes();
            return Ok(whole(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", reason));
        }
    };
    Ok(with(page, fault).await)
}

/// As dcgm-exporter calls it.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn with(page: Vec<u8>, fault: Fault) -> Response<Body> {
    let ok = |page| whole(StatusCode::OK, METRICS, page);
    match fault {
        Fault::None => ok(page),
        Fault::Silent => std::future::pending().await,
        Fault::Slow(time) => parts(page.len(), async move |sender: Sender| {
            let (first, rest) = page.split_at(page.len() / 2);
            let _ = send(&sender, first).await;
            sleep(time).await;
            let _ = send(&sender, rest).await;
        }),
        Fault::Gzip => compressed(ok(gzip(&page))),
        Fault::NotGzip => compressed(ok(page)),
        Fault::Truncated(length) => parts(page.len(), async move |sender: Sender| {
            let _ = send(&sender, page.get(..length).unwrap_or(&page)).await;
            // What is still in a buffer when the connection breaks does not come.
            sleep(FLUSH).await;
            let _ = sender.send(Err(io::Error::other("truncated"))).await;
        }),
        Fault::TruncatedGzip(length) => {
            let mut page = gzip(&page);
            page.truncate(length);
            compressed(ok(page))
        }
        Fault::Huge(size) => parts(None, async move |sender: Sender| {
            let rows = MORE.repeat(CHUNK / MORE.len());
            let mut sent = page.len() as u64;
            let mut going = send(&sender, &page).await;
            while going.is_some() && sent < size {
                going = send(&sender, rows.as_bytes()).await;
                sent += rows.len() as u64;
            }
        }),
        Fault::GzipBomb(size) => compressed(parts(None, async move |sender: Sender| {
            let bomb = Bomb::new(&page, MORE.repeat((1 << 20) / MORE.len()).as_bytes(), size);
            let mut going = send(&sender, &bomb.head).await;
            for _ in 0..bomb.times {
                if going.is_none() {
                    return;
                }
                going = send(&sender, &bomb.part).await;
            }
            let _ = send(&sender, &bomb.tail).await;
        })),
        Fault::Status(code) => whole(
            StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            "text/plain",
            b"it is said to fail\n".to_vec(),
        ),
        Fault::Redirect(url) => {
            let mut response = whole(StatusCode::FOUND, "text/plain", Vec::new());
            if let Ok(url) = HeaderValue::from_str(&url) {
                response.headers_mut().insert(LOCATION, url);
            }
            response
        }
        Fault::WrongContent => whole(
            StatusCode::OK,
            "text/html",
            b"<!DOCTYPE html>\n<html><body><h1>Sign in</h1></body></html>\n".to_vec(),
        ),
    }
}

fn whole(status: StatusCode, kind: &'static str, bytes: Vec<u8>) -> Response<Body> {
    let mut response = parts(bytes.len(), async move |sender: Sender| {
        let _ = send(&sender, &bytes).await;
    });
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn compressed(mut response: Response<Body>) -> Response<Body> {
    response
        .headers_mut()
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

/// A page that is sent as its parts are made; of a known length, or in chunks.
fn parts<F, W>(length: impl Into<Option<usize>>, make: F) -> Response<Body>
where
    F: FnOnce(Sender) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(make(sender));
    let mut response = Response::new(StreamBody::new(ReceiverStream::new(receiver)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(METRICS));
    if let Some(length) = length.into() {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    response
}

/// None: the other side went away.
async fn send(sender: &Sender, bytes: &[u8]) -> Option<()> {
    for chunk in bytes.chunks(CHUNK) {
        sender
            .send(Ok(Frame::data(Bytes::copy_from_slice(chunk))))
            .await
            .ok()?;
    }
    Some(())
}
