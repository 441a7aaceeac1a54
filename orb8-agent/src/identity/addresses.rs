//! Addresses of this machine, in our own network namespace.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{IdentityError, Limit};
use crate::netlink::{Attributes, Socket};

/// Attributes of `RTM_NEWADDR` (include/uapi/linux/if_addr.h).
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Multicast groups (include/uapi/linux/rtnetlink.h).
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
/// Bytes for waiting notifications; more are not needed, since any of them means to look again.
const RECEIVE_BUFFER: libc::c_int = 64 * 1024;

/// Addresses set on interfaces here, kept by notifications.
#[derive(Debug)]
pub(crate) struct HostAddresses {
    route: Socket,
    events: Socket,
    addresses: HashSet<IpAddr>,
    max: usize,
    turned_away: u64,
}

impl HostAddresses {
    pub(crate) fn new(max: usize) -> Result<Self, IdentityError> {
        let error = |action| move |source| IdentityError::Netlink { action, source };
        // Subscribed before the first dump, so that no change falls in between.
        let groups = [RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        let events = Socket::subscribe(libc::NETLINK_ROUTE, &groups, RECEIVE_BUFFER, &[])
            .map_err(error("subscribe to address changes"))?;
        let route = Socket::open(libc::NETLINK_ROUTE).map_err(error("open a route socket"))?;
        let mut host = Self {
            route,
            events,
            addresses: HashSet::new(),
            max,
            turned_away: 0,
        };
        host.dump()?;
        Ok(host)
    }

    /// Whether an address is this machine's. Loopback addresses always are.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// Reads the addresses again if one changed since the last call. One system call otherwise.
    pub(crate) fn refresh(&mut self) -> Result<(), IdentityError> {
        let mut changed = false;
        loop {
            match self.events.notification() {
                Ok(None) => break,
                Ok(Some(_)) => changed = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(source) => {
                    return Err(IdentityError::Netlink {
                        action: "read address changes",
                        source,
                    });
                }
            }
        }
        if changed { self.dump() } else { Ok(()) }
    }

    fn dump(&mut self) -> Result<(), IdentityError> {
        let mut addresses = HashSet::new();
        let mut turned_away = 0;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let found = self
                .route
                .dump(libc::RTM_GETADDR, &dump_request(family), |message| {
                    address_of(message.payload)
                })
                .map_err(|source| IdentityError::Netlink {
                    action: "list addresses",
                    source,
                })?;
            for address in found {
                if addresses.len() < self.max {
                    addresses.insert(address);
                } else {
                    turned_away += 1;
                }
            }
        }
        self.addresses = addresses;
        self.turned_away += turned_away;
        Ok(())
    }

    pub(crate) fn limits(&self) -> Limit {
        Limit {
            name: "host_addresses",
            used: self.addresses.len(),
            max: self.max,
            turned_away: self.turned_away,
        }
    }
}

/// `struct ifaddrmsg` that asks for all addresses of a family.
pub(crate) fn dump_request(family: libc::c_int) -> Vec<u8> {
    vec![family as u8, 0, 0, 0, 0, 0, 0, 0]
}

/// The address in an `RTM_NEWADDR`: on a point-to-point link the local one is `IFA_LOCAL` and `IFA_ADDRESS` the
/// peer's.
pub(crate) fn address_of(payload: &[u8]) -> Option<IpAddr> {
    let (mut local, mut other) = (None, None);
    for (kind, value) in Attributes::at(payload, 8) {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => other = address(value),
            _ => {}
        }
    }
    local.or(other)
}

fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    let bytes = <[u8; 16]>::try_from(value).ok()?;
    Some(Ipv6Addr::from(bytes).to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn local_goes_before_address() {
        let mut payload = vec![2, 32, 0, 0, 1, 0, 0, 0];
        payload.extend_from_slice(&[8, 0, 1, 0, 10, 0, 0, 1]);
        assert_eq!(address_of(&payload), Some([10, 0, 0, 1].into()));
        payload.extend_from_slice(&[8, 0, 2, 0, 10, 0, 0, 2]);
        assert_eq!(address_of(&payload), Some([10, 0, 0, 2].into()));
    }

    #[test]
    fn knows_loopback() {
        let host = HostAddresses::new(100).unwrap();
        assert!(host.contains([127, 8, 9, 10].into()));
        assert!(host.contains(Ipv6Addr::LOCALHOST.into()));
        assert!(!host.contains([192, 0, 2, 1].into()));
    }

    proptest! {
        #[test]
        fn any_bytes(payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            address_of(&payload);
        }
    }
}
