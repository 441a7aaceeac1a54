//! Watches of the API server that keep a [`Cluster`] up to date.

use std::{
    collections::HashSet,
    fmt::Debug,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Api, Client, Config,
    client::ConfigExt as _,
    config::{KubeConfigOptions, Kubeconfig},
    core::DeserializeGuard,
    runtime::{WatchStreamExt as _, watcher, watcher::Event},
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, ServiceBuilder};
use tracing::{debug, info, warn};

use super::{
    cluster::{Cluster, ClusterLimits, Resource},
    objects::{NodeObject, PodObject, ServiceObject, SliceObject},
};
use crate::probe::kernel_clock::unix_now_ns;

/// A connection on which nothing comes is asked whether it lives, by TCP, after so long, as often, and given up after
/// three times: a watch may rightly be silent for minutes.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which cluster, and how much of it.
#[derive(Clone, Debug)]
pub struct KubernetesOptions {
    /// Our own node's name in the cluster.
    pub node: String,
    /// Watch the pods of all nodes, to name peers.
    pub all_pods: bool,
    /// Bounds.
    pub limits: ClusterLimits,
}

/// Why there is no cluster to ask.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The kubeconfig is no good.
    #[error("cannot use the kubeconfig {path}: {source}; see `kubectl --kubeconfig {path} config view`")]
    Kubeconfig {
        /// Which.
        path: String,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// The configuration has something that cannot be used.
    #[error("cannot make a client of the configuration from {config_source}: {source}")]
    Client {
        /// Where it came from.
        config_source: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// What [`configure`] found.
#[derive(Debug)]
pub enum Configured {
    /// A cluster: where the configuration came from.
    Found(Box<Config>, Source),
    /// None, and why.
    None(String),
}

/// Where a configuration came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A pod's service account.
    InCluster,
    /// A kubeconfig file.
    Kubeconfig(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InCluster => f.write_str("the pod's service account"),
            Self::Kubeconfig(path) => f.write_str(path),
        }
    }
}

/// Finds the cluster's configuration: the kubeconfig given, else the service account's, else that of `KUBECONFIG`.
///
/// # Errors
/// If a kubeconfig is named that cannot be used.
pub async fn configure(kubeconfig: Option<&Path>) -> Result<Configured, KubernetesError> {
    let named = kubeconfig.map(Path::to_owned).or_else(|| {
        std::env::var_os("KUBECONFIG")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    });
    if kubeconfig.is_none()
        && let Ok(config) = Config::incluster()
    {
        return Ok(Configured::Found(Box::new(config), Source::InCluster));
    }
    let Some(path) = named else {
        return Ok(Configured::None(
            "there is no service account (not in a pod), and neither the setting kubeconfig nor KUBECONFIG names a file"
                .to_owned(),
        ));
    };
    let text = path.display().to_string();
    let error = |source| KubernetesError::Kubeconfig {
        path: text.clone(),
        source,
    };
    // KUBECONFIG may be a list of files.
    let read = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::from_env().map(Option::unwrap_or_default),
    };
    let config = Config::from_custom_kubeconfig(read.map_err(error)?, &KubeConfigOptions::default())
        .await
        .map_err(error)?;
    Ok(Configured::Found(Box::new(config), Source::Kubeconfig(text)))
}

/// A client that notices when the other end is gone.
fn client(config: Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    let https = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(config.extra_headers_layer()?)
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(https));
    Ok(Client::new(service, config.default_namespace))
}

/// Begins to watch; each watch goes on until `stop`, whatever the API server does. The answer is empty at first.
///
/// # Errors
/// If the configuration cannot be used.
pub fn watch(
    config: Config,
    source: &Source,
    options: &KubernetesOptions,
    stop: &CancellationToken,
) -> Result<Arc<Cluster>, KubernetesError> {
    let server = config.cluster_url.to_string();
    let cluster = Arc::new(Cluster::new(
        &options.node,
        server,
        source.to_string(),
        options.limits,
    ));
    let client = client(config).map_err(|error| KubernetesError::Client {
        config_source: source.to_string(),
        source: Box::new(error),
    })?;
    let pods = if options.all_pods {
        watcher::Config::default()
    } else {
        watcher::Config::default().fields(&format!("spec.nodeName={}", options.node))
    };
    let everything = watcher::Config::default;
    spawn::<PodObject>(&cluster, client.clone(), pods, stop);
    spawn::<ServiceObject>(&cluster, client.clone(), everything(), stop);
    spawn::<SliceObject>(&cluster, client.clone(), everything(), stop);
    spawn::<NodeObject>(&cluster, client, everything(), stop);
    Ok(cluster)
}

/// What a watch does with its objects.
trait Watched:
    kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
    const RESOURCE: Resource;

    /// Takes an object in; returns what [`Watched::keep`] and [`Watched::delete`] call it by.
    fn apply(self, cluster: &Cluster) -> Option<Arc<str>>;
    fn delete(&self, cluster: &Cluster);
    /// Everything has been listed: what was not is gone.
    fn keep(cluster: &Cluster, listed: &HashSet<Arc<str>>);
}

impl Watched for PodObject {
    const RESOURCE: Resource = Resource::Pods;

    fn apply(self, cluster: &Cluster) -> Option<Arc<str>> {
        let uid = self.metadata.uid.as_deref()?.into();
        cluster.apply_pod(self, unix_now_ns());
        Some(uid)
    }

