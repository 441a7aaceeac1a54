//! Reading one DNS answer (RFC 1035, 3596).

use std::net::IpAddr;

use domain::{
    base::{
        Message, ToName,
        iana::{Class, Opcode, Rcode, Rtype},
        name::{Label, ParsedName},
    },
    rdata::{A, Aaaa, Cname},
};

/// Times that the records are gone through. Servers send aliases before what they lead to, and stub resolvers rely on
/// it, so that once is enough; but it is not a rule.
const PASSES: usize = 3;
/// Addresses taken from one answer.
const ADDRESSES: usize = 64;
/// RFC 1035, 2.3.4: 255 bytes with the length of each label, which leaves 253 characters.
const LONGEST_NAME: usize = 253;

/// What an answer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    /// The name that was asked for: lower case, without the final dot.
    pub(super) name: String,
    /// Each with its TTL in seconds; the shortest of the aliases that led to it.
    pub(super) addresses: Vec<(IpAddr, u32)>,
}

/// Why nothing was learnt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    WithoutAddresses,
    Malformed,
    OddName,
}

/// The addresses that `payload` gives for the name that it repeats as its question.
///
/// Only records that the question leads to count, by aliases or directly. What was cut off is missed; records before
/// the cut are taken.
pub(super) fn read(payload: &[u8]) -> Result<Answer, Refused> {
    let message = Message::from_octets(payload).map_err(|_| Refused::Malformed)?;
    let header = message.header();
    if !header.qr() || header.opcode() != Opcode::QUERY || header.rcode() != Rcode::NOERROR {
        return Err(Refused::WithoutAddresses);
    }
    let question = message.sole_question().map_err(|_| Refused::Malformed)?;
    if question.qclass() != Class::IN || !matches!(question.qtype(), Rtype::A | Rtype::AAAA | Rtype::ANY) {
        return Err(Refused::WithoutAddresses);
    }
    let name = host_name(question.qname())?;

    let mut owner = *question.qname();
    let mut shortest = u32::MAX;
    for _ in 0..PASSES {
        let mut addresses = Vec::new();
        let mut led_on = false;
        let section = message.answer().map_err(|_| Refused::Malformed)?;
        for (index, record) in section.enumerate() {
            let Ok(record) = record else {
                if index == 0 {
                    return Err(Refused::Malformed);
                }
                break; // cut short
            };
            if record.class() != Class::IN || !record.owner().name_eq(&owner) {
                continue;
            }
            let ttl = seconds(record.ttl().as_secs()).min(shortest);
            match record.rtype() {
                Rtype::A => {
                    if let Ok(Some(record)) = record.to_record::<A>() {
                        addresses.push((IpAddr::V4(record.data().addr()), ttl));
                    }
                }
                Rtype::AAAA => {
                    if let Ok(Some(record)) = record.to_record::<Aaaa>() {
                        addresses.push((IpAddr::V6(record.data().addr()), ttl));
                    }
                }
                // A name with an alias has no addresses of its own (RFC 1034, 3.6.2).
                Rtype::CNAME if addresses.is_empty() => {
                    if let Ok(Some(record)) = record.into_record::<Cname<ParsedName<_>>>() {
                        owner = record.into_data().into_cname();
                        shortest = ttl;
                        led_on = true;
                    }
                }
                _ => {}
            }
            if addresses.len() == ADDRESSES {
                break;
            }
        }
        if !addresses.is_empty() {
            return Ok(Answer { name, addresses });
        }
        if !led_on {
            break;
        }
    }
    Err(Refused::WithoutAddresses)
}

/// RFC 2181, 8: a TTL with the highest bit set is zero.
fn seconds(ttl: u32) -> u32 {
    if ttl > u32::MAX / 2 { 0 } else { ttl }
}

