//! Latency of queries over an agent that holds 100k flows.

use std::{path::Path as FilePath, time::Duration};

use anyhow::Result;
use orb8_proto::v1::{FlowFilter, FlowQuery};

use super::{
    observer::Observer,
    path::{Path, VETHS},
    report::Report,
    statistics::percentile,
    traffic,
};

/// Measures and reports.
///
/// # Errors
/// If traffic or the agent fails.
pub(super) fn run(agent: &FilePath, quick: bool, report: &mut Report) -> Result<()> {
    let path = Path::new()?;
    let times = if quick { 50 } else { 200 };
    let observer = Observer::start(agent, &path.host, &VETHS)?;
    traffic::udp(
        &path,
        50_000,
        Duration::from_secs(if quick { 2 } else { 6 }),
        Some(100_000),
    )?;
    let held = observer.flows(FlowQuery::default(), 1)?.0.len();
    let mut rows = Vec::new();
    let filter = FlowFilter {
        addresses: vec!["10.77.3.0/24".to_owned()],
        ..FlowFilter::default()
    };
    for (name, filter) in [
        ("the 100 largest", None),
        ("of one /24, the 100 largest", Some(filter)),
    ] {
        let (_, taken) = observer.flows(
            FlowQuery {
                filter,
                limit: 100,
                ..FlowQuery::default()
            },
            times,
        )?;
        let (p50, p99) = (percentile(&taken, 0.5), percentile(&taken, 0.99));
        rows.push(vec![name.to_owned(), format!("{p50:.1}"), format!("{p99:.1}")]);
        if rows.len() == 1 {
            report.verdict(
                &format!("query over one agent holding {held} flows, the 100 largest"),
                "p99 < 50 ms",
                &format!("p50 {p50:.1} ms, p99 {p99:.1} ms"),
                p99 < 50.0,
                "each query ends an epoch first (7 to 15 ms of grace period) to be up to date, then decodes the span",
            );
        }
    }
    observer.stop()?;
    report.table(
        "Queries",
        &format!(
            "gRPC on loopback, one at a time, {times} each, over {held} flows; each ends an epoch first."
        ),
        &["query", "p50 ms", "p99 ms"],
        rows,
    );
    Ok(())
}
