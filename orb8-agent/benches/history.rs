//! The history at a hundred thousand live flows: memory, time to take in an interval, time to answer.
//!
//! `cargo bench -p orb8-agent --bench history`

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use orb8_agent::{
    identity::owner::{Attribution, Kind, Owner, OwnerId, OwnerTable},
    store::{Direction, History, HistoryLimits, Observation, ViaId},
};
use orb8_common::network::{FlowCounters, FlowKey, kind, protocol};
use orb8_proto::v1;

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;
const OWNERS: u32 = 500;

fn key(n: u32) -> FlowKey {
    let address = |high: u8, n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        std::net::Ipv4Addr::new(high, b, c, d).to_ipv6_mapped().octets()
    };
    FlowKey {
        src: address(10, n % OWNERS),
        dst: address(11, n / 50),
        point: u64::from(n % OWNERS + 2),
        sport: 20_000 + (n % 40_000) as u16,
        dport: 443,
        protocol: protocol::TCP,
        kind: kind::IPV4,
        link_len: 14,
        reserved: 0,
    }
}

fn owners() -> OwnerTable {
    let mut owners = OwnerTable::new(4096);
    for n in 0..OWNERS {
        owners.intern(Owner {
            kind: Kind::Process,
            attribution: Attribution::Veth,
            container: format!("{n:064x}"),
            unit: format!("app-{n}.service"),
            ..Owner::default()
        });
    }
    owners
}

/// One second in which each flow sent; how long it took to add and to commit.
fn second(
    history: &mut History,
    owners: &OwnerTable,
    number: u64,
    flows: std::ops::Range<u32>,
) -> [Duration; 2] {
    let from = START + number * SECOND;
    let begun = Instant::now();
    history.begin(from);
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for n in flows {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let packets = 1 + random % 200;
        let first_ns = from + random % (SECOND / 2);
        let counters = FlowCounters {
            packets,
            bytes: packets * (60 + random % 1440),
            first_ns,
            last_ns: first_ns + random % (SECOND / 2),
            tcp_flags: 0x18,
            ..FlowCounters::default()
        };
        let point = history.point("veth0123");
        history.add_flow(
            &Observation {
                key: &key(n),
                counters: &counters,
                owner: OwnerId(1 + n % OWNERS),
                peer: OwnerId::UNKNOWN,
                peer_kind: Kind::External,
                direction: Direction::Egress,
                via: ViaId::STRAIGHT,
                point,
            },
            owners,
        );
    }
    let added = begun.elapsed();
    let begun = Instant::now();
    history.commit(from + SECOND, owners);
    [added, begun.elapsed()]
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

fn scenario(name: &str, seconds: u64, live: u32, turnover: u32) {
    let owners = owners();
    let mut history = History::new(HistoryLimits::default());
    let (mut adds, mut commits) = (Vec::new(), Vec::new());
    let mut most = 0;
    for number in 0..seconds {
        let first = number as u32 * turnover;
        let [added, committed] = second(&mut history, &owners, number, first..first + live);
        adds.push(added);
        commits.push(committed);
        most = most.max(history.memory());
    }
    println!("{name}: {live} flows a second, {turnover} of them new, for {seconds} s");
    println!(
        "  memory {:.1} MiB (at most {:.1}), covers {} s",
        history.memory() as f64 / 1048576.0,
        most as f64 / 1048576.0,
        history.covered().map_or(0, |(from, to)| (to - from) / SECOND),
    );
    println!("  evicted {:?}", history.evicted());
    for row in history.ledger().iter().filter(|row| row.lost > 0) {
        println!("  {}: {} of {} {} lost", row.stage, row.lost, row.seen, row.unit);
    }
    println!(
        "  add all: median {:.1} ms; commit: median {:.1} ms, 99 % {:.1} ms",
        percentile(&mut adds, 50),
        percentile(&mut commits, 50),
        percentile(&mut commits, 99)
    );
    let filter = |filter| v1::FlowQuery {
        filter: Some(filter),
        limit: 100,
        ..Default::default()
    };
    let last_minute = prost_types::Timestamp {
        seconds: ((START / SECOND + seconds).saturating_sub(10)).cast_signed(),
        nanos: 0,
    };
    let queries = [
        (
            "top 100 by bytes, all time",
            v1::FlowQuery {
                limit: 100,
                ..Default::default()
            },
        ),
        (
            "top 100 by bytes, 10 s",
            v1::FlowQuery {
                limit: 100,
                since: Some(last_minute),
                ..Default::default()
            },
        ),
        (
            "of one owner",
            filter(v1::FlowFilter {
                owners: vec!["app-7".into()],
                ..Default::default()
            }),
        ),
        (
            "of one network",
            filter(v1::FlowFilter {
                addresses: vec!["11.0.1.0/24".into()],
                ..Default::default()
            }),
        ),
    ];
    for (name, query) in queries {
        let mut times = Vec::new();
        for _ in 0..200 {
            let begun = Instant::now();
            let answer = history.query(&query, &owners, "node", START);
            times.push(begun.elapsed());
            drop(black_box(answer));
        }
        println!(
            "  query {name}: median {:.1} ms, 99 % {:.1} ms",
            percentile(&mut times, 50),
            percentile(&mut times, 99)
        );
    }
}

fn main() {
    scenario("few", 300, 1000, 10);
    scenario("steady", 120, 100_000, 0);
    scenario("churn", 120, 10_000, 5000);
}
