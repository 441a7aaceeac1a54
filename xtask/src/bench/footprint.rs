//! CPU and memory of the agent.

use std::{ffi::OsStr, path::Path as FilePath, thread, time::Duration};

use anyhow::{Result, ensure};

use super::{
    cluster,
    observer::Observer,
    path::{Path, VETHS},
    report::Report,
    traffic,
};

const MIB: f64 = 1024.0 * 1024.0;

/// Measures and reports.
///
/// # Errors
/// If traffic or the agent fails.
pub(super) fn run(agent: &FilePath, quick: bool, report: &mut Report) -> Result<()> {
    let path = Path::new()?;
    let time = Duration::from_secs(if quick { 4 } else { 10 });
    let observer = Observer::start(agent, &path.host, &VETHS)?;
    let idle = {
        let before = observer.cpu()?;
        thread::sleep(time);
        (observer.cpu()? - before) / time.as_secs_f64() * 1e3
    };
    let idle_memory = observer.status()?;
    let before = observer.cpu()?;
    let run = traffic::udp(&path, 10_000, time, Some(100_000))?;
    let busy = (observer.cpu()? - before) / run.elapsed.as_secs_f64() * 1e3;
    observer.stop()?;
    // 100k live flows as the agent keeps them: each of 50k is reported from both of its ends.
    let observer = Observer::start(agent, &path.host, &VETHS)?;
    traffic::udp(&path, 50_000, time, Some(100_000))?;
    let full = observer.status()?;
    observer.stop()?;
    // The same with a node full of pods, all of whose names are known.
    let kubeconfig = cluster::start(&path.host)?;
    let settings = [
        ("ORB8_KUBECONFIG", kubeconfig.path().as_os_str()),
        ("ORB8_NODE", OsStr::new(cluster::NODE)),
    ];
    let observer = Observer::start_with(agent, &path.host, &VETHS, &settings)?;
    thread::sleep(Duration::from_secs(2));
    let before = observer.cpu()?;
    thread::sleep(time);
    let named_idle = (observer.cpu()? - before) / time.as_secs_f64() * 1e3;
    let named_memory = observer.status()?;
    let watches = named_memory.kubernetes.iter().flat_map(|it| &it.watches);
    let known: Vec<u64> = watches
        .filter(|it| it.resource == "pods")
        .map(|it| it.objects)
        .collect();
    ensure!(known == [cluster::PODS as u64], "the agent knows {known:?} pods");
    let before = observer.cpu()?;
    let named_run = traffic::udp(&path, 10_000, time, Some(100_000))?;
    let named_busy = (observer.cpu()? - before) / named_run.elapsed.as_secs_f64() * 1e3;
    observer.stop()?;
    let observer = Observer::start_with(agent, &path.host, &VETHS, &settings)?;
    traffic::udp(&path, 50_000, time, Some(100_000))?;
    let named_full = observer.status()?;
    observer.stop()?;
    let rate = run.rate();
    report.verdict(
        "agent CPU at 100k packets/s over 10k flows (20k as observed from both ends)",
        "≤ 50 millicores",
        &format!("{busy:.0} millicores at {rate:.0} packets/s"),
        busy <= 50.0 && rate > 95_000.0,
        "draining, naming and storing 20,000 records a second",
    );
    let (rss, maps) = (full.rss_bytes as f64 / MIB, full.map_bytes as f64 / MIB);
    report.verdict(
        "agent memory with 100k live flows, no Kubernetes",
        "≤ 40 MiB RSS, ≤ 64 MiB with maps",
        &format!("{rss:.1} MiB RSS, {:.1} MiB with maps", rss + maps),
        rss <= 40.0 && rss + maps <= 64.0,
        "the history's bound (history_bytes) is 40 MiB and is used while there is history to keep",
    );
    let (named_rss, named_maps) = (
        named_full.rss_bytes as f64 / MIB,
        named_full.map_bytes as f64 / MIB,
    );
    report.verdict(
        "agent memory with 100k live flows and 500 pods",
        "≤ 40 MiB RSS, ≤ 64 MiB with maps",
        &format!(
            "{named_rss:.1} MiB RSS, {:.1} MiB with maps",
            named_rss + named_maps
        ),
        named_rss <= 40.0 && named_rss + named_maps <= 64.0,
        "the history's bound (history_bytes) is 40 MiB and is used while there is history to keep",
    );
    report.table(
        "CPU and memory of the agent",
        "Processor time from /proc/PID/stat; memory from `orb8 status` (map memory as the kernel gives it in fdinfo).",
        &["state", "millicores", "RSS MiB", "maps MiB"],
        vec![
            vec![
                "idle".to_owned(),
                format!("{idle:.1}"),
                format!("{:.1}", idle_memory.rss_bytes as f64 / MIB),
                format!("{:.1}", idle_memory.map_bytes as f64 / MIB),
            ],
            vec![format!("{rate:.0} packets/s, 10k flows"), format!("{busy:.1}"), String::new(), String::new()],
            vec!["100k live flows".to_owned(), String::new(), format!("{rss:.1}"), format!("{maps:.1}")],
            vec![
                "idle, 500 pods, 100 Services".to_owned(),
                format!("{named_idle:.1}"),
                format!("{:.1}", named_memory.rss_bytes as f64 / MIB),
                format!("{:.1}", named_memory.map_bytes as f64 / MIB),
            ],
            vec![
                format!("the same, {:.0} packets/s, 10k flows", named_run.rate()),
                format!("{named_busy:.1}"),
                String::new(),
                String::new(),
            ],
            vec![
                "the same, 100k live flows".to_owned(),
                String::new(),
                format!("{named_rss:.1}"),
                format!("{named_maps:.1}"),
            ],
        ],
    );
    Ok(())
}
