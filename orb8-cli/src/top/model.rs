//! What `top` knows: rates of owners and of their peers, from one answer an interval. No terminal here.
//!
//! A flow between two workloads of a machine is reported by both ends; its bytes go to the reporter's own owner
//! only, so that no owner has a byte twice.

use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
};

use orb8_proto::v1::Flow;
use prost_types::Timestamp;

use crate::{args::TopSort, ends, ledger::Losses, query::End, timestamp};

/// Refreshes that a sparkline shows, and after which an idle entry goes.
pub(crate) const HISTORY: usize = 60;
/// Owners that are kept apart; the rest is one entry.
const MAX_OWNERS: usize = 4096;
/// Peers that are kept apart for one owner; the rest is one entry.
const MAX_PEERS: usize = 512;
/// Name of what had no room.
const OTHER: &str = "(others)";

/// Counts of one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    sent_bytes: u64,
    received_bytes: u64,
    packets: u64,
    retransmits: u64,
    /// Of the flow with the most packets.
    rtt_us: Option<u32>,
    rtt_packets: u64,
}

impl Counts {
    fn add(&mut self, flow: &Flow, sent: bool) {
        let bytes = if sent {
            &mut self.sent_bytes
        } else {
            &mut self.received_bytes
        };
        *bytes = bytes.saturating_add(flow.bytes);
        self.packets = self.packets.saturating_add(flow.packets);
        self.retransmits = self
            .retransmits
            .saturating_add(flow.retransmits.unwrap_or_default());
        if flow.rtt_us.is_some() && flow.packets >= self.rtt_packets {
            self.rtt_us = flow.rtt_us;
            self.rtt_packets = flow.packets;
        }
    }
}

/// A peer and what it is spoken to about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerKey {
    pub(crate) name: String,
    pub(crate) service: String,
}

#[derive(Debug, Default)]
struct OwnerCounts {
    counts: Counts,
    peers: HashMap<PeerKey, Counts>,
}

/// Flows of one interval, added up as they arrive: memory is bounded by owners and peers, not by flows.
#[derive(Debug, Default)]
pub(crate) struct Interval {
    owners: HashMap<String, OwnerCounts>,
}

impl Interval {
    pub(crate) fn add(&mut self, flow: &Flow) {
        let sent = ends::sent(flow);
        let mut name = ends::own_name(flow);
        if self.owners.len() >= MAX_OWNERS && !self.owners.contains_key(&name) {
            name = OTHER.to_owned();
        }
        let owner = self.owners.entry(name).or_default();
        owner.counts.add(flow, sent);
        let mut peer = PeerKey {
            name: ends::peer_name(flow),
            service: ends::short_service(flow),
        };
        if owner.peers.len() >= MAX_PEERS && !owner.peers.contains_key(&peer) {
            peer = PeerKey {
                name: OTHER.to_owned(),
                service: String::new(),
            };
        }
        owner.peers.entry(peer).or_default().add(flow, sent);
    }
}

/// Rates of an owner or peer in the last interval, and its history.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Bytes a second.
    pub(crate) sent: f64,
    /// Bytes a second.
    pub(crate) received: f64,
    /// Packets a second, both ways.
    pub(crate) packets: f64,
    /// Segments that were sent again in the interval.
    pub(crate) retransmits: u64,
    /// Round trip of the flow with the most packets that had one, at the last look.
    pub(crate) rtt_us: Option<u32>,
    /// Bytes since `top` began to see it.
    pub(crate) total_bytes: u64,
    /// Bytes a second of the last [`HISTORY`] refreshes, both ways, latest last.
    pub(crate) history: VecDeque<u64>,
    idle: usize,
}

impl Rates {
    /// Bytes a second, both ways.
    pub(crate) fn bytes(&self) -> f64 {
        self.sent + self.received
    }

    fn refresh(&mut self, counts: &Counts, seconds: f64) {
        self.sent = counts.sent_bytes as f64 / seconds;
        self.received = counts.received_bytes as f64 / seconds;
        self.packets = counts.packets as f64 / seconds;
        self.retransmits = counts.retransmits;
        self.rtt_us = counts.rtt_us.or(self.rtt_us);
        self.total_bytes = self
            .total_bytes
            .saturating_add(counts.sent_bytes)
            .saturating_add(counts.received_bytes);
        if self.history.len() >= HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(self.bytes() as u64);
        self.idle = if counts.packets == 0 { self.idle + 1 } else { 0 };
    }

