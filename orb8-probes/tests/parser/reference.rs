//! An independent decoder's view of a frame: the `etherparse` crate's.

use etherparse::{LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
use orb8_common::network::kind;
use orb8_probes::network::parse::{Fragment, Packet};

/// Panics if `packet`, which was parsed from the Ethernet frame `bytes`, is not what etherparse finds there.
///
/// Frames that etherparse refuses, or reads by other rules (MACsec, IPv6 packets of length 0 or with many
/// or rare extension headers, the authentication header of IPv4), are not compared as far as that goes.
pub(crate) fn agree(bytes: &[u8], packet: &Packet) {
    let Ok(sliced) = SlicedPacket::from_ethernet(bytes) else {
        return;
    };
    if sliced
        .link_exts
        .iter()
        .any(|header| matches!(header, LinkExtSlice::Macsec(_)))
    {
        return;
    }
    let link: usize = 14
        + sliced
            .link_exts
            .iter()
            .map(LinkExtSlice::header_len)
            .sum::<usize>();
    assert_eq!(usize::from(packet.key.link_len), link, "{packet:?}");
    let (source, destination, total, payload) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            assert_ne!(packet.key.kind & kind::IPV4, 0, "{packet:?}");
            let header = ip.header();
            if header.is_fragmenting_payload() {
                let first = header.fragments_offset().value() == 0;
                let part = if first { Fragment::First } else { Fragment::Later };
                assert_eq!(packet.fragment, part, "{packet:?}");
                assert_eq!(
                    packet.fragment_id,
                    u32::from(header.identification()),
                    "{packet:?}"
                );
            } else {
                assert_eq!(packet.fragment, Fragment::None, "{packet:?}");
            }
            let source = header.source_addr().to_ipv6_mapped();
            let destination = header.destination_addr().to_ipv6_mapped();
            let transport = ip.extensions().is_empty().then(|| ip.payload());
            (source, destination, u32::from(header.total_len()), transport)
        }
        Some(NetSlice::Ipv6(ip)) => {
            assert_ne!(packet.key.kind & kind::IPV6, 0, "{packet:?}");
            let header = ip.header();
            if header.payload_length() == 0 {
                return;
            }
            // Mobility, HIP and Shim6 headers are payload to etherparse.
            let walked =
                ip.extensions().slice().len() <= 64 && !matches!(ip.payload().ip_number.0, 135 | 139 | 140);
            if walked {
                assert_eq!(
                    packet.fragment != Fragment::None,
                    ip.is_payload_fragmented(),
                    "{packet:?}"
                );
            }
            let total = 40 + u32::from(header.payload_length());
            (
                header.source_addr(),
                header.destination_addr(),
                total,
                walked.then(|| ip.payload()),
            )
        }
        _ => return assert_eq!(packet.key.kind & (kind::IPV4 | kind::IPV6), 0, "{packet:?}"),
    };
    assert_eq!(
        (packet.key.src, packet.key.dst),
        (source.octets(), destination.octets()),
        "{packet:?}"
    );
    assert_eq!(packet.l3_bytes, total, "{packet:?}");
    let (Some(payload), Some(transport)) = (payload, &sliced.transport) else {
        return;
    };
    assert_eq!(packet.key.protocol, payload.ip_number.0, "{packet:?}");
    assert_eq!(packet.key.kind & kind::MALFORMED, 0, "{packet:?}");
    let (sport, dport, header_len) = match transport {
        TransportSlice::Tcp(tcp) => {
            assert_eq!(packet.tcp_flags, tcp.slice()[13], "{packet:?}");
            (
                tcp.source_port(),
                tcp.destination_port(),
                tcp.header_slice().len(),
            )
        }
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port(), 8),
        TransportSlice::Icmpv4(icmp) => (u16::from(icmp.type_u8()), u16::from(icmp.code_u8()), 4),
        TransportSlice::Icmpv6(icmp) => (u16::from(icmp.type_u8()), u16::from(icmp.code_u8()), 4),
        _ => (0, 0, 0),
    };
    assert_eq!((packet.key.sport, packet.key.dport), (sport, dport), "{packet:?}");
    let behind = payload.payload.as_ptr() as usize - bytes.as_ptr() as usize + header_len;
    assert_eq!(packet.header_len as usize, behind, "{packet:?}");
}
