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

/// Links of a chain of aliases that are followed; resolvers stop at about as many.
const ALIASES: usize = 16;
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
    for _ in 0..ALIASES {
        let mut addresses = Vec::new();
        let mut alias = None;
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
                Rtype::CNAME => {
                    if let Ok(Some(record)) = record.into_record::<Cname<ParsedName<_>>>() {
                        alias = Some((record.into_data().into_cname(), ttl));
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
        let Some((next, ttl)) = alias else { break };
        (owner, shortest) = (next, ttl);
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
