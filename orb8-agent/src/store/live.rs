//! One packet's event, as a message and against a filter.

use orb8_common::network::{FlowCounters, FlowKey, event};
use orb8_proto::v1;

use super::{
    Direction, QueryError,
    delta::Delta,
    filter::Filter,
    flows::{Flow, Identity},
    interned::Via,
    message,
};
use crate::identity::owner::{Owner, OwnerId};

/// An event with the names of its ends.
#[derive(Clone, Debug)]
pub struct LiveEvent {
    /// The packet's flow.
    pub key: FlowKey,
    /// Seen from `owner`.
    pub direction: Direction,
    /// Who reports it.
    pub owner: Owner,
    /// Who is at the other end.
    pub peer: Owner,
    /// The Service that its connection goes through, and its translation.
    pub via: Option<Via>,
    /// Where it was seen, unless at a socket.
    pub interface: Option<String>,
    /// One of [`event`].
    pub kind: u8,
    /// Unix time in nanoseconds.
    pub time_ns: u64,
    /// Layer-3 bytes of the packet.
    pub bytes: u32,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// New flows that it stands for.
    pub weight: u16,
}

impl LiveEvent {
    fn flow(&self) -> Flow {
        Flow::of_packet(&Identity {
            key: self.key,
            owner: OwnerId::UNKNOWN,
            direction: self.direction,
            remainder: false,
        })
    }

    /// The message of the event.
    #[must_use]
    pub fn message(&self, node: &str) -> v1::NetworkEvent {
        let delta = Delta::from_counters(&FlowCounters {
            packets: 1,
            bytes: u64::from(self.bytes),
            first_ns: self.time_ns,
            last_ns: self.time_ns,
            tcp_flags: u32::from(self.tcp_flags),
            ..FlowCounters::default()
        });
        let known = message::Known {
            reporter: &self.owner,
            peer: &self.peer,
            peer_reported: false,
            interface: self.interface.as_deref(),
            via: self.via.as_ref(),
            node,
        };
        let flow = message::flow(&self.flow(), &delta, &known);
        v1::NetworkEvent {
            time: Some(message::timestamp(self.time_ns)),
            kind: match self.kind {
                event::NEW_FLOW => v1::NetworkEventKind::NewFlow,
                event::SYN => v1::NetworkEventKind::Syn,
                event::SYN_ACK => v1::NetworkEventKind::SynAck,
                event::FIN => v1::NetworkEventKind::Fin,
                event::RST => v1::NetworkEventKind::Rst,
                _ => v1::NetworkEventKind::Unspecified,
            }
            .into(),
            flow: Some(flow),
            weight: u32::from(self.weight),
        }
    }
}

/// Which events a listener wants.
#[derive(Debug)]
pub struct LiveFilter(Filter);

impl LiveFilter {
    /// Reads a filter.
    ///
    /// # Errors
    /// If a value in it makes no sense; the error names it.
    pub fn new(filter: Option<&v1::FlowFilter>) -> Result<Self, QueryError> {
        Filter::new(filter).map(Self)
    }

    /// Whether the listener wants it.
    #[must_use]
    pub fn matches(&self, event: &LiveEvent) -> bool {
        let flow = event.flow();
        self.0.matches_direction(&flow)
            && self.0.matches_detail(&flow)
            && (!self.0.asks_for_owners()
                || self.0.matches_owner(&event.owner)
                || self.0.matches_owner(&event.peer)
                || self.0.matches_service_namespace(event.via.as_ref()))
            && (!self.0.asks_for_peers() || self.0.matches_peer(&flow, &event.peer, event.via.as_ref()))
    }
}
