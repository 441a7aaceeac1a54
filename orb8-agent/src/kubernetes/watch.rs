//! Watches of the API server that keep a [`Cluster`] up to date.

use std::{
    collections::HashSet,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use hyper::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Config,
    client::Body,
    runtime::{
        utils::Backoff as _,
        watcher,
        watcher::{DefaultBackoff, Event},
    },
};
use orb8_kubernetes::{KubernetesError, Source, client};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    cluster::{Cluster, ClusterLimits, Resource},
    objects::{Guarded, NodeObject, PodObject, ServiceObject, SliceObject},
};
use crate::{core::lock, probe::kernel_clock::unix_now_ns};

/// The API server ends a watch after minutes; one that ends so soon did not work.
const SHORT_WATCH: Duration = Duration::from_secs(1);
/// Where the back-off has no answer, which does not happen.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

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

    /// What [`Watched::keep`] and [`Watched::delete`] call an object by.
    fn id(metadata: &ObjectMeta) -> Option<Arc<str>> {
        let name = metadata.name.as_deref()?;
        Some(match &metadata.namespace {
            Some(namespace) => format!("{namespace}/{name}").into(),
            None => name.into(),
        })
    }
    /// Takes an object in; returns its id, or `None` if it makes no sense.
    fn apply(self, cluster: &Cluster) -> Option<Arc<str>>;
    /// Takes in what comes with an object's deletion.
    fn apply_last(self, _cluster: &Cluster) {}
    fn delete(cluster: &Cluster, id: &str);
    /// Everything has been listed: what was not is gone.
    fn keep(cluster: &Cluster, listed: &HashSet<Arc<str>>);
}

impl Watched for PodObject {
    const RESOURCE: Resource = Resource::Pods;

    fn id(metadata: &ObjectMeta) -> Option<Arc<str>> {
        metadata.uid.as_deref().map(Arc::from)
    }

    fn apply(self, cluster: &Cluster) -> Option<Arc<str>> {
        cluster.apply_pod(self, unix_now_ns())
    }

    fn apply_last(self, cluster: &Cluster) {
        // Its last state, with the time of its end, may come with its deletion alone.
        cluster.apply_last_of_pod(self, unix_now_ns());
    }

    fn delete(cluster: &Cluster, id: &str) {
        cluster.delete_pod(id, unix_now_ns());
    }

    fn keep(cluster: &Cluster, listed: &HashSet<Arc<str>>) {
        cluster.keep_pods(listed, unix_now_ns());
    }
}

impl Watched for ServiceObject {
    const RESOURCE: Resource = Resource::Services;

    fn apply(self, cluster: &Cluster) -> Option<Arc<str>> {
        cluster.apply_service(&self)
    }

    fn delete(cluster: &Cluster, id: &str) {
        cluster.delete_service(id);
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

    fn delete(cluster: &Cluster, id: &str) {
        cluster.delete_slice(id);
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

    fn delete(cluster: &Cluster, id: &str) {
        cluster.delete_node(id);
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
        let api = Api::all(attentive::<K>(client, cluster.clone()));
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow::<K>(&cluster, &api, &config) => {}
        }
    });
}

/// When a watch began last, and how long the next one waits if that ended at once.
#[derive(Default)]
struct Pace {
    began: Option<Instant>,
    backoff: DefaultBackoff,
}

/// A client that notes when a watch begins: the stream of its events says nothing until something changes, which of some
/// resources takes days. And as the stream begins a watch that has ended anew without delay, the client delays that.
fn attentive<K: Watched>(client: Client, cluster: Arc<Cluster>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let pace = Arc::new(Mutex::new(Pace::default()));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, cluster, pace) = (client.clone(), cluster.clone(), pace.clone());
        async move {
            let query = request.uri().query().unwrap_or_default();
            if !query.split('&').any(|pair| pair == "watch=true") {
                return client.send(request).await;
            }
            let wait = {
                let mut pace = lock(&pace);
                match pace.began.take() {
                    Some(began) if began.elapsed() < SHORT_WATCH => pace.backoff.next(),
                    Some(_) => {
                        pace.backoff.reset();
                        None
                    }
                    None => None,
                }
            };
            tokio::time::sleep(wait.unwrap_or_default()).await;
            let response = client.send(request).await?;
            if response.status().is_success() {
                lock(&pace).began = Some(Instant::now());
                recovered::<K>(&cluster);
            }
            Ok(response)
        }
    });
    Client::new(service, namespace)
}

