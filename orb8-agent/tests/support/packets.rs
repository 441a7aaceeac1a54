//! Packets by hand, and the sockets to send them with.

use std::{
    io, mem,
    net::UdpSocket,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

/// The frame of an Ethernet packet.
pub(crate) fn ethernet(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src[..], &ethertype.to_be_bytes()[..], payload].concat()
}

/// An IPv4 packet with `options` (a multiple of 4 bytes); `fragment` is the field of that name, flags included.
pub(crate) fn ipv4(
    protocol: u8,
    src: [u8; 4],
    dst: [u8; 4],
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
    packet.extend(((header_len + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(src);
    packet.extend(dst);
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// An IPv6 packet.
pub(crate) fn ipv6(next: u8, src: [u8; 16], dst: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(src);
    packet.extend(dst);
    packet.extend(payload);
    packet
}

/// A UDP datagram without checksum.
pub(crate) fn udp(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    [
        &sport.to_be_bytes()[..],
        &dport.to_be_bytes(),
        &len.to_be_bytes(),
        &[0, 0],
        payload,
    ]
    .concat()
}

/// Sends whole frames out of the thread's `eth0` (packet(7)).
pub(crate) fn send_frames<'a>(frames: impl IntoIterator<Item = &'a Vec<u8>>) -> u64 {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = nix::net::if_::if_nametoindex("eth0").unwrap().cast_signed();
    let mut sent = 0;
    for frame in frames {
        // SAFETY: a buffer and an address of the lengths given.
        let result = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                mem::size_of_val(&address) as u32,
            )
        };
        assert_eq!(
            result,
            frame.len().cast_signed(),
            "{}",
            io::Error::last_os_error()
        );
        sent += 1;
    }
    sent
}

/// Sends `count` datagrams of `len` bytes.
pub(crate) fn send_udp(from: &str, to: &str, count: u64, len: usize) {
    let socket = UdpSocket::bind((from, 4000)).unwrap();
    let payload = vec![7; len];
    for _ in 0..count {
        socket.send_to(&payload, (to, 5000)).unwrap();
    }
}

/// Sends one datagram to each of `flows` pairs of ports, at most `pace` of them a second.
pub(crate) fn send_many_flows(from: &str, to: &str, flows: u32, pace: Option<u32>) {
    let sockets: Vec<UdpSocket> = (0..flows.div_ceil(50_000))
        .map(|i| UdpSocket::bind((from, 4000 + i as u16)).unwrap())
        .collect();
    let started = Instant::now();
    for flow in 0..flows {
        if let Some(a_second) = pace
            && flow % 1000 == 0
        {
            let due = Duration::from_secs(1) * flow / a_second;
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
        let socket = &sockets[(flow / 50_000) as usize];
        socket
            .send_to(b"x", (to, 10_000 + (flow % 50_000) as u16))
            .unwrap();
    }
}
