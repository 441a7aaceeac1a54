//! A server of the kubelet's API for the resources of pods, with faults: see the README.

mod file;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use file::read;
use orb8_gpu::kubelet::api::{
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    PodResources,
    pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer},
};
use tempfile::TempDir;
use tokio::{net::UnixListener, runtime::Runtime};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// How it answers.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// With these pods.
    Answer(Vec<PodResources>),
    /// With the pods of a file, read each time.
    File(PathBuf),
    /// Never.
    Hang,
    /// As one that does not know the calls.
    Unimplemented,
}

/// A running server; it ends when it is dropped.
#[derive(Debug)]
pub struct FakeKubelet {
    directory: Option<TempDir>,
    socket: PathBuf,
    /// Its own, so that it ends with all its connections, as a process does.
    runtime: Option<Runtime>,
}

impl FakeKubelet {
    /// In a directory of its own.
    ///
    /// # Errors
    /// If there can be no directory, or no socket in it.
    pub fn start(behaviour: Behaviour) -> io::Result<Self> {
        Self::start_in(TempDir::new()?, behaviour)
    }

    /// In this directory, which goes with it.
    ///
    /// # Errors
    /// If there can be no socket in it.
    pub fn start_in(directory: TempDir, behaviour: Behaviour) -> io::Result<Self> {
        let mut kubelet = Self::start_at(&directory.path().join("kubelet.sock"), behaviour)?;
        kubelet.directory = Some(directory);
        Ok(kubelet)
    }

    /// At a path that is free.
    ///
    /// # Errors
    /// If it is not, or no thread can be started.
    pub fn start_at(socket: &Path, behaviour: Behaviour) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let service = PodResourcesListerServer::new(Service(behaviour));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        runtime.spawn(async move {
            let listener = UnixListener::from_std(listener).map_err(|error| error.to_string())?;
            Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .map_err(|error| error.to_string())
        });
        Ok(Self {
            directory: None,
            socket: socket.to_owned(),
            runtime: Some(runtime),
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it and removes its socket, as a kubelet that restarts does. Its directory, if it has one of its own, is left.
    ///
    /// # Errors
    /// If the socket cannot be removed.
    pub fn stop(mut self) -> io::Result<Option<TempDir>> {
        self.end();
        std::fs::remove_file(&self.socket)?;
        Ok(self.directory.take())
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Debug)]
struct Service(Behaviour);

impl Service {
    async fn pods(&self, call: &str) -> Result<Vec<PodResources>, Status> {
        match &self.0 {
            Behaviour::Answer(pods) => Ok(pods.clone()),
            Behaviour::File(path) => read(path).map_err(|error| Status::internal(format!("{error:#}"))),
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Unimplemented => Err(Status::unimplemented(format!("unknown method {call}"))),
        }
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let pod_resources = self.pods("List").await?;
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        let GetPodResourcesRequest {
            pod_name,
            pod_namespace,
        } = request.into_inner();
        let mut pods = self.pods("Get").await?.into_iter();
        let pod = pods.find(|pod| pod.name == pod_name && pod.namespace == pod_namespace);
        // As the kubelet words it.
        let unknown = || Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"));
        let pod = pod.ok_or_else(unknown)?;
        Ok(Response::new(GetPodResourcesResponse {
            pod_resources: Some(pod),
        }))
    }
}
