//! GPUs alone, without any probe: needs no privileges.

use std::{path::PathBuf, sync::Arc};

use futures::stream;
use orb8_gpu::Owners;
use orb8_proto::{
    Responses,
    v1::{self, orbit_service_server::OrbitService},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, transport::Channel};

use super::{Cuda, GpuOptions, Gpus, batches, owners::ProcOwners};
use crate::{
    identity,
    in_process::{self, InProcess},
    settings::Settings,
};

/// An agent of this process that answers `QueryGpus` alone. Dropping it ends it.
#[derive(Debug)]
pub struct GpuAgent {
    in_process: InProcess,
    _stop: DropGuard,
}

impl GpuAgent {
    /// Starts to sample. Must be called within a runtime.
    #[must_use]
    pub fn start(settings: &Settings) -> Self {
        let stop = CancellationToken::new();
        let node = settings.node.to_string();
        let gpus = Arc::new(Gpus::new(&node, GpuOptions::of(settings), settings.stream_buffer));
        let owners: Arc<dyn Owners + Send + Sync> = Arc::new(ProcOwners(PathBuf::from(identity::PROC)));
        gpus.start(owners, &stop);
        Cuda::go_without(&gpus);
        let (in_process, incoming) = InProcess::new();
        tokio::spawn(in_process::serve(Service { gpus }, incoming, stop.clone()));
        Self {
            in_process,
            _stop: stop.drop_guard(),
        }
    }

    /// A connection to it, in memory.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.in_process.channel()
    }
}

#[derive(Debug)]
struct Service {
    gpus: Arc<Gpus>,
}

#[tonic::async_trait]
impl OrbitService for Service {
    async fn query_gpus(
        &self,
        request: Request<v1::GpuQuery>,
    ) -> Result<Response<Responses<v1::QueryGpusResponse>>, Status> {
        let query = request.into_inner();
        let answer = self
            .gpus
            .answer(&query)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let messages = batches(answer.devices, Vec::new(), answer.summary);
        Ok(Response::new(Box::pin(stream::iter(
            messages.into_iter().map(Ok),
        ))))
    }
}
