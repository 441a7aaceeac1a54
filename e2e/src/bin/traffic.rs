//! The workload of the end-to-end tests: makes known traffic and known system calls, and says what it made. Statically
//! linked, so that it can be the whole of a container image.

use std::{
    env,
    error::Error,
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

type Outcome = Result<(), Box<dyn Error>>;

const USAGE: &str = "orb8-traffic serve [HOST:]PORT | dns PORT NAME ADDRESS | sleep SECONDS
  udp HOST:PORT COUNT SIZE     COUNT datagrams of SIZE bytes, each after the echo of the one before
  blind HOST:PORT COUNT SIZE   the same, without waiting for anything
  tcp HOST:PORT BYTES          BYTES there and back
  resolve SERVER:PORT NAME     asks for an IPv4 address
  calls NAME=COUNT...          COUNT system calls of that name, with arguments of its own (see CALLS)
  store FILE | remove FILE     writes its input into a new file; removes it
Each prints one line of JSON.";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["serve", at] => serve(at),
        ["dns", port, name, address] => dns(port, name, address),
        ["sleep", seconds] => sleep(seconds),
        ["udp", to, count, size] => udp(to, count, size, true),
        ["blind", to, count, size] => udp(to, count, size, false),
        ["tcp", to, bytes] => tcp(to, bytes),
        ["resolve", server, name] => resolve(server, name),
        ["calls", ref wanted @ ..] if !wanted.is_empty() => calls(wanted),
        ["store", path] => store(path),
        ["remove", path] => fs::remove_file(path).map_err(Into::into),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orb8-traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn sleep(seconds: &str) -> Outcome {
    thread::sleep(Duration::from_secs(seconds.parse()?));
    Ok(())
}

/// Echoes datagrams and connections, until it is killed: of all addresses, or of one, where a host has several and the
/// answers must come from the one that was asked.
fn serve(at: &str) -> Outcome {
    let address = match at.parse() {
        Ok(port) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        Err(_) => first(at)?,
    };
    let datagrams = UdpSocket::bind(address)?;
    let listener = TcpListener::bind(address)?;
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((size, from)) = datagrams.recv_from(&mut buffer) {
            // A sender that has gone is no reason to stop.
            let _ = datagrams.send_to(&buffer[..size], from);
        }
    });
    for connection in listener.incoming() {
        let mut connection = connection?;
        thread::spawn(move || {
            let mut buffer = [0; 16_384];
            while let Ok(size @ 1..) = connection.read(&mut buffer) {
                if connection.write_all(&buffer[..size]).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

fn first(to: &str) -> Result<SocketAddr, Box<dyn Error>> {
    to.to_socket_addrs()?
        .next()
        .ok_or_else(|| format!("{to} has no address").into())
}

fn udp(to: &str, count: &str, size: &str, echoed: bool) -> Outcome {
    let (to, count, size) = (first(to)?, count.parse::<u32>()?, size.parse::<usize>()?);
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let payload = vec![b'x'; size];
    let mut buffer = vec![0; size + 1];
    for number in 0..count {
        match socket.send(&payload) {
            // What the network says of a datagram before this one is no matter to a sender that does not listen.
            Err(_) if !echoed => socket.send(&payload).or_else(|_| socket.send(&payload))?,
            sent => sent?,
        };
        if echoed
            && socket
                .recv(&mut buffer)
                .map_err(|error| format!("echo {number}: {error}"))?
                != size
        {
            return Err("an echo of another size".into());
        }
        if !echoed {
            thread::sleep(Duration::from_millis(2));
        }
    }
    let local = socket.local_addr()?;
    println!(
        r#"{{"local":"{}","port":{},"sent":{count},"received":{},"payload":{size}}}"#,
        local.ip(),
        local.port(),
        if echoed { count } else { 0 },
    );
    Ok(())
}

fn tcp(to: &str, bytes: &str) -> Outcome {
    let (to, bytes) = (first(to)?, bytes.parse::<usize>()?);
    let mut connection = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    let local = connection.local_addr()?;
    let mut sender = connection.try_clone()?;
    let writer = thread::spawn(move || {
        let payload = vec![b'x'; 16_384];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(payload.len());
            if sender.write_all(&payload[..part]).is_err() {
                return;
            }
            left -= part;
        }
    });
    let mut received = 0;
    let mut buffer = [0; 16_384];
    while received < bytes {
        match connection.read(&mut buffer)? {
            0 => return Err(format!("{received} of {bytes} bytes came back").into()),
            size => received += size,
        }
    }
    writer.join().map_err(|_| "the writer failed")?;
    println!(
        r#"{{"local":"{}","port":{},"sent":{bytes},"received":{received}}}"#,
        local.ip(),
        local.port()
    );
    Ok(())
}

/// Answers every question for `name` with `address` (RFC 1035).
fn dns(port: &str, name: &str, address: &str) -> Outcome {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.parse()?)))?;
    let address: std::net::Ipv4Addr = address.parse()?;
    let question = question(name);
    let mut buffer = [0; 512];
    loop {
        let (size, from) = socket.recv_from(&mut buffer)?;
        if size < 12 || buffer.get(12..12 + question.len()) != Some(&question) {
            continue;
        }
        let mut answer = Vec::from(&buffer[..2]);
        // A response without error: one question, one answer, which points to the question's name.
        answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend(&question);
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
        socket.send_to(&answer, from)?;
    }
}

