//! Records of the network probe family.
//!
//! Addresses are 16 bytes in network order (IPv4 as `::ffff:a.b.c.d`); ports and everything else are in host
//! order. Lengths are bytes, times are nanoseconds of `CLOCK_MONOTONIC`.

/// Entries of [`FlowKey::kind`]: how the packet met orb8.
pub mod kind {
    /// Bit 0: the packet left the hooked interface or socket (tc egress, cgroup egress).
    pub const EGRESS: u8 = 1;
    /// Bit 1: the observation point is a socket (cgroup hook) and `point` a cgroup id; otherwise it is an
    /// interface and `point` its ifindex.
    pub const SOCKET: u8 = 1 << 1;
    /// Bits 2–3: IP version 4. Neither of the two version bits: not IP; `sport` holds the `EtherType`.
    pub const IPV4: u8 = 1 << 2;
    /// Bits 2–3: IP version 6.
    pub const IPV6: u8 = 1 << 3;
    /// Bit 4: a fragment whose first fragment was not seen; ports are zero and unknown.
    pub const FRAGMENT: u8 = 1 << 4;
    /// Bit 5: a header was cut short or contradicts itself; what could be read is in the key.
    pub const MALFORMED: u8 = 1 << 5;
}

/// IP protocol numbers that orb8 reads further than their number (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP; type and code are in [`super::FlowKey::sport`] and `dport`.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6; as ICMP.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// What makes packets one flow. 48 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    /// Source address as on the wire.
    pub src: [u8; 16],
    /// Destination address as on the wire.
    pub dst: [u8; 16],
    /// Observation point: an ifindex, or a cgroup id with [`kind::SOCKET`].
    pub point: u64,
    /// Source port; the ICMP type; the `EtherType` of what is not IP.
    pub sport: u16,
    /// Destination port; the ICMP code.
    pub dport: u16,
    /// IP protocol number (after IPv6 extension headers).
    pub protocol: u8,
    /// Bits of [`kind`].
    pub kind: u8,
    /// Length of the link-layer header with its VLAN tags; 0 at a socket or on a layer-3 interface.
    pub link_len: u8,
    /// Always zero.
    pub reserved: u8,
}

/// What one flow did in one epoch. 64 bytes.
///
/// Packets are wire segments: one GSO or GRO super-packet counts as the segments it stands for, and its bytes
/// include the headers that each of them carries.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowCounters {
    /// Wire segments.
    pub packets: u64,
    /// Layer-3 bytes (IP total length); for what is not IP, the frame without its link header.
    pub bytes: u64,
    /// Segments beyond the first of each super-packet: `packets - merged_packets` is what an interface that
    /// carries super-packets counts.
    pub merged_packets: u64,
    /// Header bytes that the segments beyond the first add, link header included.
    pub merged_bytes: u64,
    /// Time of the first packet.
    pub first_ns: u64,
    /// Time of the last packet.
    pub last_ns: u64,
    /// Bytes behind the IP packet's own length (Ethernet minimum-size padding).
    pub padding: u32,
    /// Bitwise OR of TCP flags (RFC 9293, byte 13 of the header).
    pub tcp_flags: u32,
    /// Process that made the socket (tgid), where known; otherwise 0.
    pub tgid: u32,
    /// Always zero.
    pub reserved: u32,
}

impl FlowCounters {
    /// Layer-2 bytes: what the wire carried, given the flow's link header length.
    #[must_use]
    pub const fn wire_bytes(&self, link_len: u8) -> u64 {
        self.bytes
            .wrapping_add(self.packets.wrapping_mul(link_len as u64))
            .wrapping_add(self.padding as u64)
    }

    /// Frames as an interface that carries super-packets counts them.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.packets.wrapping_sub(self.merged_packets)
    }

    /// Bytes of [`FlowCounters::frames`].
    #[must_use]
    pub const fn frame_bytes(&self, link_len: u8) -> u64 {
        self.wire_bytes(link_len).wrapping_sub(self.merged_bytes)
    }
}

/// Where packets go whose flow had no room in the flow map: totals by observation point and direction.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RemainderKey {
    /// As [`FlowKey::point`].
    pub point: u64,
    /// [`FlowKey::kind`], only its direction and socket bits.
    pub kind: u8,
    /// As [`FlowKey::link_len`].
    pub link_len: u8,
    /// Always zero.
    pub reserved: [u8; 6],
}

/// Key of a connection's health: the socket's own view of it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TcpKey {
    /// The socket's address.
    pub local: [u8; 16],
    /// The peer's address.
    pub remote: [u8; 16],
    /// Network namespace cookie (`SO_NETNS_COOKIE`), or 0 where the kernel cannot tell.
    pub netns_cookie: u64,
    /// The socket's port.
    pub local_port: u16,
    /// The peer's port.
    pub remote_port: u16,
    /// Always zero.
    pub reserved: u32,
}

/// A connection's health in one epoch.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpHealth {
    /// Segments retransmitted in the epoch.
    pub retransmits: u64,
    /// Connection attempts that failed (reset, timed out, unreachable).
    pub failed_connects: u32,
    /// Time from connect() to established, in microseconds; 0 unknown.
    pub connect_us: u32,
    /// Smoothed round-trip time in microseconds at the last look; 0 unknown.
    pub srtt_us: u32,
    /// Connections established.
    pub established: u32,
}

