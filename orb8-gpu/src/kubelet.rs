//! Who holds which device, asked of the kubelet: its API for the resources of pods, version 1, on a socket of the node
//! (kubernetes.io, "Device plugins: monitoring device plugin resources"; KEP-606, KEP-3695).

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

use self::api::pod_resources_lister_client::PodResourcesListerClient;
use crate::allocation::{Allocations, Held};

/// The API's messages, client and server, as generated.
pub mod api {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated code; the API is documented by Kubernetes"
    )]
    tonic::include_proto!("v1");
}

/// Largest answer that is read: a node has 110 pods as a rule, and a pod's part a few hundred bytes.
pub const MAX_ANSWER: usize = 16 << 20;
/// Ids that are taken of one answer; a GPU shared by time has as many as it has replicas.
pub const MAX_DEVICES: usize = 65_536;
/// Longest name or id that is taken, in bytes.
const MAX_TEXT: usize = 512;

/// Why nobody knows who holds what.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// Nobody listens there.
    #[error(
        "the kubelet's socket {} cannot be reached: {source}; is it mounted, and is this process allowed to use it (root)?",
        socket.display()
    )]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the kubelet at {} did not answer within {} s", socket.display(), deadline.as_secs_f64())]
    TimedOut {
        /// Where.
        socket: PathBuf,
        /// The limit.
        deadline: Duration,
    },
    /// It does not know the call.
    #[error(
        "the kubelet at {} does not offer {call}: it is of Kubernetes before 1.20, or the feature gate {gate} is off",
        socket.display()
    )]
    Unsupported {
        /// Where.
        socket: PathBuf,
        /// Which.
        call: &'static str,
        /// What turns it on.
        gate: &'static str,
    },
    /// The pod has no resources here.
    #[error("the kubelet at {} knows no pod {pod}", socket.display())]
    NoPod {
        /// Where.
        socket: PathBuf,
        /// `namespace/name`.
        pod: String,
    },
    /// It refused, or broke off.
    #[error("the kubelet at {} did not answer {call}: {reason}", socket.display())]
    Refused {
        /// Where.
        socket: PathBuf,
        /// Which call.
        call: &'static str,
        /// Its code and words.
        reason: String,
    },
}

/// The kubelet's API for the resources of pods.
///
/// A connection is kept from one question to the next; after a failure it is made anew, so that a kubelet that restarts is
/// found again.
#[derive(Debug)]
pub struct PodResources {
    socket: PathBuf,
    deadline: Duration,
    client: Option<PodResourcesListerClient<Channel>>,
}

