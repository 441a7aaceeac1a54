//! GPUs as somebody sees them who may see some namespaces only.
//!
//! - A device is told of to whom a holder or user of it is visible; others are only counted, in `hidden_holders`.
//! - What a device did in a span in which hidden holders held it, too, is what they did as well: its readings are withheld.
//!   What is known of a visible holder itself stays: what was measured at its own processes, or while it held the device
//!   alone.
//! - That the device was idle is a reading, too: of a holder that held it together with a hidden one, neither the idle time
//!   is told, nor that the device did nothing. Where they held it one after the other, each one's time is its own.
//! - Values that an exporter tells of a MIG instance by names of its own may be those of the whole board, which others hold
//!   parts of: they are withheld.
//! - Whom a holder waited for is told as the other end of a flow is, also in the sentence of the evidence.
//!
//! What is left: readings of the last sample alone are of the time since the sample before it. If a hidden holder left
//! within that time (seconds), counters such as energy hold some of what it did.

use orb8_proto::v1::{
    Endpoint, GpuDevice, GpuHolder, GpuIdle, GpuMethod, GpuSummary, GpuWait, QueryGpusResponse,
    query_gpus_response::Part,
};
use prost_types::Timestamp;
use tonic::Status;

use super::{Redact, View, names, strip_ledger};

/// Why the idle time of a holder is not told.
const TOGETHER: &str = "not told: others held the device at the same time";

impl View {
    /// Leaves the holders that may be seen, and whether there are any.
    pub(super) fn holders(&self, holders: &mut Vec<GpuHolder>, hidden: &mut u32) -> bool {
        let (mut seen, others): (Vec<GpuHolder>, Vec<GpuHolder>) =
            std::mem::take(holders).into_iter().partition(|holder| {
                let owner = holder.owner.as_ref();
                owner.is_some_and(|owner| self.sight.owns(&owner.namespace))
            });
        *hidden = hidden.saturating_add(u32::try_from(others.len()).unwrap_or(u32::MAX));
        for holder in &mut seen {
            if others.iter().any(|other| may_have_met(holder, other)) {
                withhold(holder);
            }
            if let Some(idle) = &mut holder.idle {
                self.strip_idle(idle);
            }
        }
        *holders = seen;
        !holders.is_empty()
    }

    /// Leaves of whom a holder waited for what may be told of the other end of its flows.
    fn strip_idle(&self, idle: &mut GpuIdle) {
        let mut names_hidden = false;
        for wait in &mut idle.waits {
            let told = wait.peer.clone();
            self.strip_end(&mut wait.peer);
            names_hidden |= names_more(&idle.evidence, told.as_ref(), wait.peer.as_ref());
        }
        if names_hidden {
            idle.evidence = idle
                .waits
                .iter()
                .find(|wait| wait.peer.is_some())
                .map(evidence)
                .unwrap_or_default();
        }
    }

    /// Whether anything of it may be told.
    pub(super) fn gpu(&self, device: &mut GpuDevice) -> bool {
        if !self.holders(&mut device.holders, &mut device.hidden_holders) {
            return false;
        }
        if device.hidden_holders > 0 {
            // What it did is what others did, too.
            device.readings = None;
        }
        if is_instance(device)
            && let Some(readings) = &mut device.readings
        {
            readings.other.clear();
        }
        true
    }

    fn gpu_summary(&self, summary: &mut GpuSummary) {
        strip_ledger(&mut summary.ledger, &mut summary.notes);
        self.answers(&mut summary.nodes);
    }
}

/// Whether it is a MIG instance, also one that goes by its own UUID.
fn is_instance(device: &GpuDevice) -> bool {
    let kind = device.uuid.get(..4);
    device.mig.is_some() || kind.is_some_and(|kind| kind.eq_ignore_ascii_case("MIG-"))
}

/// Whether both may have been on the device at the same time. When a process was there that does not hold it is not told.
fn may_have_met(a: &GpuHolder, b: &GpuHolder) -> bool {
    let (Some(a_since), Some(b_since)) = (a.since, b.since) else {
        return true;
    };
    let begins_before = |begin: Timestamp, end: Option<Timestamp>| {
        end.is_none_or(|end| (begin.seconds, begin.nanos) <= (end.seconds, end.nanos))
    };
    begins_before(a_since, b.until) && begins_before(b_since, a.until)
}

/// Takes from a holder what is known of it only because the device did nothing.
fn withhold(holder: &mut GpuHolder) {
    if holder.method() == GpuMethod::AllocatedIdle {
        holder.set_method(GpuMethod::SharedEstimate);
        holder.utilization = None;
    }
    if let Some(idle) = &mut holder.idle {
        *idle = GpuIdle {
            held: idle.held,
            unknown: idle.held,
            cause: "unknown".to_owned(),
            evidence: TOGETHER.to_owned(),
            ..GpuIdle::default()
        };
    }
}

/// Whether a sentence names anything of an end that is not `left` of it.
fn names_more(sentence: &str, told: Option<&Endpoint>, left: Option<&Endpoint>) -> bool {
    let names = |end: Option<&Endpoint>| {
        end.map(|end| {
            [
                &end.namespace,
                &end.pod,
                &end.pod_uid,
                &end.container,
                &end.workload,
                &end.unit,
                &end.process,
                &end.cgroup,
                &end.dns_name,
                &end.node,
            ]
            .map(String::clone)
        })
        .unwrap_or_default()
    };
    names(told)
        .into_iter()
        .zip(names(left))
        .any(|(told, left)| !told.is_empty() && told != left && sentence.contains(&told))
}

