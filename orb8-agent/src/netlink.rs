//! The little of netlink that orb8 asks the kernel directly: requests, dumps and notifications
//! (`include/uapi/linux/netlink.h`, RFC 3549).
//!
//! Messages are read by hand, attribute by attribute, so that attributes of a newer kernel are skipped instead of
//! making a whole message unreadable. Calls block for as long as the kernel works on the answer.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    time::Duration,
};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// More than the kernel puts in one datagram (32 KiB in a dump).
const BUFFER: usize = 64 * 1024;
/// How long the kernel may take for one part of an answer. It holds locks meanwhile (`rtnl_lock`), which others
/// can hold for seconds on a machine that tears down many namespaces.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A dump that others' changes interrupted is started over so many times.
const DUMP_ATTEMPTS: usize = 4;

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Messages of a datagram; ends at the first that is cut short.
#[derive(Clone, Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = read_u32(self.0, 0)? as usize;
        let payload = self.0.get(HEADER..length)?;
        let message = Message {
            kind: read_u16(self.0, 4)?,
            flags: read_u16(self.0, 6)?,
            sequence: read_u32(self.0, 8)?,
            payload,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// Attributes of a message, as (type without flags, value); ends at the first that is cut short.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes that begin at `offset` of `payload`.
    pub(crate) fn at(payload: &'a [u8], offset: usize) -> Self {
        Self(payload.get(offset..).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(read_u16(self.0, 0)?);
        let value = self.0.get(4..length)?;
        // NLA_F_NESTED and NLA_F_NET_BYTEORDER are the two highest bits.
        let kind = read_u16(self.0, 2)? & 0x3fff;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Two bytes in host order.
pub(crate) fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..)?.get(..2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// Four bytes in host order.
pub(crate) fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.get(..4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Eight bytes in host order.
pub(crate) fn read_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..)?.get(..8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

/// Appends one attribute with a 4-byte value.
pub(crate) fn push_u32(body: &mut Vec<u8>, kind: u16, value: u32) {
    body.extend_from_slice(&8u16.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(&value.to_ne_bytes());
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// A socket for requests (`libc::NETLINK_ROUTE`, `libc::NETLINK_SOCK_DIAG`).
    pub(crate) fn open(protocol: libc::c_int) -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self {
            fd,
            sequence: 0,
            buffer: vec![0; BUFFER],
        };
        let timeout = libc::timeval {
            tv_sec: TIMEOUT.as_secs().cast_signed(),
            tv_usec: 0,
        };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        // The kernel chooses the port id. Notifications go to sockets with an id only.
        // SAFETY: all-zero is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        // SAFETY: the address is valid for the size given.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        // Makes the kernel honour filters in dump requests. Kernels before 4.20 lack it: they answer with more than
        // was asked, which every reader has to sort out anyway.
        let _ = socket.set(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, &1i32);
        Ok(socket)
    }

    /// A socket that receives the notifications of `groups`.
    ///
    /// `receive_buffer` is in bytes. `filter` is a classic BPF program run on each datagram.
    pub(crate) fn subscribe(
        protocol: libc::c_int,
        groups: &[u32],
        receive_buffer: libc::c_int,
        filter: &[libc::sock_filter],
    ) -> io::Result<Self> {
        let socket = Self::open(protocol)?;
        if !filter.is_empty() {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            socket.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        }
        // FORCE wants CAP_NET_ADMIN; without it, as much as net.core.rmem_max allows.
        if socket
            .set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &receive_buffer)
            .is_err()
        {
            socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, &receive_buffer)?;
        }
        for group in groups {
            socket.set(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)?;
        }
        Ok(socket)
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: `value` is valid for its own size during the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn send(&mut self, kind: u16, flags: i32, body: &[u8]) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(body);
        // SAFETY: `message` is valid for its length. An unconnected netlink socket sends to the kernel.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.sequence)
    }

    /// One datagram from the kernel (those of other senders are dropped).
    fn receive(&mut self, flags: libc::c_int) -> io::Result<usize> {
        loop {
            // SAFETY: all-zero is a valid sockaddr_nl.
            let mut sender: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
            let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            // SAFETY: buffer, address and length are valid for the sizes given.
            let received = unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    flags | libc::MSG_TRUNC,
                    ptr::from_mut(&mut sender).cast(),
                    &raw mut length,
                )
            };
            if received < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            let received = received.unsigned_abs();
            if received > self.buffer.len() {
                // The same remedy as for a lost datagram: ask again.
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            if sender.nl_pid == 0 {
                return Ok(received);
            }
        }
    }

    /// Asks for everything of a kind and hands each message to `parse`. What it returns is collected; a dump which
    /// was interrupted by a change is repeated, at most [`DUMP_ATTEMPTS`] times, so `parse` can see a message twice.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        mut parse: impl FnMut(Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut found = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            found.clear();
            if self.dump_once(kind, body, &mut |message| {
                if let Some(item) = parse(message) {
                    found.push(item);
                }
            })? {
                break;
            }
        }
        Ok(found)
    }

    /// Returns whether the answer is consistent.
    fn dump_once(&mut self, kind: u16, body: &[u8], each: &mut dyn FnMut(Message<'_>)) -> io::Result<bool> {
        let sequence = self.send(kind, libc::NLM_F_DUMP, body)?;
        let mut consistent = true;
        loop {
            let received = self.receive(0)?;
            for message in Messages(&self.buffer[..received]) {
                if message.sequence != sequence {
                    continue;
                }
                consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                        outcome(message.payload)?;
                        return Ok(consistent);
                    }
                    libc::NLMSG_NOOP => {}
                    _ => each(message),
                }
            }
        }
    }

    /// Asks for one thing; `None` if the kernel merely acknowledged.
    pub(crate) fn request<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        mut parse: impl FnMut(Message<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let sequence = self.send(kind, 0, body)?;
        loop {
            let received = self.receive(0)?;
            for message in Messages(&self.buffer[..received]) {
                if message.sequence != sequence {
                    continue;
                }
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    outcome(message.payload)?;
                    return Ok(None);
                }
                return Ok(parse(message));
            }
        }
    }

    /// The next datagram of notifications, or `None` if nothing waits. `ENOBUFS` says that some were lost.
    pub(crate) fn notification(&mut self) -> io::Result<Option<Messages<'_>>> {
        match self.receive(libc::MSG_DONTWAIT) {
            Ok(received) => Ok(Some(Messages(&self.buffer[..received]))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The result in the payload of `NLMSG_ERROR` and `NLMSG_DONE`.
fn outcome(payload: &[u8]) -> io::Result<()> {
    match read_u32(payload, 0).map_or(0, u32::cast_signed) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_messages_and_attributes() {
        let mut body = vec![7, 0, 0, 0];
        push_u32(&mut body, 0x8000 | 3, 99);
        body.extend_from_slice(&[5, 0, 4, 0, 0xaa]); // five bytes long, padded to eight by what follows
        body.extend_from_slice(&[0, 0, 0]);
        push_u32(&mut body, 5, 1);
        let mut datagram = Vec::new();
        for sequence in 1..=2u32 {
            datagram.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
            datagram.extend_from_slice(&[16, 0, 2, 0]);
            datagram.extend_from_slice(&sequence.to_ne_bytes());
            datagram.extend_from_slice(&[0; 4]);
            datagram.extend_from_slice(&body);
        }
        let messages: Vec<_> = Messages(&datagram).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[1].sequence, 2);
        assert_eq!(messages[1].kind, u16::from_ne_bytes([16, 0]));
        let attributes: Vec<_> = Attributes::at(messages[0].payload, 4).collect();
        assert_eq!(
            attributes,
            [
                (3, &99u32.to_ne_bytes()[..]),
                (4, &[0xaa][..]),
                (5, &1u32.to_ne_bytes()[..])
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let read: usize = Messages(&bytes).map(|message| HEADER + message.payload.len()).sum();
            prop_assert!(read <= bytes.len() + 3);
            let read: usize = Attributes::at(&bytes, 0).map(|(_, value)| 4 + value.len()).sum();
            prop_assert!(read <= bytes.len() + 3);
        }
    }
}