    /// Adds what another had in the interval that was refreshed already.
    fn join_counts(&mut self, counts: &Counts, seconds: f64) {
        self.sent += counts.sent_bytes as f64 / seconds;
        self.received += counts.received_bytes as f64 / seconds;
        self.packets += counts.packets as f64 / seconds;
        self.retransmits = self.retransmits.saturating_add(counts.retransmits);
        self.total_bytes = self
            .total_bytes
            .saturating_add(counts.sent_bytes)
            .saturating_add(counts.received_bytes);
        let bytes = self.bytes() as u64;
        if let Some(last) = self.history.back_mut() {
            *last = bytes;
        }
        self.idle = 0;
    }
}

#[derive(Debug, Default)]
struct Owner {
    rates: Rates,
    peers: HashMap<PeerKey, Rates>,
}

/// What is on the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Page {
    #[default]
    Owners,
    /// Peers of this owner.
    Peers(String),
}

/// What the user can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Up,
    Down,
    PageUp,
    PageDown,
    Top,
    Bottom,
    Enter,
    Back,
    Sort,
    Pause,
    Help,
    /// Shows the other pane.
    Pane,
    /// A key without a meaning: closes the help.
    Other,
}

impl Action {
    /// The row to which a key moves from row `index` of `len`; nothing if it moves nowhere.
    pub(crate) fn moved(self, index: usize, len: usize, page_rows: usize) -> Option<usize> {
        let to = match self {
            Self::Up => index.saturating_sub(1),
            Self::Down => index.saturating_add(1),
            Self::PageUp => index.saturating_sub(page_rows),
            Self::PageDown => index.saturating_add(page_rows),
            Self::Top => 0,
            Self::Bottom => len,
            _ => return None,
        };
        Some(to.min(len.checked_sub(1)?))
    }
}

/// All that `top` knows.
#[derive(Debug, Default)]
pub(crate) struct Model {
    owners: HashMap<String, Owner>,
    pub(crate) sort: TopSort,
    pub(crate) page: Page,
    pub(crate) paused: bool,
    pub(crate) help: bool,
    /// Row of the owners' page that is selected.
    selected_owner: Option<String>,
    selected_peer: Option<PeerKey>,
    /// Node that answers.
    pub(crate) node: String,
    /// Until when is counted.
    pub(crate) to: Option<Timestamp>,
    /// Seconds of the last interval.
    pub(crate) seconds: f64,
    /// Flows of the last interval.
    pub(crate) flows: u64,
    pub(crate) losses: Option<Losses>,
    /// What the reader must know of all answers.
    pub(crate) note: Option<String>,
    /// Why the last refresh failed, while it does.
    pub(crate) trouble: Option<String>,
}

impl Model {
    pub(crate) fn new(sort: TopSort) -> Self {
        Self {
            sort,
            ..Self::default()
        }
    }

    /// Takes one interval's flows. An answer that covers no new time changes no rate.
    pub(crate) fn refresh(&mut self, interval: Interval, end: End, fallback_seconds: f64) {
        self.losses = Some(end.losses);
        let summary = end.summary.as_ref();
        self.trouble = None;
        let from = self.to.or_else(|| summary.and_then(|summary| summary.from));
        let to = summary.and_then(|summary| summary.to);
        let seconds = match (&from, &to) {
            (Some(from), Some(to)) if !timestamp::is_after(to, from) => return,
            (Some(from), Some(to)) => timestamp::seconds_between(from, to),
            _ => fallback_seconds,
        };
        self.to = to.or(self.to);
        self.seconds = seconds;
        if let Some(summary) = summary {
            self.flows = summary.matched_flows;
            self.node.clone_from(&summary.node);
        }
        let Interval { owners: mut news } = interval;
        for (name, owner) in &mut self.owners {
            let new = news.remove(name).unwrap_or_default();
            owner.refresh(new, seconds);
        }
        for (name, new) in news {
            let room = self.owners.len() < MAX_OWNERS;
            let owner = self
                .owners
                .entry(if room { name } else { OTHER.to_owned() })
                .or_default();
            if owner.rates.history.is_empty() {
                owner.refresh(new, seconds);
            } else {
                owner.rates.join_counts(&new.counts, seconds);
            }
        }
        let open = if let Page::Peers(name) = &self.page {
            Some(name.clone())
        } else {
            None
        };
        self.owners
            .retain(|name, owner| owner.rates.idle < HISTORY || open.as_ref() == Some(name));
    }

    /// Owners in sort order.
    pub(crate) fn owners(&self) -> Vec<(&str, &Rates)> {
        let mut rows: Vec<_> = self
            .owners
            .iter()
            .map(|(name, owner)| (name.as_str(), &owner.rates))
            .collect();
        rows.sort_by(|a, b| self.order(a.1, b.1).then_with(|| a.0.cmp(b.0)));
        rows
    }

