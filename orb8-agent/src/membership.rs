//! Whether this machine is a node of a cluster, and what the cluster says.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use orb8_proto::v1;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    core::{Core, lock},
    kubernetes::{
        Cluster, ClusterLimits, Configured, KubernetesError, KubernetesOptions, Source, configure, watch,
    },
    settings::{Settings, WatchPods},
};

/// How often a kubeconfig's cluster is looked at for a node of our name.
const LOOK: Duration = Duration::from_millis(200);

/// The cluster, as far as there is one.
#[derive(Debug)]
pub(crate) struct Membership {
    cluster: Option<Arc<Cluster>>,
    /// Why its names are not used.
    reason: Mutex<String>,
}

impl Membership {
    /// Finds the cluster, and begins to watch it.
    ///
    /// # Errors
    /// If a kubeconfig is named that cannot be used.
    pub(crate) async fn find(
        settings: &Settings,
        stop: &CancellationToken,
    ) -> Result<(Self, bool), KubernetesError> {
        let none = |reason: String| {
            info!(reason, "no Kubernetes");
            let membership = Self {
                cluster: None,
                reason: Mutex::new(reason),
            };
            Ok((membership, false))
        };
        if !settings.kubernetes {
            return none("switched off by the setting kubernetes".to_owned());
        }
        let (config, source) = match configure(settings.kubeconfig.get()).await? {
            Configured::Found(config, source) => (config, source),
            Configured::None(reason) => return none(reason),
        };
        let options = KubernetesOptions {
            node: settings.node.to_string(),
            all_pods: settings.watch_pods == WatchPods::Cluster,
            limits: ClusterLimits {
                retention: settings.history.max(ClusterLimits::default().retention),
                ..ClusterLimits::default()
            },
        };
        let cluster = watch(*config, &source, &options, stop)?;
        info!(server = cluster.server(), %source, node = cluster.node(), "Kubernetes");
        let certain = source == Source::InCluster;
        let membership = Self {
            reason: Mutex::new(if certain {
                String::new()
            } else {
                "the API server has not said yet whether this machine is a node".to_owned()
            }),
            cluster: Some(cluster),
        };
        Ok((membership, certain))
    }

    /// The cluster, member or not.
    pub(crate) const fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// What is known of the cluster, and how old that is.
    pub(crate) fn status(&self) -> v1::KubernetesStatus {
        let reason = lock(&self.reason).clone();
        let Some(cluster) = &self.cluster else {
            return v1::KubernetesStatus {
                state: v1::State::Off.into(),
                reason,
                source: "none".to_owned(),
                ..v1::KubernetesStatus::default()
            };
        };
        let watches: Vec<v1::WatchStatus> = cluster
            .watches()
            .into_iter()
            .map(|(resource, watch, objects)| {
                let failed = watch.failure.is_some() || !watch.listed;
                let malformed = (watch.malformed > 0)
                    .then(|| format!("{} objects could not be read; see the log", watch.malformed));
                v1::WatchStatus {
                    resource: resource.name().to_owned(),
                    state: if failed {
                        v1::State::Failed
                    } else {
                        v1::State::Active
                    }
                    .into(),
                    reason: watch
                        .failure
                        .or_else(|| (!watch.listed).then(|| "not listed yet".to_owned()))
                        .or(malformed)
                        .unwrap_or_default(),
                    objects: objects as u64,
                    age: watch.listed.then(|| {
                        let age = watch.stale_since.map(|since| since.elapsed());
                        prost_types::Duration::try_from(age.unwrap_or_default()).unwrap_or_default()
                    }),
                    events: watch.events,
                    restarts: watch.restarts,
                }
            })
            .collect();
        let failed = watches
            .iter()
            .find(|watch| watch.state == i32::from(v1::State::Failed));
        let (state, reason) = match (reason.is_empty(), failed) {
            (false, _) => (v1::State::Off, reason),
            (true, Some(watch)) => (v1::State::Failed, format!("{}: {}", watch.resource, watch.reason)),
            (true, None) => (v1::State::Active, String::new()),
        };
        v1::KubernetesStatus {
            state: state.into(),
            reason,
            server: cluster.server().to_owned(),
            source: cluster.source().to_owned(),
            watches,
        }
    }
}

