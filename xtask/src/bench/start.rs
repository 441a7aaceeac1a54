//! How soon the agent counts: after its own start, and after an interface appears.

use std::{
    path::Path as FilePath,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use orb8_proto::v1::FlowQuery;

use super::{
    namespace::{Namespace, joined},
    observer::{Observer, is_sent_at},
    path::{Path, VETHS},
    report::Report,
    statistics::median,
};

/// Measures and reports.
///
/// # Errors
/// If the agent fails.
pub(super) fn run(agent: &FilePath, quick: bool, report: &mut Report) -> Result<()> {
    let rounds = if quick { 3 } else { 10 };
    let path = Path::new()?;
    let (mut starts, mut attached) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let ticking = Ticking::start(&path.a)?;
        let begun = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let observer = Observer::spawn(agent, &path.host)?;
        let first = first_sent(&observer, VETHS[0])?;
        starts.push((first.as_secs_f64() - begun.as_secs_f64()) * 1e3);
        ticking.stop()?;

        let pod = Namespace::new("new")?;
        pod.ip("link set lo up")?;
        let begun = Instant::now();
        path.host.ip(&format!(
            "link add veth-new type veth peer name eth0 netns {}",
            pod.name
        ))?;
        let made = begun.elapsed();
        while !observer
            .status()?
            .interfaces
            .iter()
            .any(|it| it.name == "veth-new" && !it.mechanism.is_empty())
        {}
        attached.push((begun.elapsed().saturating_sub(made / 2)).as_secs_f64() * 1e3);
        path.host.ip("link del veth-new")?;
        observer.stop()?;
    }
    let (start, attach) = (median(&starts), median(&attached));
    report.verdict(
        "start to first counted packet",
        "< 150 ms",
        &format!("{start:.0} ms"),
        start < 150.0,
        "most of it is the verifier, on programs that handle every kind of packet",
    );
    report.verdict(
        "new pod interface to attached",
        "< 40 ms",
        &format!("{attach:.0} ms, as a client of the agent sees it"),
        attach < 40.0,
        "the status that shows it drains an epoch first",
    );
    report.table(
        "Start",
        &format!("Median of {rounds}. A packet is sent each millisecond; its flow's first time is compared with the time of exec."),
        &["what", "ms"],
        vec![
            vec!["exec to first counted packet".to_owned(), format!("{start:.1}")],
            vec!["`ip link add` to attached, seen by asking".to_owned(), format!("{attach:.1}")],
        ],
    );
    Ok(())
}

/// Unix time of the first packet that was counted as sent at an interface.
fn first_sent(observer: &Observer, interface: &str) -> Result<Duration> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        if let Ok((flows, _)) = observer.flows(FlowQuery::default(), 1) {
            let times = flows
                .iter()
                .filter(|flow| is_sent_at(flow, interface))
                .filter_map(|flow| flow.first);
            let first = times
                .map(|time| Duration::new(time.seconds.unsigned_abs(), time.nanos.unsigned_abs()))
                .min();
            if let Some(first) = first {
                return Ok(first);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    None.context("the agent counted nothing in ten seconds")
}

/// A datagram each millisecond, to nobody.
struct Ticking {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Ticking {
    fn start(pod: &Namespace) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = pod.spawn(None, move || {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
            while !stopped.load(Relaxed) {
                // Refusals of earlier ones come back as errors.
                let _ = socket.send_to(b"tick", (std::net::Ipv4Addr::from(super::path::B), 9));
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })?;
        Ok(Self { stop, thread })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Relaxed);
        joined(self.thread)
    }
}