/// Takes events in for ever. The stream lists again by itself where its place in the API's history has expired.
async fn follow<K: Watched>(cluster: &Cluster, api: &Api<Guarded<K>>, config: &watcher::Config) {
    let begin = || Box::pin(watcher(api.clone(), config.clone()));
    let mut events = begin();
    // Not `StreamBackoff`: it takes the event that comes before each attempt to list for a success.
    let mut backoff = DefaultBackoff::default();
    let mut listed = HashSet::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if failed::<K>(cluster, &error) {
                    backoff.reset();
                }
                if is_lost(&error) {
                    events = begin();
                }
                tokio::time::sleep(backoff.next().unwrap_or(LONGEST_WAIT)).await;
                continue;
            }
        };
        match event {
            Event::Init => {
                listed.clear();
                cluster.watch(K::RESOURCE, |watch| {
                    watch.restarts += u64::from(watch.listed && watch.failure.is_none());
                });
            }
            Event::InitApply(object) => {
                cluster.watch(K::RESOURCE, |watch| watch.events += 1);
                listed.extend(apply(cluster, object));
            }
            Event::InitDone => {
                K::keep(cluster, &listed);
                listed = HashSet::new();
                let first = cluster.watch(K::RESOURCE, |watch| !std::mem::replace(&mut watch.listed, true));
                if first {
                    debug!(resource = K::RESOURCE.name(), "known");
                }
                recovered::<K>(cluster);
            }
            Event::Apply(object) => {
                apply(cluster, object);
                changed::<K>(cluster);
            }
            Event::Delete(object) => {
                let id = K::id(kube::Resource::meta(&object));
                // Whether its last state can be read or not, it is gone.
                if let Ok(object) = object.0 {
                    object.apply_last(cluster);
                }
                if let Some(id) = id {
                    K::delete(cluster, &id);
                }
                changed::<K>(cluster);
            }
        }
    }
}

/// Whether the stream would go on in vain, or after something that it has missed, so that all must be listed anew.
fn is_lost(error: &watcher::Error) -> bool {
    use watcher::Error::{WatchFailed, WatchStartFailed};
    match error {
        WatchStartFailed(kube::Error::Api(status)) | WatchFailed(kube::Error::Api(status)) => {
            status.code == 410
        }
        // Which object the line was about cannot be known.
        WatchFailed(kube::Error::SerdeError(_)) => true,
        _ => false,
    }
}

/// Takes in an object, or counts it; returns its id.
fn apply<K: Watched>(cluster: &Cluster, object: Guarded<K>) -> Option<Arc<str>> {
    let metadata = kube::Resource::meta(&object);
    let (id, name) = (K::id(metadata), metadata.name.clone().unwrap_or_default());
    let error = match object.0 {
        Ok(object) => match object.apply(cluster) {
            Some(id) => return Some(id),
            None => "it lacks a name or uid, or has one that cannot be".to_owned(),
        },
        Err(unreadable) => unreadable.error,
    };
    cluster.watch(K::RESOURCE, |watch| watch.malformed += 1);
    warn!(
        resource = K::RESOURCE.name(),
        name = shortened(&name),
        error = shortened(&error),
        "an object cannot be read and is left out"
    );
    // It exists: what was known of it before stays.
    id
}

/// A text for the log, which may be of any length and content.
fn shortened(text: &str) -> String {
    text.chars().take(300).flat_map(char::escape_debug).collect()
}

fn changed<K: Watched>(cluster: &Cluster) {
    cluster.watch(K::RESOURCE, |watch| watch.events += 1);
    recovered::<K>(cluster);
}

fn recovered<K: Watched>(cluster: &Cluster) {
    let was = cluster.watch(K::RESOURCE, |watch| {
        watch.stale_since = None;
        watch.failure.take()
    });
    if was.is_some() {
        info!(resource = K::RESOURCE.name(), "the API server answers again");
    }
}

/// Notes a failure; returns whether all was well before.
fn failed<K: Watched>(cluster: &Cluster, error: &watcher::Error) -> bool {
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
    first
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