fn question(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    // The root; type A; class IN.
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

fn resolve(server: &str, name: &str) -> Outcome {
    let server = first(server)?;
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(question(name));
    socket.send(&query)?;
    let mut buffer = [0; 512];
    let size = socket.recv(&mut buffer)?;
    let [.., a, b, c, d] = buffer[..size] else {
        return Err("no answer".into());
    };
    println!(r#"{{"address":"{a}.{b}.{c}.{d}"}}"#);
    Ok(())
}

/// Written into a file of another name first, so that nobody reads half of it.
fn store(path: &str) -> Outcome {
    let unfinished = format!("{path}.new");
    let size = io::copy(&mut io::stdin().lock(), &mut File::create(&unfinished)?)?;
    fs::rename(&unfinished, path)?;
    println!(r#"{{"size":{size}}}"#);
    Ok(())
}

/// How long a sleep takes at least.
static SLEEP: libc::timespec = libc::timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// System calls by the name on the command line: number and arguments. None of them changes anything: they only ask, must
/// fail, with privileges too, or concern this process alone.
#[rustfmt::skip]
const CALLS: &[(&str, libc::c_long, [Argument; 3])] = {
    use Argument::{Number, Sleep, Text};
    const NONE: Argument = Number(0);
    const MISSING: Argument = Text(c"/orb8-e2e-missing");
    const HERE: Argument = Number(libc::AT_FDCWD as i64);
    &[
        ("times", libc::SYS_times, [NONE, NONE, NONE]),
        ("getppid", libc::SYS_getppid, [NONE, NONE, NONE]),
        ("getpriority", libc::SYS_getpriority, [NONE, NONE, NONE]),
        ("getsid", libc::SYS_getsid, [NONE, NONE, NONE]),
        // The length is refused, if it comes to that.
        ("sethostname", libc::SYS_sethostname, [NONE, Number(-1), NONE]),
        ("unlinkat", libc::SYS_unlinkat, [HERE, MISSING, NONE]),
        ("openat", libc::SYS_openat, [HERE, MISSING, NONE]),
        ("fsync", libc::SYS_fsync, [Number(-1), NONE, NONE]),
        ("clock_nanosleep", libc::SYS_clock_nanosleep, [Number(libc::CLOCK_MONOTONIC as i64), NONE, Sleep]),
        ("unshare", libc::SYS_unshare, [Number(libc::CLONE_NEWNET as i64), NONE, NONE]),
        ("mount", libc::SYS_mount, [Text(c"orb8-e2e-source"), MISSING, Text(c"tmpfs")]),
    ]
};

#[derive(Clone, Copy)]
enum Argument {
    Number(i64),
    Text(&'static std::ffi::CStr),
    Sleep,
}

impl Argument {
    fn word(self) -> libc::c_long {
        match self {
            Self::Number(number) => number,
            Self::Text(text) => text.as_ptr() as libc::c_long,
            Self::Sleep => &raw const SLEEP as libc::c_long,
        }
    }
}

/// Makes so many calls of each kind, straight away, and says how each kind ended and how long it took, all of them and
/// the median: `{"times":{"calls":7,"errno":0,"total_ns":90,"median_ns":12}}`.
fn calls(wanted: &[&str]) -> Outcome {
    let mut made = Vec::new();
    for wanted in wanted {
        let (name, count) = wanted.split_once('=').ok_or(USAGE)?;
        let &(_, number, arguments) = CALLS
            .iter()
            .find(|(known, ..)| *known == name)
            .ok_or_else(|| format!("{name} is not among the calls"))?;
        let [first, second, third] = arguments.map(Argument::word);
        let (mut errno, mut times) = (None, Vec::with_capacity(count.parse()?));
        for _ in 0..count.parse::<usize>()? {
            let began = Instant::now();
            // SAFETY: each entry of the table passes numbers, null pointers or pointers to constants, which these calls
            // take; none of them writes into this process's memory.
            let result = unsafe { libc::syscall(number, first, second, third, 0, 0) };
            // The C library's wrapper has no other way to say it.
            let ended = if result == -1 {
                io::Error::last_os_error().raw_os_error().unwrap_or(0)
            } else {
                0
            };
            times.push(began.elapsed().as_nanos());
            if *errno.get_or_insert(ended) != ended {
                return Err(format!("{name} ended with {errno:?} and with {ended}").into());
            }
        }
        times.sort_unstable();
        made.push(format!(
            r#""{name}":{{"calls":{},"errno":{},"total_ns":{},"median_ns":{}}}"#,
            times.len(),
            errno.unwrap_or(0),
            times.iter().sum::<u128>(),
            times.get(times.len() / 2).unwrap_or(&0),
        ));
    }
    println!("{{{}}}", made.join(","));
    Ok(())
}
