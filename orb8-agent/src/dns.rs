//! Names of outside addresses, learnt from the DNS answers that workloads got.
//!
//! A name holds only for the workload that asked: two pods may know one address by different names, and neither
//! must be able to name addresses for the other. Answers are the network's word and never proof of who is behind an
//! address; whoever shows a name says that it came from DNS.

use std::{net::IpAddr, sync::Arc};

use self::{answer::Refused, table::Table};

mod answer;
mod table;

/// How much [`DnsNames`] keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DnsLimits {
    /// Addresses with a name, of all observation points together. One takes some 200 bytes, and its name.
    pub names: usize,
    /// Addresses with a name of one observation point.
    pub names_per_point: usize,
}

impl Default for DnsLimits {
    fn default() -> Self {
        Self {
            names: 16_384,
            names_per_point: 2_048,
        }
    }
}

/// What became of the payloads given to [`DnsNames::learn`]; each is in exactly one of the first four.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DnsCounters {
    /// Answers of which addresses were learnt.
    pub answers: u64,
    /// Well-formed, but nothing to learn from: queries, errors (`NXDOMAIN`), other record types.
    pub without_addresses: u64,
    /// Not DNS, or cut before the first whole record.
    pub malformed: u64,
    /// The name asked for has characters that no host name has, or is too long.
    pub odd_names: u64,
    /// Addresses given a name, also again.
    pub learnt: u64,
    /// Names given up for newer ones, because a limit was reached.
    pub replaced: u64,
}

/// Names of addresses, by the observation point (the workload) that asked for them.
///
/// Memory is bounded by [`DnsLimits`], whatever is answered. Not synchronised: it belongs to one task.
#[derive(Debug)]
pub struct DnsNames {
    table: Table,
    counters: DnsCounters,
}

impl DnsNames {
    /// Knows no names yet.
    #[must_use]
    pub fn new(limits: DnsLimits) -> Self {
        Self {
            table: Table::new(limits),
            counters: DnsCounters::default(),
        }
    }

    /// Learns from a UDP payload that came to `point` from port 53 at `time_ns`; it may have been cut short.
    ///
    /// Any bytes are allowed. An ordinary answer costs 1 µs; 512 bytes made to be slow cost 30, so a caller who
    /// takes answers from workloads limits their rate. Times are nanoseconds of any one clock, the same in
    /// [`DnsNames::name`].
    pub fn learn(&mut self, point: u64, time_ns: u64, payload: &[u8]) {
        match answer::read(payload) {
            Ok(answer) => {
                self.counters.answers += 1;
                let name: Arc<str> = answer.name.into();
                for (address, ttl) in answer.addresses {
                    self.counters.learnt += 1;
                    self.counters.replaced += self.table.learn(point, address, &name, time_ns, ttl);
                }
            }
            Err(Refused::WithoutAddresses) => self.counters.without_addresses += 1,
            Err(Refused::Malformed) => self.counters.malformed += 1,
            Err(Refused::OddName) => self.counters.odd_names += 1,
        }
    }

    /// The name under which `point` had asked for `address`, as of `time_ns`: lower case, without the final dot.
    ///
    /// It holds from the answer on for its TTL (at most a day), at least for five minutes; ask when a flow is first
    /// seen, with the time of its first packet, and keep the answer as long as the flow. Where several names led to
    /// one address, as with shared front ends, it is the one asked for last before that time.
    pub fn name(&mut self, point: u64, address: IpAddr, time_ns: u64) -> Option<Arc<str>> {
        self.table.name(point, address, time_ns)
    }

    /// Forgets all names of a workload that is gone.
    pub fn forget(&mut self, point: u64) {
        self.table.forget(point);
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> DnsLimits {
        self.table.limits()
    }

    /// Addresses that have a name now, also such whose time is over but whose room is not needed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no address has a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was learnt and what was not.
    #[must_use]
    pub fn counters(&self) -> DnsCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        answer::tests::{A, Writer, wire},
        *,
    };

    #[test]
    fn learns_from_answers_and_counts_the_rest() {
        let mut names = DnsNames::new(DnsLimits::default());
        let good = Writer::new(&wire("a.example"), A)
            .record(&wire("a.example"), A, 60, &[192, 0, 2, 1])
            .record(&wire("a.example"), A, 60, &[192, 0, 2, 2]);
        names.learn(7, 1000, &good.bytes);
        let address = IpAddr::from([192, 0, 2, 2]);
        assert_eq!(names.name(7, address, 2000).as_deref(), Some("a.example"));
        assert_eq!(names.name(8, address, 2000), None);
        names.learn(7, 1000, b"not DNS");
        names.learn(7, 1000, &Writer::new(&wire("b.example"), A).bytes);
        names.learn(7, 1000, &Writer::new(&wire("b example"), A).bytes);
        assert_eq!(
            names.counters(),
            DnsCounters {
                answers: 1,
                without_addresses: 1,
                malformed: 1,
                odd_names: 1,
                learnt: 2,
                replaced: 0,
            }
        );
        names.forget(7);
        assert!(names.is_empty());
    }

    proptest! {
        #[test]
        fn every_payload_is_counted_once(payloads in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..80), 0..50,
        )) {
            let mut names = DnsNames::new(DnsLimits { names: 4, names_per_point: 2 });
            for (time, payload) in payloads.iter().enumerate() {
                names.learn(0, time as u64, payload);
            }
            let counters = names.counters();
            prop_assert_eq!(
                counters.answers + counters.without_addresses + counters.malformed + counters.odd_names,
                payloads.len() as u64
            );
        }
    }
}
