//! Addresses as they are typed.

use std::{fmt, net::IpAddr, str::FromStr};

/// `HOST:PORT` of somebody who listens on `DEFAULT_PORT` unless told otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address<const DEFAULT_PORT: u16>(pub(crate) String);

/// Of an agent.
pub(crate) type AgentAddress = Address<9090>;
/// Of a server.
pub(crate) type ServerAddress = Address<8080>;

impl<const PORT: u16> fmt::Display for Address<PORT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const PORT: u16> FromStr for Address<PORT> {
    type Err = String;

    /// `HOST`, `HOST:PORT`, `[IPV6]:PORT` or a bare IPv6 address; `http://` in front is allowed.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("HOST:PORT (node1:{PORT}, 10.0.0.5:{PORT}, [fd00::1]:{PORT}) is needed");
        let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        if let Ok(ip) = bare.parse::<std::net::Ipv6Addr>() {
            return Ok(Self(format!("[{ip}]:{PORT}")));
        }
        let (host, port) = match bare.rsplit_once(':') {
            Some((host, port)) if !bare.ends_with(']') => {
                let port = port
                    .parse::<u16>()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(expected)?;
                (host, port)
            }
            _ => (bare, PORT),
        };
        let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
            }
        };
        if valid {
            Ok(Self(format!("{host}:{port}")))
        } else {
            Err(expected())
        }
    }
}

impl<const PORT: u16> Address<PORT> {
    /// Whether what is sent there stays on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.0.rsplit_once(':').map_or(self.0.as_str(), |(host, _)| host);
        host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_and_what_is_meant() {
        for (typed, meant) in [
            ("node1", "node1:9090"),
            ("node1:1", "node1:1"),
            ("http://10.0.0.5:9090/", "10.0.0.5:9090"),
            ("[::1]:80", "[::1]:80"),
            ("[::1]", "[::1]:9090"),
            ("fd00::1", "[fd00::1]:9090"),
        ] {
            assert_eq!(typed.parse::<AgentAddress>().unwrap().0, meant);
        }
        assert_eq!("a".parse::<ServerAddress>().unwrap().0, "a:8080");
        for bad in ["", ":1", "a:0", "a:x", "a b:1", "[x]:1", "https://a:1", "a:99999"] {
            assert!(bad.parse::<AgentAddress>().is_err(), "{bad}");
        }
        let loopback = |text: &str| text.parse::<ServerAddress>().unwrap().is_loopback();
        assert!(loopback("127.0.0.1") && loopback("[::1]:1") && loopback("localhost:1"));
        assert!(!loopback("10.0.0.1") && !loopback("localhost.example.com"));
    }
}
