//! A small web server and its client, for what probes cost a workload that does more than call the kernel.

use std::{
    convert::Infallible,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use http_body_util::Full;
use hyper::{
    Response, StatusCode, body::Bytes, header::CONTENT_TYPE, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::sys::resource::UsageWho;
use tokio::sync::oneshot;

use super::syscall::processor_time;

/// Bytes of the file that is served.
const FILE_BYTES: usize = 4096;
/// An answer that does not come by then ends the measurement.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server on loopback, in a thread of its own; ends when dropped.
pub(super) struct WebServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl WebServer {
    /// Serves one file, which is read anew for each request.
    ///
    /// # Errors
    /// If there is no place for the file, or no port.
    pub(super) fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file: Arc<std::path::Path> = directory.path().join("page").into();
        fs::write(&file, vec![b'x'; FILE_BYTES])?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port on loopback")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, file) => {}
                }
            });
        });
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
            _directory: directory,
        })
    }

    /// Seconds of processor time, of server and client, that so many requests take, one after the other over one connection.
    ///
    /// # Errors
    /// If an answer is not what was asked for.
    pub(super) fn requests(&self, count: u32) -> Result<f64> {
        let mut stream = TcpStream::connect(self.address).context("the web server does not answer")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let mut body = vec![0; FILE_BYTES];
        let mut line = String::new();
        let before = processor_time(UsageWho::RUSAGE_SELF)?;
        for _ in 0..count {
            stream.write_all(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            line.clear();
            answers.read_line(&mut line)?;
            ensure!(
                line.starts_with("HTTP/1.1 200"),
                "the web server answers {line:?}"
            );
            let mut length = None;
            loop {
                line.clear();
                answers.read_line(&mut line)?;
                let header = line.trim_end().to_ascii_lowercase();
                if header.is_empty() {
                    break;
                }
                if let Some(value) = header.strip_prefix("content-length: ") {
                    length = value.parse().ok();
                }
            }
            ensure!(
                length == Some(FILE_BYTES),
                "the web server sends {length:?} bytes"
            );
            answers.read_exact(&mut body)?;
        }
        Ok(processor_time(UsageWho::RUSAGE_SELF)? - before)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers until it is dropped.
async fn serve(listener: TcpListener, file: Arc<std::path::Path>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        // Otherwise the kernel waits for more to send.
        let _ = stream.set_nodelay(true);
        let file = file.clone();
        let service = service_fn(move |_| {
            let file = file.clone();
            async move { Ok::<_, Infallible>(page(&file)) }
        });
        tokio::spawn(async move {
            // Ends with the client.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn page(file: &std::path::Path) -> Response<Full<Bytes>> {
    let answer = match fs::read(file) {
        Ok(content) => Response::builder()
            .header(CONTENT_TYPE, "text/plain")
            .body(Full::from(content)),
        Err(error) => Response::builder()
            .status(StatusCode::INTERNAL_SERVER_ERROR)
            .body(Full::from(error.to_string())),
    };
    answer.unwrap_or_default()
}
