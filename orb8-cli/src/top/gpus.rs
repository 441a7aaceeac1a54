//! What the GPU pane of `top` knows: the last sample of each device, and how busy it was before. No terminal here.

use std::collections::{HashMap, VecDeque};

use orb8_proto::v1::GpuDevice;
use prost_types::Timestamp;

use super::model::{Action, HISTORY};
use crate::{
    args::GpuSort,
    gpu,
    ledger::Losses,
    query::gpu::Answer,
    render::gpu_table::{self, Containers, Line},
};

/// Devices that are shown; of more, it is said.
const MAX_DEVICES: usize = 4096;

/// Node, UUID and instance.
type Key = (String, String, Option<u32>);

/// All that the GPU pane knows.
#[derive(Debug, Default)]
pub(crate) struct Gpus {
    /// As the order asks, each GPU before its instances.
    devices: Vec<GpuDevice>,
    /// Percent of the last [`HISTORY`] refreshes, latest last; nothing for what was not measured.
    history: HashMap<Key, VecDeque<u64>>,
    pub(crate) sort: GpuSort,
    pub(crate) paused: bool,
    pub(crate) help: bool,
    selected: usize,
    /// Whether more than one agent answers.
    pub(crate) many: bool,
    /// Node that answers.
    pub(crate) node: String,
    /// Time of the answer.
    pub(crate) to: Option<Timestamp>,
    pub(crate) losses: Option<Losses>,
    /// That there is no GPU, and why.
    pub(crate) nothing: Option<String>,
    /// What the reader must know of all answers.
    pub(crate) notes: Vec<String>,
    /// What the last answer says of itself.
    pub(crate) said: Vec<String>,
    /// Why the last refresh failed, while it does.
    pub(crate) trouble: Option<String>,
}

impl Gpus {
    pub(crate) fn new(sort: GpuSort, many: bool) -> Self {
        Self {
            sort,
            many,
            ..Self::default()
        }
    }

    /// Takes one answer.
    pub(crate) fn refresh(&mut self, mut answer: Answer) {
        self.trouble = None;
        self.nothing = answer.no_gpu(false, self.many, None);
        let mut losses = std::mem::take(&mut answer.losses);
        let summary = answer.summary.as_ref();
        losses
            .sentences
            .extend(gpu_table::troubles(&answer.devices, summary, self.many));
        self.losses = Some(losses);
        if let Some(summary) = summary {
            self.to = summary.to;
            self.node.clone_from(&summary.node);
        }
        self.said = if self.nothing.is_some() {
            // They are in that line.
            Vec::new()
        } else {
            answer.notes
        };
        let more = answer.devices.len().saturating_sub(MAX_DEVICES);
        if more > 0 {
            self.said
                .push(format!("and {more} devices more: --node, --namespace"));
            answer.devices.truncate(MAX_DEVICES);
        }
        let mut history = std::mem::take(&mut self.history);
        for device in &answer.devices {
            let mut values = history.remove(&key(device)).unwrap_or_default();
            if let Some(share) = utilization(device) {
                if values.len() >= HISTORY {
                    values.pop_front();
                }
                // Any use shows.
                values.push_back((share.clamp(0.0, 1.0) * 100.0).ceil() as u64);
            }
            self.history.insert(key(device), values);
        }
        self.devices = answer.devices;
        self.order();
    }

    /// Sorts as asked; instances stay with their GPU.
    fn order(&mut self) {
        gpu::in_order(&mut self.devices);
        if self.sort == GpuSort::Name {
            return;
        }
        let devices = std::mem::take(&mut self.devices);
        let mut gpus: Vec<Vec<GpuDevice>> = Vec::new();
        for device in devices {
            match gpus.last_mut() {
                Some(same) if same.iter().any(|other| gpu::is_same_gpu(other, &device)) => same.push(device),
                _ => gpus.push(vec![device]),
            }
        }
        let busiest = |gpu: &[GpuDevice]| gpu.iter().filter_map(utilization).fold(-1.0, f64::max);
        gpus.sort_by(|a, b| busiest(b).total_cmp(&busiest(a)));
        self.devices = gpus.into_iter().flatten().collect();
    }

    pub(crate) fn devices(&self) -> &[GpuDevice] {
        &self.devices
    }

