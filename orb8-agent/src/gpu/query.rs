//! Answers to `QueryGpus`.

use std::time::SystemTime;

use orb8_gpu::Answer;
use orb8_proto::{batches as cut, v1};

use super::{Gpus, owners::PodSelection};
use crate::{core::lock, store};

/// Devices of one message: some hundred kilobytes.
const DEVICES_A_MESSAGE: usize = 64;
/// Rows of calls of one message.
const CALLS_A_MESSAGE: usize = 256;
/// Values of a filter's list of devices.
const MAX_DEVICES: usize = 1024;

/// What is wrong with a question about GPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuQueryError {
    /// The filter's conditions on holders.
    #[error(transparent)]
    Filter(#[from] store::QueryError),
    /// Its span of time.
    #[error(transparent)]
    Span(#[from] orb8_gpu::QueryError),
    /// A device without a name.
    #[error("a value in `devices` of the filter is empty; give an index, or the beginning of a UUID")]
    NoDevice,
    /// Too many devices.
    #[error("the filter names {0} devices, more than the {max}", max = MAX_DEVICES)]
    TooManyDevices(usize),
}

/// Conditions on holders, if there are any, of a filter that can be used.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn checked(filter: Option<&v1::GpuFilter>) -> Result<Option<PodSelection>, GpuQueryError> {
    let Some(filter) = filter else {
        return Ok(None);
    };
    if filter.devices.iter().any(String::is_empty) {
        return Err(GpuQueryError::NoDevice);
    }
    if filter.devices.len() > MAX_DEVICES {
        return Err(GpuQueryError::TooManyDevices(filter.devices.len()));
    }
    Ok(PodSelection::new(filter)?)
}

impl Gpus {
    /// Answers a question whose label selectors are resolved. Cost: linear in samples of the span.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn answer(&self, query: &v1::GpuQuery) -> Result<Answer, GpuQueryError> {
        let selection = checked(query.filter.as_ref())?;
        let is_wanted = selection
            .as_ref()
            .map(|selection| |holder: &v1::Endpoint| selection.matches(holder));
        let sources = self.sources();
        let mut answer = {
            let mut monitor = lock(&self.monitor);
            monitor.set_sources(sources);
            let is_wanted = is_wanted
                .as_ref()
                .map(|wanted| wanted as &dyn Fn(&v1::Endpoint) -> bool);
            monitor.query(query, SystemTime::now(), is_wanted)?
        };
        if !self.options.enabled {
            answer
                .summary
                .notes
                .push("GPUs are not looked for: the setting gpu is off.".to_owned());
        }
        answer.summary.notes.extend(lock(&self.strangers).clone());
        answer.summary.ledger = self.ledger();
        Ok(answer)
    }
}

impl Gpus {
    /// Calls of the CUDA libraries that a question is about: none, if it is about idle devices, or of other holders.
    pub(crate) fn cuda_calls(&self, node: &str, query: &v1::GpuQuery) -> Vec<v1::CudaCalls> {
        let Ok(selection) = checked(query.filter.as_ref()) else {
            return Vec::new();
        };
        if query.idle {
            return Vec::new();
        }
        let ns = |time: prost_types::Timestamp| {
            let seconds = u64::try_from(time.seconds).unwrap_or_default();
            seconds.saturating_mul(1_000_000_000) + u64::try_from(time.nanos).unwrap_or_default()
        };
        let span = query
            .since
            .map(|since| (ns(since), query.until.map_or(u64::MAX, ns)));
        self.cuda.calls(node, span, selection.as_ref())
    }
}

/// An answer as messages: devices, calls of the CUDA libraries, then the summary.
pub(crate) fn batches(
    devices: Vec<v1::GpuDevice>,
    calls: Vec<v1::CudaCalls>,
    summary: v1::GpuSummary,
) -> Vec<v1::QueryGpusResponse> {
    use v1::query_gpus_response::Part;
    let part = |part| v1::QueryGpusResponse { part: Some(part) };
    let devices = cut(devices, DEVICES_A_MESSAGE).map(|devices| part(Part::Batch(v1::GpuBatch { devices })));
    let calls = cut(calls, CALLS_A_MESSAGE).map(|calls| part(Part::Cuda(v1::CudaBatch { calls })));
    devices
        .chain(calls)
        .chain([part(Part::Summary(summary))])
        .collect()
}
