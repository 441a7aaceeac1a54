//! Names of numbers on the wire: protocols, services' ports, EtherTypes, TCP flags, ICMP types.

use std::borrow::Cow;

/// IP protocol number of ICMP.
pub(crate) const ICMP: u32 = 1;
/// IP protocol number of TCP.
pub(crate) const TCP: u32 = 6;
/// IP protocol number of ICMP for IPv6.
pub(crate) const ICMPV6: u32 = 58;

/// Protocols that have a name in orb8's answers; all others are their number.
const PROTOCOLS: [(u32, &str); 5] = [
    (TCP, "TCP"),
    (17, "UDP"),
    (ICMP, "ICMP"),
    (ICMPV6, "ICMPv6"),
    (132, "SCTP"),
];

/// `TCP`, `UDP`, `ICMP`, `ICMPv6`, `SCTP`, or the number.
pub(crate) fn protocol(number: u32) -> Cow<'static, str> {
    PROTOCOLS.iter().find(|(known, _)| *known == number).map_or_else(
        || Cow::Owned(number.to_string()),
        |(_, name)| Cow::Borrowed(*name),
    )
}

/// The number of a protocol given by name (in any case) or number, 0 to 255.
pub(crate) fn protocol_number(text: &str) -> Option<u32> {
    PROTOCOLS
        .iter()
        .find(|(_, name)| name.eq_ignore_ascii_case(text))
        .map(|(number, _)| *number)
        .or_else(|| text.parse::<u8>().ok().map(u32::from))
}

/// Whether flows of this protocol have an ICMP type and code in the place of ports.
pub(crate) const fn is_icmp(protocol: u32) -> bool {
    matches!(protocol, ICMP | ICMPV6)
}

/// Bits of the TCP header's flags (RFC 9293, RFC 9768), in the order of a connection's life.
const TCP_FLAGS: [(u32, &str); 9] = [
    (0x02, "SYN"),
    (0x10, "ACK"),
    (0x08, "PSH"),
    (0x20, "URG"),
    (0x01, "FIN"),
    (0x04, "RST"),
    (0x40, "ECE"),
    (0x80, "CWR"),
    (0x100, "AE"),
];

/// Names of the flags that are set.
pub(crate) fn tcp_flags(flags: u32) -> Vec<&'static str> {
    TCP_FLAGS
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name)
        .collect()
}

/// Name of an EtherType (IEEE 802 numbers), else `0x` and four digits.
pub(crate) fn ethertype(ethertype: u32) -> Cow<'static, str> {
    Cow::Borrowed(match ethertype {
        0x0806 => "ARP",
        0x8035 => "RARP",
        0x8100 => "VLAN",
        0x8809 => "LACP",
        0x8847 | 0x8848 => "MPLS",
        0x8863 | 0x8864 => "PPPoE",
        0x888e => "EAPOL",
        0x88a8 => "QinQ",
        0x88cc => "LLDP",
        other => return Cow::Owned(ethertype_hex(other)),
    })
}

/// An EtherType as `0x0806`.
pub(crate) fn ethertype_hex(ethertype: u32) -> String {
    format!("{ethertype:#06x}")
}

/// What an ICMP or ICMPv6 type asks or says.
pub(crate) const fn icmp(protocol: u32, kind: u32) -> Option<&'static str> {
    Some(match (protocol, kind) {
        (ICMP, 0) | (ICMPV6, 129) => "echo reply",
        (ICMP, 8) | (ICMPV6, 128) => "echo",
        (ICMP, 3) | (ICMPV6, 1) => "unreachable",
        (ICMP, 11) | (ICMPV6, 3) => "time exceeded",
        (ICMP, 5) | (ICMPV6, 137) => "redirect",
        (ICMPV6, 2) => "too big",
        (ICMPV6, 133) => "router solicit",
        (ICMPV6, 134) => "router advert",
        (ICMPV6, 135) => "neighbour solicit",
        (ICMPV6, 136) => "neighbour advert",
        (ICMPV6, 143) => "MLD report",
        _ => return None,
    })
}

/// Usual service of a port (IANA's registry, and what clusters run).
pub(crate) const fn service(port: u32) -> Option<&'static str> {
    Some(match port {
        20 => "ftp-data",
        21 => "ftp",
        22 => "ssh",
        23 => "telnet",
        25 => "smtp",
        53 => "domain",
        67 => "dhcp",
        68 => "dhcp-client",
        69 => "tftp",
        80 => "http",
        88 => "kerberos",
        110 => "pop3",
        111 => "sunrpc",
        123 => "ntp",
        143 => "imap",
        161 => "snmp",
        179 => "bgp",
        389 => "ldap",
        443 => "https",
        445 => "smb",
        465 => "smtps",
        500 => "ike",
        514 => "syslog",
        546 => "dhcpv6-client",
        547 => "dhcpv6",
        587 => "submission",
        636 => "ldaps",
        853 => "dns-tls",
        873 => "rsync",
        989 | 990 => "ftps",
        993 => "imaps",
        995 => "pop3s",
        1433 => "mssql",
        1521 => "oracle",
        1883 => "mqtt",
        2049 => "nfs",
        2181 => "zookeeper",
        2379 => "etcd",
        2380 => "etcd-peer",
        3268 => "ldap-gc",
        3306 => "mysql",
        3389 => "rdp",
        3868 => "diameter",
        4222 => "nats",
        4317 => "otlp",
        4318 => "otlp-http",
        4789 => "vxlan",
        5060 => "sip",
        5201 => "iperf3",
        5353 => "mdns",
        5355 => "llmnr",
        5432 => "postgres",
        5671 => "amqps",
        5672 => "amqp",
        6081 => "geneve",
        6379 => "redis",
        6443 => "kube-api",
        8080 => "http-alt",
        8443 => "https-alt",
        8472 => "vxlan",
        9000 => "minio",
        9042 => "cassandra",
        9090 => "orb8",
        9092 => "kafka",
        9093 => "alertmanager",
        9100 => "node-exporter",
        9200 => "elastic",
        10250 => "kubelet",
        11211 => "memcached",
        27017 => "mongodb",
        51820 => "wireguard",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples() {
        assert_eq!(protocol(6), "TCP");
        assert_eq!(protocol(47), "47");
        assert_eq!(protocol_number("IcmpV6"), Some(58));
        assert_eq!(protocol_number("47"), Some(47));
        assert_eq!(protocol_number("256"), None);
        assert_eq!(tcp_flags(0x13), ["SYN", "ACK", "FIN"]);
        assert_eq!(ethertype_hex(0x806), "0x0806");
        assert_eq!(service(443), Some("https"));
    }

    proptest! {
        #[test]
        fn every_protocol_is_found_by_what_is_shown(number in 0_u32..256) {
            prop_assert_eq!(protocol_number(&protocol(number)), Some(number));
        }
    }
}