    /// Devices and holders, as they are shown.
    pub(crate) fn lines(&self) -> Vec<Line<'_>> {
        gpu_table::lines(&self.devices, Containers::Ambiguous)
    }

    /// How busy a device was.
    pub(crate) fn history(&self, device: &GpuDevice) -> Option<&VecDeque<u64>> {
        self.history.get(&key(device))
    }

    /// Index of the selected line; nothing if there is none.
    pub(crate) fn selected(&self) -> Option<usize> {
        Some(self.selected.min(self.lines().len().checked_sub(1)?))
    }

    /// Does what a key asks.
    pub(crate) fn act(&mut self, action: Action, page_rows: usize) {
        if self.help {
            self.help = false;
            return;
        }
        match action {
            Action::Sort => {
                self.sort = match self.sort {
                    GpuSort::Name => GpuSort::Use,
                    GpuSort::Use => GpuSort::Name,
                };
                self.order();
            }
            Action::Pause => self.paused = !self.paused,
            Action::Help => self.help = true,
            moving => {
                if let Some(index) = self.selected()
                    && let Some(index) = moving.moved(index, self.lines().len(), page_rows)
                {
                    self.selected = index;
                }
            }
        }
    }
}

fn key(device: &GpuDevice) -> Key {
    (
        device.node.clone(),
        device.uuid.to_ascii_lowercase(),
        device.mig.as_ref().map(|mig| mig.instance),
    )
}

fn utilization(device: &GpuDevice) -> Option<f64> {
    let readings = device.readings.as_ref()?;
    gpu::share_used(readings).filter(|share| share.is_finite())
}

#[cfg(test)]
pub(super) mod tests {
    use orb8_proto::v1::{Endpoint, GpuHolder, GpuMethod, GpuMig, GpuReadings, GpuSummary};

    use super::*;

    pub(in crate::top) fn device(index: u32, utilization: Option<f64>, pod: &str) -> GpuDevice {
        GpuDevice {
            node: "n1".into(),
            uuid: format!("GPU-{index}"),
            index: Some(index),
            model: "NVIDIA H100 80GB HBM3".into(),
            holders: vec![GpuHolder {
                owner: Some(Endpoint {
                    namespace: "ml".into(),
                    pod: pod.into(),
                    ..Endpoint::default()
                }),
                method: GpuMethod::Exclusive.into(),
                utilization,
                ..GpuHolder::default()
            }],
            readings: Some(GpuReadings {
                utilization,
                ..GpuReadings::default()
            }),
            sources: vec!["dcgm".into()],
            ..GpuDevice::default()
        }
    }

    pub(in crate::top) fn answer(devices: Vec<GpuDevice>) -> Answer {
        Answer {
            devices,
            summary: Some(GpuSummary {
                node: "n1".into(),
                to: Some(Timestamp { seconds: 5, nanos: 0 }),
                ..GpuSummary::default()
            }),
            ..Answer::default()
        }
    }

    #[test]
    fn history_is_of_what_was_measured_and_ends_with_its_device() {
        let mut gpus = Gpus::new(GpuSort::Name, false);
        for share in [Some(0.5), None, Some(0.001)] {
            gpus.refresh(answer(vec![device(0, share, "a"), device(1, Some(1.0), "b")]));
        }
        assert_eq!(gpus.history(&device(0, None, "")).unwrap(), &[50, 1]);
        gpus.refresh(answer(vec![device(0, None, "a")]));
        assert!(gpus.history(&device(1, None, "")).is_none());
        for _ in 0..100 {
            gpus.refresh(answer(vec![device(0, Some(7.0), "a")]));
        }
        assert_eq!(gpus.history(&device(0, None, "")).unwrap(), &[100; HISTORY]);
    }

    #[test]
    fn the_busiest_is_first_and_keeps_its_instances() {
        let mut gpus = Gpus::new(GpuSort::Name, false);
        let instance = GpuDevice {
            mig: Some(GpuMig {
                instance: 7,
                ..GpuMig::default()
            }),
            ..device(1, Some(0.9), "c")
        };
        gpus.refresh(answer(vec![
            device(0, Some(0.5), "a"),
            instance,
            device(1, None, "b"),
        ]));
        let order = |gpus: &Gpus| -> Vec<_> {
            let of = |device: &GpuDevice| (device.index.unwrap(), device.mig.is_some());
            gpus.devices().iter().map(of).collect()
        };
        assert_eq!(order(&gpus), [(0, false), (1, false), (1, true)]);
        gpus.act(Action::Sort, 1);
        assert_eq!(order(&gpus), [(1, false), (1, true), (0, false)]);
    }

    #[test]
    fn keys_move_within_what_there_is() {
        let mut gpus = Gpus::new(GpuSort::Name, false);
        gpus.act(Action::Down, 10);
        assert_eq!(gpus.selected(), None);
        gpus.refresh(answer(vec![device(0, None, "a"), device(1, None, "b")]));
        for (action, at) in [
            (Action::Down, 1),
            (Action::PageDown, 3),
            (Action::Top, 0),
            (Action::Up, 0),
            (Action::Bottom, 3),
            (Action::Enter, 3),
        ] {
            gpus.act(action, 10);
            assert_eq!(gpus.selected(), Some(at), "{action:?}");
        }
        gpus.refresh(answer(vec![device(0, None, "a")]));
        assert_eq!(gpus.selected(), Some(1));
    }
}
