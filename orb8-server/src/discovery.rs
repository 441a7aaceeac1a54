//! Where the agents are: a list, a Kubernetes Service's endpoints, or DNS.

mod slices;
mod srv;

use std::{collections::BTreeMap, sync::Arc};

use orb8_kubernetes::{Configured, client, configure};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    pods::PodMap,
    server::ServerError,
    settings::{ServiceName, Settings},
    watching::{WatchState, api, watch as watch_objects},
};

/// Service of the agents, as `deploy/` makes it.
const SERVICE: &str = "orb8-agents";

/// An agent that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it listens: HOST:PORT.
    pub(crate) address: String,
    /// Its pod: namespace/name.
    pub(crate) pod: String,
    /// What is to be said of it.
    pub(crate) note: String,
}

/// All that were found, by the name of the node; of the address where that is not known.
pub(crate) type Agents = BTreeMap<String, Found>;

/// What finds the agents.
#[derive(Clone)]
pub(crate) struct Discovery {
    /// A new value whenever any of them changes. None: not known yet.
    pub(crate) agents: watch::Receiver<Option<Arc<Agents>>>,
    /// Where each pod is, where Kubernetes tells.
    pub(crate) pods: Option<Arc<PodMap>>,
    /// The watches of the API server.
    pub(crate) watches: Vec<WatchState>,
    /// In words.
    pub(crate) source: String,
    /// The API server, if there is one.
    pub(crate) api_server: String,
    /// To ask it.
    pub(crate) client: Option<kube::Client>,
}

impl Discovery {
    /// Begins to look, as the settings say.
    ///
    /// # Errors
    /// If there is nothing to look in.
    pub(crate) async fn start(settings: &Settings, stop: &CancellationToken) -> Result<Self, ServerError> {
        let (sender, agents) = watch::channel(None);
        let mut discovery = Self {
            agents,
            pods: None,
            watches: Vec::new(),
            source: String::new(),
            api_server: String::new(),
            client: None,
        };
        if !settings.agents.is_empty() {
            let mut found = Agents::new();
            for address in &settings.agents {
                let agent = Found {
                    address: address.0.clone(),
                    pod: String::new(),
                    note: String::new(),
                };
                if found.insert(address.0.clone(), agent).is_some() {
                    return Err(ServerError::Setting(format!(
                        "--agents names {} twice: it would be counted twice",
                        address.0
                    )));
                }
            }
            discovery.source = format!("{} agents that were named", found.len());
            sender.send_replace(Some(Arc::new(found)));
            // The list never changes; a receiver without a sender would say that it has ended.
            let stop = stop.clone();
            tokio::spawn(async move {
                stop.cancelled().await;
                drop(sender);
            });
            return Ok(discovery);
        }
        if let Some(name) = &settings.agent_srv {
            discovery.source = format!("DNS SRV records of {name}");
            srv::follow(name.clone(), sender, stop.clone())?;
            return Ok(discovery);
        }
        let (config, source) = match configure(settings.kubeconfig.as_deref())
            .await
            .map_err(|error| ServerError::Kubernetes(error.to_string()))?
        {
            Configured::Found(config, source) => (config, source),
            Configured::None(why) => {
                return Err(ServerError::Setting(format!(
                    "there are no agents to ask: name them by --agents HOST:PORT, --agent-srv or --agent-service; {why}"
                )));
            }
        };
        let service = settings.agent_service.clone().unwrap_or_else(|| ServiceName {
            namespace: config.default_namespace.clone(),
            name: SERVICE.to_owned(),
        });
        discovery.api_server = config.cluster_url.to_string();
        discovery.source = format!(
            "endpoints of the Service {}/{}, by {source}",
            service.namespace, service.name
        );
        info!(source = discovery.source, "agents are looked for");
        let client = client(*config).map_err(|error| ServerError::Kubernetes(error.to_string()))?;
        let state = WatchState::new("endpointslices");
        discovery.watches.push(state.clone());
        let selector = format!("kubernetes.io/service-name={}", service.name);
        tokio::spawn(watch_objects(
            api(&client, Some(&service.namespace)),
            kube::runtime::watcher::Config::default().labels(&selector),
            Arc::new(slices::Slices::new(sender)),
            state,
            stop.clone(),
        ));
        let pods = Arc::new(PodMap::new());
        let state = pods.watch.clone();
        discovery.watches.push(state.clone());
        tokio::spawn(watch_objects(
            api(&client, None),
            kube::runtime::watcher::Config::default(),
            pods.clone(),
            state,
            stop.clone(),
        ));
        discovery.pods = Some(pods);
        discovery.client = Some(client);
        Ok(discovery)
    }

    /// Whether it is known which agents there are.
    pub(crate) fn is_known(&self) -> bool {
        self.agents.borrow().is_some()
    }
}