    /// Peers of an owner in sort order.
    pub(crate) fn peers(&self, owner: &str) -> Vec<(&PeerKey, &Rates)> {
        let mut rows: Vec<_> = self
            .owners
            .get(owner)
            .map(|owner| owner.peers.iter().collect())
            .unwrap_or_default();
        rows.sort_by(|a, b| self.order(a.1, b.1).then_with(|| a.0.cmp(b.0)));
        rows
    }

    /// Rates of one owner.
    pub(crate) fn owner(&self, name: &str) -> Option<&Rates> {
        self.owners.get(name).map(|owner| &owner.rates)
    }

    /// Index of the selected row on the current page; nothing if the page is empty.
    pub(crate) fn selected(&self) -> Option<usize> {
        let (index, len) = match &self.page {
            Page::Owners => {
                let rows = self.owners();
                (
                    rows.iter()
                        .position(|(name, _)| Some(*name) == self.selected_owner.as_deref()),
                    rows.len(),
                )
            }
            Page::Peers(owner) => {
                let rows = self.peers(owner);
                (
                    rows.iter()
                        .position(|(key, _)| Some(*key) == self.selected_peer.as_ref()),
                    rows.len(),
                )
            }
        };
        (len > 0).then(|| index.unwrap_or_default())
    }

    /// Does what a key asks.
    pub(crate) fn act(&mut self, action: Action, page_rows: usize) {
        if self.help {
            self.help = false;
            return;
        }
        match action {
            Action::Enter => {
                if self.page == Page::Owners
                    && let Some(index) = self.selected()
                    && let Some(name) = self.owners().get(index).map(|(name, _)| (*name).to_owned())
                {
                    self.selected_owner = Some(name.clone());
                    self.selected_peer = None;
                    self.page = Page::Peers(name);
                }
            }
            Action::Back => self.page = Page::Owners,
            Action::Sort => {
                self.sort = match self.sort {
                    TopSort::Bytes => TopSort::Sent,
                    TopSort::Sent => TopSort::Received,
                    TopSort::Received => TopSort::Packets,
                    TopSort::Packets => TopSort::Retransmits,
                    TopSort::Retransmits => TopSort::Name,
                    TopSort::Name => TopSort::Bytes,
                }
            }
            Action::Pause => self.paused = !self.paused,
            Action::Help => self.help = true,
            Action::Pane | Action::Other => {}
            moving => self.select(moving, page_rows),
        }
    }

    /// Selects the row to which a key moves.
    fn select(&mut self, moving: Action, page_rows: usize) {
        let Some(index) = self.selected() else { return };
        match &self.page {
            Page::Owners => {
                let rows = self.owners();
                if let Some(index) = moving.moved(index, rows.len(), page_rows) {
                    self.selected_owner = Some(rows[index].0.to_owned());
                }
            }
            Page::Peers(owner) => {
                let rows = self.peers(owner);
                if let Some(index) = moving.moved(index, rows.len(), page_rows) {
                    self.selected_peer = Some(rows[index].0.clone());
                }
            }
        }
    }

    fn order(&self, a: &Rates, b: &Rates) -> Ordering {
        match self.sort {
            TopSort::Bytes => b.bytes().total_cmp(&a.bytes()),
            TopSort::Sent => b.sent.total_cmp(&a.sent),
            TopSort::Received => b.received.total_cmp(&a.received),
            TopSort::Packets => b.packets.total_cmp(&a.packets),
            TopSort::Retransmits => b.retransmits.cmp(&a.retransmits),
            TopSort::Name => Ordering::Equal,
        }
    }
}

