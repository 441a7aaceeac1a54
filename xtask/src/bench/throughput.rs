//! Throughput and latency with and without the agent, and what share of the traffic the agent accounts for.

use std::{path::Path as FilePath, time::Duration};

use anyhow::Result;
use orb8_proto::v1::FlowQuery;

use super::{
    observer::{Observer, is_sent_at},
    path::{Path, VETHS},
    report::Report,
    statistics::{median, percentile, ratio},
    traffic,
};

/// Measures and reports.
///
/// # Errors
/// If traffic or the agent fails.
pub(super) fn run(agent: &FilePath, quick: bool, report: &mut Report) -> Result<()> {
    let path = Path::new()?;
    let (rounds, slice) = if quick { (2, 400) } else { (5, 1000) };
    let slice = Duration::from_millis(slice);
    let udp = |flows| move |path: &Path| Ok(vec![traffic::udp(path, flows, slice, None)?.rate()]);
    type Load<'a> = (&'a str, Box<dyn Fn(&Path) -> Result<Vec<f64>> + 'a>);
    let loads: Vec<Load<'_>> = vec![
        ("64-byte UDP, 100 flows, packets/s", Box::new(udp(100))),
        ("64-byte UDP, 10k flows, packets/s", Box::new(udp(10_000))),
        ("64-byte UDP, 100k flows, packets/s", Box::new(udp(100_000))),
        (
            "TCP bulk, bytes/s",
            Box::new(|path: &Path| Ok(vec![traffic::tcp_bulk(path, slice)?])),
        ),
        (
            "connect/close, connections/s",
            Box::new(|path: &Path| Ok(vec![traffic::tcp_churn(path, slice)?])),
        ),
    ];
    let (mut speed, mut shares) = (Vec::new(), Vec::new());
    let mut exact = true;
    for (name, load) in &loads {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let (mut counted, mut seen, mut bytes_counted, mut bytes_seen) = (0, 0, 0, 0);
        for _ in 0..rounds {
            without.extend(load(&path)?);
            let observer = Observer::start(agent, &path.host, &VETHS)?;
            let before = path.counters(VETHS[0])?;
            let seen_before = total(&observer)?;
            with.extend(load(&path)?);
            // Last packets of closed connections.
            std::thread::sleep(Duration::from_millis(100));
            let after = path.counters(VETHS[0])?;
            let seen_after = total(&observer)?;
            counted += after.rx_packets - before.rx_packets;
            bytes_counted += after.rx_bytes - before.rx_bytes;
            seen += seen_after.0 - seen_before.0;
            bytes_seen += seen_after.1 - seen_before.1;
            observer.stop()?;
        }
        let slowdown = ratio(&with, &without);
        speed.push(vec![
            (*name).to_owned(),
            format!("{:.0}", median(&without)),
            format!("{:.0}", median(&with)),
            format!("{slowdown:.3}"),
        ]);
        exact &= counted == seen && bytes_counted == bytes_seen;
        let share = |part: u64, whole: u64| format!("{:.3} %", part as f64 / whole as f64 * 100.0);
        shares.push(vec![
            (*name).to_owned(),
            counted.to_string(),
            share(seen, counted),
            share(bytes_seen, bytes_counted),
        ]);
        if name.contains("10k") || name.contains("bulk") {
            report.verdict(
                &format!("throughput with the agent: {name}"),
                "≥ 0.98 × without",
                &format!("{slowdown:.3} ×"),
                slowdown >= 0.98,
                "each packet meets a classifier at both veths and the socket program; sender, receiver and agent share two CPUs",
            );
        }
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        without.extend(traffic::tcp_request_response(&path, slice)?);
        let observer = Observer::start(agent, &path.host, &VETHS)?;
        with.extend(traffic::tcp_request_response(&path, slice)?);
        observer.stop()?;
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (with, without) = (percentile(&with, share), percentile(&without, share));
        speed.push(vec![
            format!("request/response {name}, µs"),
            format!("{without:.1}"),
            format!("{with:.1}"),
            format!("{:.3}", with / without),
        ]);
    }
    report.verdict(
        "accounting: packets and bytes of a workload, against its interface's counters, in each load",
        "100.000 %",
        if exact { "100.000 %" } else { "see the table" },
        exact,
        "see the table",
    );
    report.table(
        "Throughput with and without the agent",
        &format!(
            "Pod – veth – bridge – veth – pod, {} ms with and without in turn, median of {rounds}; the ratio is the \
             median of the turns' ratios.",
            slice.as_millis()
        ),
        &["load", "without", "with", "with / without"],
        speed,
    );
    report.table(
        "What the agent accounts for",
        "Frames and bytes that the agent's own answer has for the sending pod, of those that its veth counted.",
        &["load", "frames", "share of frames", "share of bytes"],
        shares,
    );
    Ok(())
}

/// Frames and their bytes that pod A sent, by the agent's answer.
fn total(observer: &Observer) -> Result<(u64, u64)> {
    let (flows, _) = observer.flows(FlowQuery::default(), 1)?;
    Ok(flows
        .iter()
        .filter(|flow| is_sent_at(flow, VETHS[0]))
        .fold((0, 0), |(frames, bytes), flow| {
            (frames + flow.frames, bytes + flow.frame_bytes)
        }))
}