/// Uses the names of a kubeconfig's cluster as soon as it says that this machine is one of its nodes: a kubeconfig may be
/// of any cluster, and its names would be wrong here.
pub(crate) async fn join(core: Arc<Core>, stop: CancellationToken) {
    let Some(cluster) = core.membership.cluster() else {
        return;
    };
    let mut told = false;
    while !cluster.knows_own_node() {
        let listed = cluster
            .watches()
            .iter()
            .any(|(resource, watch, _)| *resource == crate::kubernetes::Resource::Nodes && watch.listed);
        if listed && !told {
            told = true;
            let reason = format!(
                "the cluster at {} has no node named {:?}, so its names are not used here; if this machine is one of \
                 its nodes, give its name with --node",
                cluster.server(),
                cluster.node()
            );
            warn!("{reason}");
            *lock(&core.membership.reason) = reason;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    lock(&core.membership.reason).clear();
    lock(&core.names).cluster = Some(cluster.clone());
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, time::Instant};

    use tokio::{
        io::{AsyncBufReadExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;
    use crate::kubernetes::Resource;

    fn membership() -> (Membership, Arc<Cluster>) {
        let limits = ClusterLimits::default();
        let cluster = Arc::new(Cluster::new("n", "http://server".into(), "test".into(), limits));
        let membership = Membership {
            cluster: Some(cluster.clone()),
            reason: Mutex::default(),
        };
        (membership, cluster)
    }

    #[test]
    fn a_watch_that_fails_says_why_and_how_old_its_state_is() {
        let (membership, cluster) = membership();
        let pods = |status: &v1::KubernetesStatus| status.watches[0].clone();
        let status = membership.status();
        assert_eq!(status.state(), v1::State::Failed);
        assert_eq!(status.reason, "pods: not listed yet");
        assert_eq!(pods(&status).age, None, "never confirmed");

        for resource in Resource::ALL {
            cluster.watch(resource, |watch| watch.listed = true);
        }
        let status = membership.status();
        assert_eq!(status.state(), v1::State::Active);
        assert_eq!(pods(&status).age, Some(prost_types::Duration::default()));

        cluster.watch(Resource::Pods, |watch| {
            watch.failure = Some("refused".to_owned());
            watch.stale_since = Instant::now().checked_sub(Duration::from_secs(7));
            watch.malformed = 3;
            watch.restarts = 2;
        });
        let status = membership.status();
        assert_eq!(status.state(), v1::State::Failed);
        assert_eq!(status.reason, "pods: refused");
        assert_eq!(pods(&status).state(), v1::State::Failed);
        assert_eq!(pods(&status).restarts, 2);
        assert!(pods(&status).age.is_some_and(|age| age.seconds >= 7));
        assert_eq!(status.watches[1].state(), v1::State::Active);

        cluster.watch(Resource::Pods, |watch| {
            watch.failure = None;
            watch.stale_since = None;
        });
        let status = membership.status();
        assert_eq!(status.state(), v1::State::Active);
        assert!(pods(&status).reason.starts_with("3 objects could not be read"));
    }

    /// The first line of the first request for pods.
    async fn asked_for_pods(watch_pods: WatchPods) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut kubeconfig = tempfile::NamedTempFile::new().expect("a file");
        let text = format!(
            "clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: u, user: {{}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             current-context: x\n",
            listener.local_addr().expect("an address")
        );
        kubeconfig.write_all(text.as_bytes()).expect("room");
        let mut settings = Settings::default();
        settings.kubernetes = true;
        settings.kubeconfig = kubeconfig.path().display().to_string().parse().expect("a path");
        settings.watch_pods = watch_pods;
        settings.node = "node-1".parse().expect("a name");
        let stop = CancellationToken::new();
        let _guard = stop.clone().drop_guard();
        let (membership, certain) = Membership::find(&settings, &stop).await.expect("a cluster");
        assert!(membership.cluster().is_some() && !certain);
        let asked = async {
            // Other resources have connections of their own, which stay without an answer.
            let mut others = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.expect("a request");
                if line.starts_with("GET /api/v1/pods?") {
                    return line;
                }
                others.push(stream);
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(20), asked).await;
        asked.expect("a request for pods")
    }

    #[tokio::test]
    async fn the_setting_says_whose_pods_are_asked_for() {
        let own = asked_for_pods(WatchPods::Node).await;
        assert!(own.contains("fieldSelector=spec.nodeName%3Dnode-1"), "{own}");
        let all = asked_for_pods(WatchPods::Cluster).await;
        assert!(!all.contains("fieldSelector"), "{all}");
    }
}