/// Settings that change while the programs run. User space writes, programs read.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Control {
    /// Which of the two maps of a pair takes this epoch's records: 0 or 1.
    pub epoch: u32,
    /// Whether records go to the event ring: 0 or 1.
    pub events: u32,
}

/// How full one of the two flow maps is. User space zeroes it when it has emptied the map.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EpochLoad {
    /// Flows entered.
    pub entered: u64,
    /// 1: user space has been told that the map is half full.
    pub told: u64,
}

/// Hooks, each with a row of [`HookStats`].
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// tc ingress of an interface.
    TcIngress = 0,
    /// tc egress of an interface.
    TcEgress = 1,
    /// cgroup socket ingress.
    SocketIngress = 2,
    /// cgroup socket egress.
    SocketEgress = 3,
    /// `sock_ops` callbacks.
    Tcp = 4,
    /// The event ring (`seen` records wanted; `filtered` sampled out; `lost` did not fit).
    Events = 5,
    /// The ring of DNS answers (`filtered`: too short to be one; `lost`: did not fit).
    Dns = 6,
}

/// Number of [`Hook`]s.
pub const HOOKS: u32 = 7;

/// Per-CPU counters of one hook, cumulative since load. For packet hooks the unit is the skb, for [`Hook::Tcp`]
/// and [`Hook::Events`] the record. `seen == counted + filtered + lost` where `counted` is the remainder.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HookStats {
    /// What reached the program.
    pub seen: u64,
    /// What it left out on purpose (other network namespaces' sockets, the agent's own traffic, sampling).
    pub filtered: u64,
    /// What has no flow detail: it is in the point's remainder.
    pub remainder: u64,
    /// What is in no flow and no remainder either, for the remainder map was full as well.
    pub lost: u64,
    /// Bytes of what is `lost` (layer 3).
    pub lost_bytes: u64,
}

/// Kinds of [`Event`].
pub mod event {
    /// First packet of a flow in the idle time or longer.
    pub const NEW_FLOW: u8 = 1;
    /// TCP SYN (without ACK).
    pub const SYN: u8 = 2;
    /// TCP SYN with ACK.
    pub const SYN_ACK: u8 = 3;
    /// TCP FIN.
    pub const FIN: u8 = 4;
    /// TCP RST.
    pub const RST: u8 = 5;
    /// Not of a packet: the epoch's flow map is half full, and wants to be drained before its time.
    pub const PRESSURE: u8 = 6;
}

/// One record of the event ring. 72 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// The packet's flow.
    pub key: FlowKey,
    /// When.
    pub time_ns: u64,
    /// Layer-3 bytes of the packet.
    pub bytes: u32,
    /// Process that made the socket (tgid), where known; otherwise 0.
    pub tgid: u32,
    /// One of [`event`].
    pub kind: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// How many records this one stands for (1, or the sampling rate of new-flow records under pressure).
    pub weight: u16,
    /// Always zero.
    pub reserved: u32,
}

/// Bytes of a DNS answer that are kept: what a client without EDNS takes (RFC 1035 §2.3.4).
pub const DNS_BYTES: usize = 512;

/// A DNS answer that came to an observation point.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DnsAnswer {
    /// As [`FlowKey::point`].
    pub point: u64,
    /// When.
    pub time_ns: u64,
    /// Bytes of `payload` that are the answer, or its beginning.
    pub len: u32,
    /// Always zero.
    pub reserved: u32,
    /// The DNS message.
    pub payload: [u8; DNS_BYTES],
}

/// Name of a process, as `comm` of `task_struct`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Comm(
    /// NUL-terminated.
    pub [u8; 16],
);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{align_of, size_of};

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<FlowKey>(), 48);
        assert_eq!(size_of::<FlowCounters>(), 64);
        assert_eq!(size_of::<RemainderKey>(), 16);
        assert_eq!(size_of::<TcpKey>(), 48);
        assert_eq!(size_of::<TcpHealth>(), 24);
        assert_eq!(size_of::<HookStats>(), 40);
        assert_eq!(size_of::<Event>(), 72);
        assert_eq!(size_of::<DnsAnswer>(), 24 + DNS_BYTES);
        assert_eq!(size_of::<Control>(), 8);
        assert_eq!(size_of::<EpochLoad>(), 16);
        assert_eq!(align_of::<FlowKey>(), 8);
    }

    #[test]
    fn wire_bytes_of_a_super_packet() {
        // 2 segments of 1448 bytes behind 20 + 32 + 14 header bytes each, carried as one frame.
        let counters = FlowCounters {
            packets: 2,
            bytes: 2 * (1448 + 52),
            merged_packets: 1,
            merged_bytes: 66,
            ..Default::default()
        };
        assert_eq!(counters.wire_bytes(14), 2 * 1514);
        assert_eq!(counters.frames(), 1);
        assert_eq!(counters.frame_bytes(14), 2 * 1448 + 66);
    }
}