impl Owner {
    fn refresh(&mut self, new: OwnerCounts, seconds: f64) {
        self.rates.refresh(&new.counts, seconds);
        let mut peers = new.peers;
        for (key, rates) in &mut self.peers {
            rates.refresh(&peers.remove(key).unwrap_or_default(), seconds);
        }
        self.peers.retain(|_, rates| rates.idle < HISTORY);
        for (key, counts) in peers {
            let key = if self.peers.len() < MAX_PEERS {
                key
            } else {
                PeerKey {
                    name: OTHER.to_owned(),
                    service: String::new(),
                }
            };
            let rates = self.peers.entry(key).or_default();
            if rates.history.is_empty() {
                rates.refresh(&counts, seconds);
            } else {
                rates.join_counts(&counts, seconds);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::{Direction, Endpoint, FlowSummary};

    use super::*;

    fn end(process: &str, port: u32) -> Option<Endpoint> {
        Some(Endpoint {
            process: process.into(),
            port,
            ..Endpoint::default()
        })
    }

    fn flow(src: &str, dst: &str, direction: Direction, bytes: u64) -> Flow {
        Flow {
            ip_version: 4,
            protocol: 6,
            src: end(src, 40000),
            dst: end(dst, 443),
            direction: direction.into(),
            bytes,
            packets: 1,
            ..Flow::default()
        }
    }

    fn end_of(from: i64, to: i64) -> End {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        End {
            summary: Some(FlowSummary {
                from: at(from),
                to: at(to),
                ..FlowSummary::default()
            }),
            settled: at(to),
            losses: Losses::default(),
            cursor: crate::query::Cursor::default(),
        }
    }

    fn refreshed(model: &mut Model, flows: &[Flow], from: i64, to: i64) {
        let mut interval = Interval::default();
        flows.iter().for_each(|flow| interval.add(flow));
        model.refresh(interval, end_of(from, to), 1.0);
    }

    #[test]
    fn a_flow_that_both_ends_report_counts_once_for_each() {
        let mut model = Model::default();
        let flows = [
            flow("a", "b", Direction::Egress, 100),
            flow("a", "b", Direction::Ingress, 100),
        ];
        refreshed(&mut model, &flows, 0, 2);
        assert_eq!(
            (model.owner("a").unwrap().sent, model.owner("a").unwrap().received),
            (50.0, 0.0)
        );
        assert_eq!(
            (model.owner("b").unwrap().sent, model.owner("b").unwrap().received),
            (0.0, 50.0)
        );
        assert_eq!(
            model.peers("a")[0].0,
            &PeerKey {
                name: "b".into(),
                service: ":443 https".into()
            }
        );
    }

    #[test]
    fn rates_cover_the_time_since_the_last_answer() {
        let mut model = Model::default();
        refreshed(&mut model, &[flow("a", "b", Direction::Egress, 100)], 0, 1);
        // Paused for nine seconds: the answer's span says so.
        refreshed(&mut model, &[flow("a", "b", Direction::Egress, 900)], 1, 10);
        assert_eq!(model.owner("a").unwrap().sent, 100.0);
        assert_eq!(model.owner("a").unwrap().total_bytes, 1000);
        // No new time: no new rate.
        refreshed(&mut model, &[], 10, 10);
        assert_eq!(model.owner("a").unwrap().sent, 100.0);
        assert_eq!(model.owner("a").unwrap().history, [100, 100]);
    }

    #[test]
    fn idle_owners_go() {
        let mut model = Model::default();
        refreshed(&mut model, &[flow("a", "b", Direction::Egress, 1)], 0, 1);
        let idle = i64::try_from(HISTORY).unwrap();
        for second in 1..=idle {
            assert!(model.owner("a").is_some());
            refreshed(&mut model, &[], second, second + 1);
        }
        assert!(model.owner("a").is_none());
        assert_eq!(model.selected(), None);
    }

    #[test]
    fn owners_and_peers_are_bounded_and_no_byte_goes_missing() {
        let mut model = Model::default();
        for round in 0..2 {
            let flows: Vec<Flow> = (0..5000)
                .map(|n| flow(&format!("o{round}-{n}"), "p", Direction::Egress, 1))
                .chain((0..1000).map(|n| {
                    flow(
                        &format!("o{round}-0"),
                        &format!("p{round}-{n}"),
                        Direction::Egress,
                        1,
                    )
                }))
                .collect();
            refreshed(&mut model, &flows, round, round + 1);
            let sent: f64 = model.owners().iter().map(|(_, rates)| rates.sent).sum();
            assert_eq!(sent, 6000.0);
            assert!(model.owners().len() <= MAX_OWNERS + 1);
            let name = format!("o{round}-0");
            if let Some(owner) = model.owner(&name) {
                let peers: f64 = model.peers(&name).iter().map(|(_, rates)| rates.sent).sum();
                assert_eq!(peers, owner.sent);
                assert!(model.peers(&name).len() <= MAX_PEERS + 1);
            }
        }
    }

    #[test]
    fn selection_stays_with_its_owner() {
        let mut model = Model::default();
        let flows = |a, b| {
            [
                flow("a", "x", Direction::Egress, a),
                flow("b", "x", Direction::Egress, b),
            ]
        };
        refreshed(&mut model, &flows(10, 5), 0, 1);
        model.act(Action::Down, 10);
        assert_eq!(model.selected(), Some(1));
        refreshed(&mut model, &flows(10, 50), 1, 2);
        assert_eq!((model.owners()[0].0, model.selected()), ("b", Some(0)));
        model.act(Action::Enter, 10);
        assert_eq!(model.page, Page::Peers("b".into()));
        model.act(Action::Back, 10);
        model.act(Action::Bottom, 10);
        assert_eq!(model.selected(), Some(1));
        for _ in 0..6 {
            model.act(Action::Sort, 10);
        }
        assert_eq!(model.sort, TopSort::Bytes);
    }
}