/// The name as text, if it is one that a host can have (RFC 1123, and underscores, which are in use). Nothing is
/// replaced: a name that could be mistaken for another, or write to a terminal, is refused whole.
fn host_name(name: &ParsedName<&[u8]>) -> Result<String, Refused> {
    let mut text = String::with_capacity(LONGEST_NAME);
    for label in name.iter().filter(|label| !label.is_root()) {
        let label: &Label = label;
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label.as_slice() {
            if !byte.is_ascii_alphanumeric() && byte != b'-' && byte != b'_' {
                return Err(Refused::OddName);
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    if text.is_empty() || text.len() > LONGEST_NAME {
        return Err(Refused::OddName);
    }
    text.shrink_to_fit();
    Ok(text)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes messages as servers do, without compression unless asked for.
    #[derive(Clone, Debug)]
    pub(in crate::dns) struct Writer {
        pub(in crate::dns) bytes: Vec<u8>,
        answers: u16,
    }

    impl Writer {
        pub(in crate::dns) fn new(question: &[u8], kind: u16) -> Self {
            let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
            bytes.extend_from_slice(question);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&1u16.to_be_bytes());
            Self { bytes, answers: 0 }
        }

        pub(in crate::dns) fn record(mut self, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Self {
            self.bytes.extend_from_slice(owner);
            self.bytes.extend_from_slice(&kind.to_be_bytes());
            self.bytes.extend_from_slice(&1u16.to_be_bytes());
            self.bytes.extend_from_slice(&ttl.to_be_bytes());
            self.bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
            self.bytes.extend_from_slice(data);
            self.answers += 1;
            self.bytes[6..8].copy_from_slice(&self.answers.to_be_bytes());
            self
        }
    }

    /// A name as on the wire.
    pub(in crate::dns) fn wire(name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes
    }

    pub(in crate::dns) const A: u16 = 1;
    const CNAME: u16 = 5;
    const AAAA: u16 = 28;
    /// Points to the question's name.
    const QUESTION: [u8; 2] = [0xc0, 12];

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn the_name_is_the_one_asked_for() {
        let message = Writer::new(&wire("WWW.Example.com"), A)
            .record(&QUESTION, CNAME, 300, &wire("edge.cdn.example.net"))
            .record(&wire("EDGE.cdn.example.net"), CNAME, 20, &wire("e1.example.org"))
            .record(&wire("e1.example.org"), A, 60, &[192, 0, 2, 1])
            .record(&wire("e1.example.org"), A, 10, &[192, 0, 2, 2]);
        let answer = read(&message.bytes).unwrap();
        assert_eq!(answer.name, "www.example.com");
        assert_eq!(answer.addresses, [(v4(1), 20), (v4(2), 10)]);
    }

    #[test]
    fn both_versions_and_any_order_of_aliases() {
        let address: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
        let message = Writer::new(&wire("a.example"), AAAA)
            .record(&wire("b.example"), AAAA, u32::MAX, &address.octets())
            .record(&QUESTION, CNAME, 5, &wire("b.example"));
        let answer = read(&message.bytes).unwrap();
        // A TTL with the highest bit set is zero.
        assert_eq!(answer.addresses, [(address.into(), 0)]);
    }

    #[test]
    fn records_of_other_names_are_not_believed() {
        let message = Writer::new(&wire("asked.example"), A)
            .record(&wire("other.example"), A, 60, &[192, 0, 2, 1])
            .record(&QUESTION, A, 60, &[192, 0, 2, 2]);
        assert_eq!(read(&message.bytes).unwrap().addresses, [(v4(2), 60)]);
        let unrelated =
            Writer::new(&wire("asked.example"), A).record(&wire("other.example"), A, 60, &[192, 0, 2, 1]);
        assert_eq!(read(&unrelated.bytes), Err(Refused::WithoutAddresses));
    }

    #[test]
    fn aliases_in_a_circle_end() {
        let message = Writer::new(&wire("a.example"), A)
            .record(&QUESTION, CNAME, 5, &wire("b.example"))
            .record(&wire("b.example"), CNAME, 5, &wire("a.example"));
        assert_eq!(read(&message.bytes), Err(Refused::WithoutAddresses));
    }

    #[test]
    fn only_good_answers_to_one_question_count() {
        let good = Writer::new(&wire("a.example"), A)
            .record(&QUESTION, A, 5, &[192, 0, 2, 1])
            .bytes;
        assert!(read(&good).is_ok());
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            read(&bytes)
        };
        assert_eq!(changed(2, 0x01), Err(Refused::WithoutAddresses), "a query");
        assert_eq!(changed(2, 0xa1), Err(Refused::WithoutAddresses), "another opcode");
        assert_eq!(changed(3, 0x83), Err(Refused::WithoutAddresses), "NXDOMAIN");
        assert_eq!(changed(5, 0), Err(Refused::Malformed), "no question");
        assert_eq!(changed(5, 2), Err(Refused::Malformed), "two questions");
        let other = Writer::new(&wire("a.example"), 16).record(&QUESTION, A, 5, &[192, 0, 2, 1]);
        assert_eq!(read(&other.bytes), Err(Refused::WithoutAddresses), "TXT");
    }

    #[test]
    fn odd_names_are_refused_whole() {
        for label in [
            &b"a b"[..],
            b"a.b",
            b"\x1b[31m",
            b"nul\0",
            b"caf\xc3\xa9",
            b"a\\b",
            b"quote\"",
            b"new\nline",
        ] {
            let mut name = vec![label.len() as u8];
            name.extend_from_slice(label);
            name.extend_from_slice(&wire("example"));
            let message = Writer::new(&name, A).record(&QUESTION, A, 5, &[192, 0, 2, 1]);
            assert_eq!(read(&message.bytes), Err(Refused::OddName), "{label:?}");
        }
        let root = Writer::new(&wire(""), A).record(&QUESTION, A, 5, &[192, 0, 2, 1]);
        assert_eq!(read(&root.bytes), Err(Refused::OddName));
        let usual =
            Writer::new(&wire("_sip._udp.xn--caf-dma.example"), A).record(&QUESTION, A, 5, &[192, 0, 2, 1]);
        assert_eq!(read(&usual.bytes).unwrap().name, "_sip._udp.xn--caf-dma.example");
    }

    #[test]
    fn what_comes_before_the_cut_is_taken() {
        let mut writer = Writer::new(&wire("many.example"), A);
        for last in 0..60 {
            writer = writer.record(&QUESTION, A, 30, &[192, 0, 2, last]);
        }
        let start = writer.bytes.len() - 60 * 16;
        let answer = read(&writer.bytes[..512]).unwrap();
        assert_eq!(answer.addresses.len(), (512 - start) / 16);
        assert_eq!(read(&writer.bytes[..start + 15]), Err(Refused::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&bytes);
        }

        /// Names are as hosts have them, whatever the damage; pointers may lead anywhere.
        #[test]
        fn damaged_answers_give_clean_names_or_none(
            length in 0usize..200,
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut bytes = Writer::new(&wire("www.example.com"), A)
                .record(&QUESTION, CNAME, 300, &[4, b'e', b'd', b'g', b'e', 0xc0, 16])
                .record(&[0xc0, 45], A, 60, &[192, 0, 2, 1])
                .record(&[0xc0, 45], AAAA, 60, &[7; 16])
                .bytes;
            bytes.truncate(length);
            for (index, byte) in damage {
                if !bytes.is_empty() {
                    let at = index.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            if let Ok(answer) = read(&bytes) {
                prop_assert!((1..=LONGEST_NAME).contains(&answer.name.len()));
                let clean = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
                prop_assert!(answer.name.bytes().all(clean));
                prop_assert!((1..=ADDRESSES).contains(&answer.addresses.len()));
                prop_assert!(answer.addresses.iter().all(|(_, ttl)| *ttl <= u32::MAX / 2));
            }
        }
    }
}