/// The evidence in words that name nobody.
fn evidence(wait: &GpuWait) -> String {
    let mut text = format!("{:.0} % of idle time: {}", wait.share * 100.0, wait.class);
    if let Some(peer) = &wait.peer {
        let ip = if peer.ip.contains(':') {
            format!("[{}]", peer.ip)
        } else {
            peer.ip.clone()
        };
        text.push_str(&format!(", most from {ip}:{}", peer.port));
    }
    text
}

#[tonic::async_trait]
impl Redact<QueryGpusResponse> for View {
    async fn redact(&mut self, mut message: QueryGpusResponse) -> Result<Option<QueryGpusResponse>, Status> {
        match &mut message.part {
            Some(Part::Batch(batch)) => {
                let peers = batch
                    .devices
                    .iter()
                    .flat_map(|device| &device.holders)
                    .filter_map(|holder| holder.idle.as_ref())
                    .flat_map(|idle| &idle.waits)
                    .flat_map(|wait| names(wait.peer.as_ref(), None, None));
                self.sight.learn(peers.collect()).await;
                let before = batch.devices.len();
                batch.devices.retain_mut(|device| self.gpu(device));
                self.drop_rows(before - batch.devices.len());
                for device in &batch.devices {
                    self.note_given(&device.node);
                }
                if batch.devices.is_empty() {
                    return Ok(None);
                }
            }
            Some(Part::Cuda(batch)) => {
                let before = batch.calls.len();
                batch.calls.retain(|calls| {
                    let owner = calls.owner.as_ref();
                    owner.is_some_and(|owner| self.sight.owns(&owner.namespace))
                });
                self.drop_rows(before - batch.calls.len());
                if batch.calls.is_empty() {
                    return Ok(None);
                }
            }
            Some(Part::Summary(summary)) => self.gpu_summary(summary),
            None => return Ok(None),
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Duration;

    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn held(since: Option<i64>, until: Option<i64>) -> GpuHolder {
        GpuHolder {
            since: since.and_then(at),
            until: until.and_then(at),
            ..GpuHolder::default()
        }
    }

    #[test]
    fn who_followed_another_did_not_meet_it() {
        let first = held(Some(0), Some(100));
        assert!(!may_have_met(&first, &held(Some(101), None)));
        assert!(!may_have_met(&held(Some(101), None), &first));
        assert!(may_have_met(&first, &held(Some(100), None)));
        assert!(may_have_met(&held(Some(0), None), &held(Some(9), Some(10))));
        // A process that does not hold the device was there at some time.
        assert!(may_have_met(&first, &held(None, None)));
    }

    #[test]
    fn idle_time_that_is_not_told_is_not_zero() {
        let mut holder = GpuHolder {
            method: GpuMethod::AllocatedIdle.into(),
            utilization: Some(0.0),
            memory_bytes: Some(7),
            idle: Some(GpuIdle {
                held: Some(Duration {
                    seconds: 60,
                    nanos: 0,
                }),
                idle: Some(Duration {
                    seconds: 50,
                    nanos: 0,
                }),
                waits: vec![GpuWait::default()],
                ..GpuIdle::default()
            }),
            ..GpuHolder::default()
        };
        withhold(&mut holder);
        assert_eq!(
            (holder.method(), holder.utilization),
            (GpuMethod::SharedEstimate, None)
        );
        assert_eq!(holder.memory_bytes, Some(7), "that is its own");
        let idle = holder.idle.unwrap();
        assert_eq!((idle.idle, idle.unknown, idle.waits.len()), (None, idle.held, 0));

        let mut measured = GpuHolder {
            method: GpuMethod::NvmlPid.into(),
            utilization: Some(0.5),
            ..GpuHolder::default()
        };
        withhold(&mut measured);
        assert_eq!(measured.utilization, Some(0.5), "measured at its own processes");
    }

    #[test]
    fn a_sentence_that_names_a_hidden_end_is_said_anew() {
        let whole = Endpoint {
            ip: "fd00::9".into(),
            port: 9000,
            namespace: "minio".into(),
            pod: "data-2".into(),
            ..Endpoint::default()
        };
        let left = Endpoint {
            ip: whole.ip.clone(),
            port: whole.port,
            ..Endpoint::default()
        };
        let more = |sentence| names_more(sentence, Some(&whole), Some(&left));
        assert!(more("62 % of idle time in recv from [fd00::9]:9000 minio/data-2"));
        assert!(more("data-2"));
        assert!(!more("62 % of idle time in recv from [fd00::9]:9000"));
        assert!(
            !names_more("minio/data-2", Some(&whole), Some(&whole)),
            "it may be told"
        );
        let wait = GpuWait {
            class: "network".into(),
            share: 0.62,
            peer: Some(left),
            ..GpuWait::default()
        };
        assert_eq!(
            evidence(&wait),
            "62 % of idle time: network, most from [fd00::9]:9000"
        );
    }

    #[test]
    fn instances_are_known_by_number_or_name() {
        let by_name = GpuDevice {
            uuid: "mig-41b35f2a".into(),
            ..GpuDevice::default()
        };
        assert!(is_instance(&by_name));
        assert!(!is_instance(&GpuDevice {
            uuid: "GPU-名".into(),
            ..by_name
        }));
    }
}
