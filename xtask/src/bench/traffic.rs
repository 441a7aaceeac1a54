//! Generators and receivers, each a thread in its pod's network namespace.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    mem,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    namespace::joined,
    path::{A, B, Path},
};

const UDP_PORT: u16 = 7000;
const TCP_PORT: u16 = 7001;
/// Source ports of UDP flows: flows are destination address × source port.
const SOURCES: usize = 2;
const FIRST_SOURCE_PORT: u16 = 9000;
/// Payload of a 64-byte frame: 14 Ethernet, 20 IPv4, 8 UDP; the frame check sequence is not in software frames.
const PAYLOAD: usize = 22;
const BATCH: usize = 64;
/// CPU of the senders; receivers have the other one.
const SENDER_CPU: usize = 0;
const RECEIVER_CPU: usize = 1;

/// What a UDP run did.
#[derive(Clone, Copy, Debug)]
pub(super) struct UdpRun {
    /// Packets sent.
    pub(super) sent: u64,
    /// Time of sending.
    pub(super) elapsed: Duration,
}

impl UdpRun {
    /// Packets sent a second.
    pub(super) fn rate(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends 64-byte frames over `flows` flows in turn from pod A to pod B, as fast as it goes or at a rate.
///
/// # Errors
/// If a socket fails.
pub(super) fn udp(path: &Path, flows: usize, time: Duration, rate: Option<u64>) -> Result<UdpRun> {
    let done = Arc::new(AtomicBool::new(false));
    let (ready, is_ready) = std::sync::mpsc::channel();
    let stop = done.clone();
    let receiver = path.b.spawn(Some(RECEIVER_CPU), move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, UDP_PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let _ = ready.send(());
        receive(&socket, &stop)
    })?;
    is_ready.recv().context("the receiver did not start")?;
    let sender = path.a.spawn(Some(SENDER_CPU), move || send(flows, time, rate))?;
    let (sent, elapsed) = joined(sender)?;
    done.store(true, Relaxed);
    joined(receiver)?;
    Ok(UdpRun { sent, elapsed })
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Result<u64> {
    let mut buffers = [[0u8; 64]; BATCH];
    let mut parts: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: a plain C struct for which zeros are valid.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let mut received = 0;
    loop {
        // SAFETY: `messages` holds BATCH headers whose buffers live as long as this function.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        if got > 0 {
            received += u64::from(got.unsigned_abs());
        } else if stop.load(Relaxed) {
            return Ok(received);
        }
    }
}

fn send(flows: usize, time: Duration, rate: Option<u64>) -> Result<(u64, Duration)> {
    let sources = SOURCES.min(flows);
    let sockets = (0..sources)
        .map(|at| UdpSocket::bind((Ipv4Addr::from(A), FIRST_SOURCE_PORT + at as u16)))
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut addresses: Vec<libc::sockaddr_in> = (0..flows.div_ceil(sources))
        .map(|at| libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: UDP_PORT.to_be(),
            sin_addr: libc::in_addr {
                s_addr: u32::from_ne_bytes([10, 77, (at >> 8) as u8, at as u8]),
            },
            sin_zero: [0; 8],
        })
        .collect();
    let payload = [0x5a_u8; PAYLOAD];
    let mut part = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    let part: *mut libc::iovec = &raw mut part;
    let mut messages: Vec<libc::mmsghdr> = addresses
        .iter_mut()
        .map(|address| {
            // SAFETY: a plain C struct for which zeros are valid.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let begin = Instant::now();
    let mut sent = 0u64;
    loop {
        for socket in &sockets {
            let mut at = 0;
            while at < messages.len() {
                let elapsed = begin.elapsed();
                if elapsed >= time {
                    return Ok((sent, elapsed));
                }
                let mut count = BATCH.min(messages.len() - at);
                if let Some(rate) = rate {
                    let due = (rate as f64 * elapsed.as_secs_f64()) as u64;
                    if due <= sent {
                        thread::sleep(Duration::from_micros(200));
                        continue;
                    }
                    count = count.min((due - sent) as usize);
                }
                // SAFETY: `count` headers from `at` on are in `messages`; address and payload live as long as this
                // function, and the kernel only reads them.
                let result = unsafe {
                    libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr().add(at), count as u32, 0)
                };
                if result > 0 {
                    sent += u64::from(result.unsigned_abs());
                    at += result.unsigned_abs() as usize;
                } else {
                    let error = std::io::Error::last_os_error();
                    if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
                        && error.raw_os_error() != Some(libc::ENOBUFS)
                    {
                        bail!("cannot send: {error}");
                    }
                }
            }
        }
    }
}

/// A listener in pod B that hands each connection to `serve` on a thread, until it is dropped.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Server {
    fn start(path: &Path, serve: fn(TcpStream, &AtomicU64), count: Arc<AtomicU64>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let stopped = stop.clone();
        let thread = path.b.spawn(Some(RECEIVER_CPU), move || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, TCP_PORT))?;
            let _ = ready.send(());
            loop {
                let (stream, _) = listener.accept()?;
                if stopped.load(Relaxed) {
                    return Ok(());
                }
                serve(stream, &count);
            }
        })?;
        is_ready.recv().context("the server did not start")?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    fn finish(mut self, path: &Path) -> Result<()> {
        self.stop.store(true, Relaxed);
        path.a.inside(|| connect().map(drop))?;
        self.thread.take().map_or(Ok(()), joined)
    }
}