impl PodResources {
    /// At this socket; an answer may take as long as `deadline`. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path, deadline: Duration) -> Self {
        Self {
            socket: socket.to_owned(),
            deadline,
            client: None,
        }
    }

    /// Where it is asked.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Devices of all pods of the node. The kubelet allows some 100 questions a second.
    ///
    /// # Errors
    /// [`KubeletError`]; the next question is on a new connection.
    pub async fn list(&mut self) -> Result<Allocations, KubeletError> {
        let deadline = self.deadline;
        let asked = tokio::time::timeout(deadline, async {
            let client = self.client().await?;
            let answer = client.list(api::ListPodResourcesRequest {}).await;
            answer.map_err(Failure::Status)
        });
        let answer = match asked.await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(failure)) => return Err(self.failed(failure, "List", "KubeletPodResources")),
            Err(_) => return Err(self.timed_out()),
        };
        let mut taken = Taken::default();
        for pod in answer.pod_resources {
            taken.pod(pod);
        }
        Ok(Allocations {
            time: SystemTime::now(),
            held: taken.held,
            refused: taken.refused,
        })
    }

    /// Devices of one pod; of Kubernetes 1.27 and later, with the feature gate `KubeletPodResourcesGet`.
    ///
    /// # Errors
    /// As [`PodResources::list`]; [`KubeletError::NoPod`] if the kubelet does not know it.
    pub async fn get(&mut self, namespace: &str, pod: &str) -> Result<Vec<Held>, KubeletError> {
        let deadline = self.deadline;
        let request = api::GetPodResourcesRequest {
            pod_name: pod.to_owned(),
            pod_namespace: namespace.to_owned(),
        };
        let asked = tokio::time::timeout(deadline, async {
            let client = self.client().await?;
            client.get(request).await.map_err(Failure::Status)
        });
        let answer = match asked.await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(Failure::Status(status)))
                if status.code() == Code::NotFound || status.message().contains("not found") =>
            {
                return Err(KubeletError::NoPod {
                    socket: self.socket.clone(),
                    pod: format!("{namespace}/{pod}"),
                });
            }
            Ok(Err(failure)) => return Err(self.failed(failure, "Get", "KubeletPodResourcesGet")),
            Err(_) => return Err(self.timed_out()),
        };
        let mut taken = Taken::default();
        if let Some(pod) = answer.pod_resources {
            taken.pod(pod);
        }
        Ok(taken.held)
    }

    async fn client(&mut self) -> Result<&mut PodResourcesListerClient<Channel>, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => PodResourcesListerClient::new(self.connect().await.map_err(Failure::Io)?)
                .max_decoding_message_size(MAX_ANSWER),
        };
        Ok(self.client.insert(client))
    }

    async fn connect(&self) -> io::Result<Channel> {
        // So that its own error is told, and not the channel's.
        let stream = UnixStream::connect(&self.socket).await?;
        let mut stream = Some(stream);
        // The address is not used.
        let endpoint = Endpoint::from_static("http://kubelet.invalid");
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.take();
            async move {
                let gone = || io::Error::new(io::ErrorKind::NotConnected, "the connection is over");
                stream.map(TokioIo::new).ok_or_else(gone)
            }
        });
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(io::Error::other)
    }

    fn timed_out(&mut self) -> KubeletError {
        self.client = None;
        KubeletError::TimedOut {
            socket: self.socket.clone(),
            deadline: self.deadline,
        }
    }

    fn failed(&mut self, failure: Failure, call: &'static str, gate: &'static str) -> KubeletError {
        self.client = None;
        let socket = self.socket.clone();
        match failure {
            Failure::Io(source) => KubeletError::Unreachable { socket, source },
            Failure::Status(status) if status.code() == Code::Unimplemented => {
                KubeletError::Unsupported { socket, call, gate }
            }
            Failure::Status(status) => KubeletError::Refused {
                socket,
                call,
                reason: format!("{}: {}", status.code(), status.message()),
            },
        }
    }
}

enum Failure {
    Io(io::Error),
    Status(Status),
}

/// What is taken of an answer.
#[derive(Default)]
struct Taken {
    held: Vec<Held>,
    ids: usize,
    refused: u64,
}

impl Taken {
    fn pod(&mut self, pod: api::PodResources) {
        for container in pod.containers {
            for devices in container.devices {
                let held = Held {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    container: container.name.clone(),
                    resource: devices.resource_name,
                    claim: None,
                    devices: devices.device_ids,
                };
                self.take(held);
            }
            for claim in container.dynamic_resources {
                let name = format!("{}/{}", claim.claim_namespace, claim.claim_name);
                let mut of_driver: Vec<Held> = Vec::new();
                for resource in claim.claim_resources {
                    let known = of_driver
                        .iter_mut()
                        .find(|held| held.resource == resource.driver_name);
                    match known {
                        Some(held) => held.devices.push(resource.device_name),
                        None => of_driver.push(Held {
                            namespace: pod.namespace.clone(),
                            pod: pod.name.clone(),
                            container: container.name.clone(),
                            resource: resource.driver_name,
                            claim: Some(name.clone()),
                            devices: vec![resource.device_name],
                        }),
                    }
                }
                for held in of_driver {
                    self.take(held);
                }
            }
        }
    }

    /// The kubelet lists a resource once for each NUMA node of its devices.
    fn take(&mut self, mut held: Held) {
        let fits = |text: &str| text.len() <= MAX_TEXT;
        let named = [&held.namespace, &held.pod, &held.container, &held.resource];
        let is_named = named.iter().all(|text| fits(text)) && held.claim.as_deref().is_none_or(fits);
        let before = held.devices.len();
        held.devices.retain(|id| !id.is_empty() && fits(id));
        if !is_named {
            held.devices.clear();
        }
        let room = MAX_DEVICES.saturating_sub(self.ids);
        held.devices.truncate(room);
        self.ids += held.devices.len();
        self.refused += (before - held.devices.len()) as u64;
        if held.devices.is_empty() {
            return;
        }
        let same = |known: &&mut Held| {
            known.namespace == held.namespace
                && known.pod == held.pod
                && known.container == held.container
                && known.resource == held.resource
                && known.claim == held.claim
        };
        // Those of one container follow each other.
        match self.held.iter_mut().rev().take(16).find(same) {
            Some(known) => known.devices.append(&mut held.devices),
            None => self.held.push(held),
        }
    }
}