    fn delete(&self, cluster: &Cluster) {
        // Its last state, with the time of its end, may come with its deletion alone.
        let now = unix_now_ns();
        cluster.apply_pod(self.clone(), now);
        cluster.delete_pod(self.metadata.uid.as_deref().unwrap_or_default(), now);
    }

    fn keep(cluster: &Cluster, listed: &HashSet<Arc<str>>) {
        cluster.keep_pods(listed, unix_now_ns());
    }
}

fn key(object: &impl kube::Resource) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match &meta.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

impl Watched for ServiceObject {
    const RESOURCE: Resource = Resource::Services;

    fn apply(self, cluster: &Cluster) -> Option<Arc<str>> {
        cluster.apply_service(&self)
    }

    fn delete(&self, cluster: &Cluster) {
        cluster.delete_service(&key(self));
    }

    fn keep(cluster: &Cluster, listed: &HashSet<Arc<str>>) {
        cluster.keep_services(listed);
    }
}

impl Watched for SliceObject {
    const RESOURCE: Resource = Resource::EndpointSlices;

    fn apply(self, cluster: &Cluster) -> Option<Arc<str>> {
        cluster.apply_slice(&self)
    }

    fn delete(&self, cluster: &Cluster) {
        cluster.delete_slice(&key(self));
    }

    fn keep(cluster: &Cluster, listed: &HashSet<Arc<str>>) {
        cluster.keep_slices(listed);
    }
}

impl Watched for NodeObject {
    const RESOURCE: Resource = Resource::Nodes;

    fn apply(self, cluster: &Cluster) -> Option<Arc<str>> {
        cluster.apply_node(&self)
    }

    fn delete(&self, cluster: &Cluster) {
        cluster.delete_node(&key(self));
    }

    fn keep(cluster: &Cluster, listed: &HashSet<Arc<str>>) {
        cluster.keep_nodes(listed);
    }
}

fn spawn<K: Watched>(
    cluster: &Arc<Cluster>,
    client: Client,
    config: watcher::Config,
    stop: &CancellationToken,
) {
    cluster.watch(K::RESOURCE, |watch| watch.stale_since = Some(Instant::now()));
    let (cluster, stop) = (cluster.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow::<K>(&cluster, Api::all(client), config) => {}
        }
    });
}

/// Takes events in for ever. The stream lists again by itself where its place in the API's history has expired, and backs
/// off, with jitter, where the API server does not answer.
async fn follow<K: Watched>(cluster: &Cluster, api: Api<DeserializeGuard<K>>, config: watcher::Config) {
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut listed = HashSet::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                failed::<K>(cluster, &error);
                continue;
            }
        };
        recovered::<K>(cluster, &event);
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(DeserializeGuard(Ok(object))) => listed.extend(object.apply(cluster)),
            Event::InitDone => {
                K::keep(cluster, &listed);
                listed = HashSet::new();
                let first = cluster.watch(K::RESOURCE, |watch| !std::mem::replace(&mut watch.listed, true));
                if first {
                    debug!(resource = K::RESOURCE.name(), "known");
                }
            }
            Event::Apply(DeserializeGuard(Ok(object))) => {
                object.apply(cluster);
            }
            Event::Delete(DeserializeGuard(Ok(object))) => object.delete(cluster),
            Event::InitApply(DeserializeGuard(Err(invalid)))
            | Event::Apply(DeserializeGuard(Err(invalid)))
            | Event::Delete(DeserializeGuard(Err(invalid))) => {
                cluster.malformed(K::RESOURCE);
                warn!(
                    resource = K::RESOURCE.name(),
                    name = invalid.metadata.name.as_deref().unwrap_or_default(),
                    error = invalid.error,
                    "an object cannot be read and is left out"
                );
                listed.extend(invalid.metadata.uid.map(Arc::from));
            }
        }
    }
}

fn recovered<K: Watched>(cluster: &Cluster, event: &Event<DeserializeGuard<K>>) {
    let was = cluster.watch(K::RESOURCE, |watch| {
        match event {
            Event::Init => {
                // Nothing has been heard yet: the request goes out now.
                watch.restarts += u64::from(watch.listed && watch.failure.is_none());
                return None;
            }
            Event::InitDone => {}
            _ => watch.events += 1,
        }
        watch.stale_since = None;
        watch.failure.take()
    });
    if was.is_some() {
        info!(resource = K::RESOURCE.name(), "the API server answers again");
    }
}

fn failed<K: Watched>(cluster: &Cluster, error: &watcher::Error) {
    let reason = explain::<K>(error);
    let first = cluster.watch(K::RESOURCE, |watch| {
        watch.restarts += 1;
        watch.stale_since.get_or_insert_with(Instant::now);
        watch.failure.replace(reason.clone()).is_none()
    });
    // Once, not at every attempt.
    if first {
        warn!(
            resource = K::RESOURCE.name(),
            reason, "the API server cannot be watched; what was known last serves, and it is tried again"
        );
    }
}

fn explain<K: Watched>(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    let status = match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status),
        _ => None,
    };
    if status.is_some_and(|status| status.code == 403) {
        return format!(
            "not allowed: a ClusterRole must give get, list and watch on {} (API group {:?})",
            K::RESOURCE.name(),
            K::group(&()),
        );
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