fn connect() -> Result<TcpStream> {
    TcpStream::connect(SocketAddrV4::new(B.into(), TCP_PORT)).context("cannot connect to the server")
}

/// Bytes a second over one TCP connection.
///
/// # Errors
/// If a socket fails.
pub(super) fn tcp_bulk(path: &Path, time: Duration) -> Result<f64> {
    let received = Arc::new(AtomicU64::new(0));
    let server = Server::start(
        path,
        |mut stream, received| {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                received.fetch_add(length as u64, Relaxed);
            }
        },
        received.clone(),
    )?;
    let elapsed = joined(path.a.spawn(Some(SENDER_CPU), move || {
        let mut stream = connect()?;
        let buffer = vec![0x5a; 128 << 10];
        let begin = Instant::now();
        while begin.elapsed() < time {
            stream.write_all(&buffer)?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        // The server closes when it has read everything.
        let _ = stream.read(&mut [0]);
        Ok(begin.elapsed())
    })?)?;
    server.finish(path)?;
    Ok(received.load(Relaxed) as f64 / elapsed.as_secs_f64())
}

/// Connections a second: connect, the server closes, the client closes.
///
/// # Errors
/// If a socket fails.
pub(super) fn tcp_churn(path: &Path, time: Duration) -> Result<f64> {
    let server = Server::start(path, |stream, _| drop(stream), Arc::default())?;
    let rate = joined(path.a.spawn(Some(SENDER_CPU), move || {
        let begin = Instant::now();
        let mut connections = 0u64;
        while begin.elapsed() < time {
            let mut stream = connect()?;
            let _ = stream.read(&mut [0]);
            connections += 1;
        }
        Ok(connections as f64 / begin.elapsed().as_secs_f64())
    })?)?;
    server.finish(path)?;
    Ok(rate)
}

/// Round-trip times of one-byte requests and answers over one TCP connection, in microseconds.
///
/// # Errors
/// If a socket fails.
pub(super) fn tcp_request_response(path: &Path, time: Duration) -> Result<Vec<f64>> {
    let server = Server::start(
        path,
        |mut stream, _| {
            let mut byte = [0];
            let _ = stream.set_nodelay(true);
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        },
        Arc::default(),
    )?;
    let times = joined(path.a.spawn(Some(SENDER_CPU), move || {
        let mut stream = connect()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        let mut times = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < time {
            let one = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            times.push(one.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    })?)?;
    server.finish(path)?;
    Ok(times)
}
