//! The server of a Kubernetes cluster, or its agents, reached as `kubectl port-forward` does it: through the API server, with the
//! rights of the user's kubeconfig. Nothing has to listen outside of the cluster.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{anyhow, bail};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api, Config,
    api::ListParams,
    client::{ConfigExt as _, UpgradeConnectionError},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use orb8_fleet::{Clock, Member, Reach, Trouble};
use orb8_proto::v1::{NodeInfo, NodeState};
use orb8_tls::{AGENT, Connector, Material, SERVER, TlsStream};
use tokio::io::DuplexStream;
use tokio_util::either::Either;
use tonic::transport::Endpoint;
use tower::ServiceExt as _;

use crate::{
    args::{ClusterArgs, TargetArgs},
    exit::Usage,
    fleet::{Bearer, Fleet, innermost},
    terminal,
};

/// Label of the agents' pods, as `deploy/` sets it.
const SELECTOR: &str = "app.kubernetes.io/name=orb8-agent";
/// The same of the servers' pods.
const SERVER_SELECTOR: &str = "app.kubernetes.io/name=orb8-server";
/// Port of a server in its pod.
const SERVER_PORT: u16 = 8080;
/// Where certificates are, as `deploy/` makes them.
const OPERATOR_SECRET: &str = "orb8-operator-tls";
const CA_CONFIG_MAP: &str = "orb8-ca";
/// Where the agents are looked for first.
const NAMESPACE: &str = "orb8";
/// Port of an agent in its pod.
const PORT: u16 = 9090;
/// How long connecting to the API server takes at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the API server may take to list the agents.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one server may take to take a connection, before the next one is tried: the API server may know for minutes
/// nothing of a node that is gone.
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what the API server says of a connection that failed is waited for.
const WHY_TIMEOUT: Duration = Duration::from_millis(200);

/// Why the cluster's agents can't be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// There is no kubeconfig, or none that names a context: not a cluster's user.
    #[error("there is no kubeconfig with a current context")]
    NoContext,
    /// The kubeconfig makes no sense.
    #[error("reading the kubeconfig: {0}")]
    Config(String),
    /// The API server does not answer.
    #[error("the API server of context '{context}' ({server}) can't be asked: {why}")]
    Unreachable {
        context: String,
        server: String,
        why: String,
    },
    /// The user may not.
    #[error(
        "the API server of context '{context}' does not let you {what}: reaching the agents needs the rights to \
         list pods and to create pods/portforward in their namespace (`kubectl auth can-i create \
         pods/portforward -n {namespace}`); if they are in another one, name it with --agent-namespace"
    )]
    Forbidden {
        context: String,
        what: String,
        namespace: String,
    },
    /// No agent runs there.
    #[error(
        "no agent runs in the cluster of context '{context}' (looked for pods labelled {SELECTOR} in {looked}): \
         install it (`kubectl apply -k deploy/`), or say where it is with --agent-namespace"
    )]
    NoAgents { context: String, looked: String },
    /// `--node` names a node without an agent.
    #[error("no agent runs on node {missing}: agents are on {nodes}")]
    NoSuchNode { missing: String, nodes: String },
}

impl ClusterError {
    /// Whether the cluster is no help, and something else may be tried.
    pub(crate) const fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::NoContext | Self::Unreachable { .. } | Self::NoAgents { .. } | Self::Config(_)
        )
    }
}

/// Finds the server, else the agents, and prepares connections. They are made when they are needed.
///
/// # Errors
/// [`ClusterError`], or bad usage.
pub(crate) async fn find(target: &TargetArgs) -> anyhow::Result<Fleet> {
    let args = &target.cluster;
    let (config, context) = config(args).await?;
    let server = config.cluster_url.to_string();
    let namespace = config.default_namespace.clone();
    let unreachable = |why: String| ClusterError::Unreachable {
        context: context.clone(),
        server: server.clone(),
        why,
    };
    let bearer = bearer_of(&config).await;
    let client = kube::Client::try_from(config).map_err(|error| unreachable(innermost(&error)))?;
    let failed = |error: &kube::Error, looked: Option<String>| match status_of(error) {
        Some(401) => unreachable("it does not know you (401): log in anew".to_owned()),
        Some(403) => ClusterError::Forbidden {
            context: context.clone(),
            what: "list pods".to_owned(),
            namespace: looked.unwrap_or_else(|| NAMESPACE.to_owned()),
        },
        _ => unreachable(why(error)),
    };
    let late = || unreachable(format!("no answer within {} s", LIST_TIMEOUT.as_secs()));
    let mut in_place_of_server = None;
    if !args.direct {
        // Nowhere but there: whoever may run a pod somewhere could label it a server, and would be shown the user's token.
        let place = args.agent_namespace.as_deref().unwrap_or(NAMESPACE);
        let looked = tokio::time::timeout(LIST_TIMEOUT, labelled(&client, place, SERVER_SELECTOR));
        match looked.await.map_err(|_| late())? {
            Ok(pods) if pods.iter().any(is_running) => {
                let (tls, token, hint) = server_credentials(&client, target, place, bearer).await?;
                return Ok(server_fleet(&client, place, &context, tls, &token)
                    .in_namespace(namespace)
                    .of_nodes(args.node.clone())
                    .hinting(Some(hint)));
            }
            Ok(pods) if pods.is_empty() => {}
            Ok(_) => in_place_of_server = Some(format!("no pod of the server in namespace {place} runs")),
            // Who may not look there may be let to look for agents elsewhere.
            Err(error) if status_of(&error) == Some(403) => {}
            Err(error) => return Err(failed(&error, None).into()),
        }
    }
    let listing = list(&client, args.agent_namespace.as_deref());
    let (pods, looked) = tokio::time::timeout(LIST_TIMEOUT, listing)
        .await
        .map_err(|_| late())?
        .map_err(|(error, looked)| failed(&error, looked))?;
    let agent_namespace = pods.first().and_then(|pod| pod.metadata.namespace.clone());
    let mut agents = by_node(pods);
    if agents.is_empty() {
        return Err(ClusterError::NoAgents { context, looked }.into());
    }
    if !args.node.is_empty() {
        if let Some(missing) = args.node.iter().find(|node| !agents.contains_key(*node)) {
            let nodes: Vec<&str> = agents.keys().map(String::as_str).take(10).collect();
            let error = ClusterError::NoSuchNode {
                missing: missing.clone(),
                nodes: nodes.join(", "),
            };
            return Err(Usage(error.to_string()).into());
        }
        agents.retain(|node, _| args.node.contains(node));
    }
    let mut hint = None;
    let tls = match (target.server.connector(AGENT)?, &agent_namespace) {
        (Some(tls), _) => Some(tls),
        (None, Some(namespace)) => match operator(&client, namespace).await? {
            Operator::Is(material) => Some(Connector::new(*material, AGENT)?),
            Operator::Hidden => {
                hint = Some(format!(
                    "they were asked in plain text, since you may not get the Secret {namespace}/{OPERATOR_SECRET}: if the \
                     agents want certificates, have yourself be given the right to get it, or give --tls-ca, --tls-cert and \
                     --tls-key"
                ));
                None
            }
            Operator::Missing => None,
        },
        (None, None) => None,
    };
    if let Some(why) = in_place_of_server {
        terminal::say(&format!("orb8: {why}: asking the agents from here"));
    }
    let members: Vec<Member> = agents
        .into_iter()
        .map(|(node, agent)| member(&client, &node, agent, &context, tls.clone()))
        .collect();
    let away: Vec<String> = members
        .iter()
        .filter_map(|member| match &member.reach {
            Reach::Away { reason, .. } => Some(format!("node {}: {reason}", member.name)),
            Reach::Channel(_) => None,
        })
        .collect();
    if away.len() == members.len() {
        return Err(unreachable(format!(
            "no agent runs ({})",
            away[..away.len().min(3)].join("; ")
        ))
        .into());
    }
    Ok(Fleet::many(members, format!("context {context}"))
        .in_namespace(namespace)
        .of_nodes(args.node.clone())
        .hinting(hint))
}

/// The configuration and the name of its context.
async fn config(args: &ClusterArgs) -> Result<(Config, String), ClusterError> {
    let told = |error: &KubeconfigError| ClusterError::Config(chain(error));
    let kubeconfig = match args.kubeconfig.as_deref() {
        Some(path) => Kubeconfig::read_from(path).map_err(|error| told(&error))?,
        None => default_kubeconfig()
            .map_err(|error| told(&error))?
            .ok_or(ClusterError::NoContext)?,
    };
    let context = args
        .context
        .clone()
        .or_else(|| kubeconfig.current_context.clone())
        .filter(|context| !context.is_empty())
        .ok_or(ClusterError::NoContext)?;
    let options = KubeConfigOptions {
        context: Some(context.clone()),
        ..KubeConfigOptions::default()
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| told(&error))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // A stream of events may be silent for long.
    config.read_timeout = None;
    Ok((config, context))
}

/// `$KUBECONFIG`, else `~/.kube/config` if it is there.
fn default_kubeconfig() -> Result<Option<Kubeconfig>, KubeconfigError> {
    let named = std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
    let home = std::env::home_dir();
    if !named && !home.is_some_and(|home| Path::new(&home).join(".kube/config").exists()) {
        return Ok(None);
    }
    Kubeconfig::read().map(Some)
}

/// Pods of a namespace that are labelled so.
async fn labelled(client: &kube::Client, namespace: &str, selector: &str) -> Result<Vec<Pod>, kube::Error> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    Ok(pods.list(&ListParams::default().labels(selector)).await?.items)
}

fn is_running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// The agents' pods, and where they were looked for; or the error, and in which namespace.
async fn list(
    client: &kube::Client,
    namespace: Option<&str>,
) -> Result<(Vec<Pod>, String), (kube::Error, Option<String>)> {
    if let Some(namespace) = namespace {
        return match labelled(client, namespace, SELECTOR).await {
            Ok(pods) => Ok((pods, format!("namespace {namespace}"))),
            Err(error) => Err((error, Some(namespace.to_owned()))),
        };
    }
    match labelled(client, NAMESPACE, SELECTOR).await {
        Ok(pods) if !pods.is_empty() => return Ok((pods, String::new())),
        Ok(_) => {}
        // Who may not look there may be let to look elsewhere.
        Err(error) if status_of(&error) == Some(403) => {}
        Err(error) => return Err((error, None)),
    }
    let params = ListParams::default().labels(SELECTOR);
    match Api::<Pod>::all(client.clone()).list(&params).await {
        Ok(pods) => Ok((pods.items, "all namespaces".to_owned())),
        Err(error) => Err((error, None)),
    }
}

/// One agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AgentPod {
    namespace: String,
    name: String,
    phase: String,
    ready: bool,
    leaving: bool,
}

impl AgentPod {
    fn of(pod: Pod) -> Self {
        let status = pod.status.unwrap_or_default();
        Self {
            namespace: pod.metadata.namespace.unwrap_or_default(),
            name: pod.metadata.name.unwrap_or_default(),
            ready: status
                .conditions
                .unwrap_or_default()
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            phase: status.phase.unwrap_or_default(),
            leaving: pod.metadata.deletion_timestamp.is_some(),
        }
    }

    /// The higher, the more likely it answers.
    fn rank(&self) -> (bool, bool, bool) {
        (self.phase == "Running", !self.leaving, self.ready)
    }

    /// Why it can't be asked.
    fn trouble(&self) -> Option<String> {
        (self.phase != "Running").then(|| {
            format!(
                "its agent, pod {}/{}, is {}",
                self.namespace, self.name, self.phase
            )
        })
    }
}

/// The best agent of each node, by node's name. A pod that is on no node yet is no node's agent.
fn by_node(pods: Vec<Pod>) -> BTreeMap<String, AgentPod> {
    let mut agents: BTreeMap<String, AgentPod> = BTreeMap::new();
    for pod in pods {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let Some(node) = node.filter(|node| !node.is_empty()) else {
            continue;
        };
        let agent = AgentPod::of(pod);
        match agents.get(&node) {
            Some(other) if other.rank() >= agent.rank() => {}
            _ => drop(agents.insert(node, agent)),
        }
    }
    agents
}

fn member(
    client: &kube::Client,
    node: &str,
    agent: AgentPod,
    context: &str,
    tls: Option<Connector>,
) -> Member {
    let trouble = Trouble::default();
    let info = NodeInfo {
        name: node.to_owned(),
        agent: format!("{}/{}", agent.namespace, agent.name),
        ..NodeInfo::default()
    };
    if let Some(reason) = agent.trouble() {
        return Member {
            name: node.to_owned(),
            reach: Reach::Away {
                state: NodeState::Unreachable,
                reason,
            },
            clock: Clock::default(),
            info,
            trouble,
        };
    }
    let way = Way {
        pods: Api::namespaced(client.clone(), &agent.namespace),
        node: node.to_owned(),
        agent: agent.name,
        namespace: agent.namespace,
        context: context.to_owned(),
        trouble: trouble.clone(),
        tls,
    };
    let channel = Endpoint::from_static("http://agent.orb8")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let way = way.clone();
            async move {
                let stream = way.connect().await.map_err(io::Error::other)?;
                let secured = secure(stream, way.tls.as_ref()).await;
                if let Err(error) = &secured {
                    way.trouble.set(Some(error.to_string()));
                }
                secured.map(TokioIo::new)
            }
        }));
    Member {
        name: node.to_owned(),
        reach: Reach::Channel(channel),
        clock: Clock::default(),
        info,
        trouble,
    }
}

/// How to get to one node's agent.
#[derive(Clone)]
struct Way {
    pods: Api<Pod>,
    node: String,
    agent: String,
    namespace: String,
    context: String,
    trouble: Trouble,
    tls: Option<Connector>,
}

/// A forwarded connection, secured if there are certificates.
type Forwarded = Either<DuplexStream, Box<TlsStream<DuplexStream>>>;

async fn secure(stream: DuplexStream, tls: Option<&Connector>) -> io::Result<Forwarded> {
    Ok(match tls {
        Some(tls) => Either::Right(Box::new(tls.connect(stream).await?)),
        None => Either::Left(stream),
    })
}

impl Way {
    /// A stream to the agent's port. If its pod is gone, to the one that took its place.
    async fn connect(&self) -> Result<DuplexStream, String> {
        self.trouble.set(None);
        match self.forward(&self.agent).await {
            Err(error) if status_of(&error) == Some(404) => {}
            result => return result.map_err(|error| self.explain(&error)),
        }
        let params = ListParams::default()
            .labels(SELECTOR)
            .fields(&format!("spec.nodeName={}", self.node));
        let pods = self
            .pods
            .list(&params)
            .await
            .map_err(|error| self.explain(&error))?;
        let agent = by_node(pods.items)
            .remove(&self.node)
            .ok_or_else(|| format!("its agent, pod {}/{}, is gone", self.namespace, self.agent))?;
        if let Some(trouble) = agent.trouble() {
            return Err(trouble);
        }
        self.forward(&agent.name)
            .await
            .map_err(|error| self.explain(&error))
    }

    async fn forward(&self, pod: &str) -> Result<DuplexStream, kube::Error> {
        let mut forwarder = self.pods.portforward(pod, &[PORT]).await?;
        if let Some(error) = forwarder.take_error(PORT) {
            let (trouble, pod) = (self.trouble.clone(), format!("{}/{pod}", self.namespace));
            tokio::spawn(async move {
                if let Some(error) = error.await {
                    trouble.set(Some(format!(
                        "port {PORT} of pod {pod} can't be reached: {}",
                        error.trim()
                    )));
                }
            });
        }
        forwarder.take_stream(PORT).ok_or(kube::Error::UpgradeConnection(
            UpgradeConnectionError::MissingUpgradeWebSocketHeader,
        ))
    }

    fn explain(&self, error: &kube::Error) -> String {
        if status_of(error) == Some(403) {
            return ClusterError::Forbidden {
                context: self.context.clone(),
                what: "forward a port to the agent's pod".to_owned(),
                namespace: self.namespace.clone(),
            }
            .to_string();
        }
        why(error)
    }
}

/// Whether the user may have the operator's certificate.
enum Operator {
    /// Yes.
    Is(Box<Material>),
    /// No.
    Hidden,
    /// There is none: plain text, or certificates by other means.
    Missing,
}

/// The operator's certificate, as `orb8-server certgen` (or cert-manager) keeps it.
///
/// # Errors
/// If it is not known whether there is one, or it is incomplete: then plain text is no answer.
async fn operator(client: &kube::Client, namespace: &str) -> anyhow::Result<Operator> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let asked = tokio::time::timeout(LIST_TIMEOUT, secrets.get(OPERATOR_SECRET));
    let Ok(secret) = asked.await else {
        bail!(
            "the API server gave no answer within {} s about the Secret {namespace}/{OPERATOR_SECRET}",
            LIST_TIMEOUT.as_secs()
        );
    };
    match secret {
        Ok(secret) => material(secret, namespace).map(|material| Operator::Is(Box::new(material))),
        Err(error) => match status_of(&error) {
            Some(403) => Ok(Operator::Hidden),
            Some(404) => Ok(Operator::Missing),
            _ => Err(anyhow!(
                "reading the Secret {namespace}/{OPERATOR_SECRET}: {}",
                why(&error)
            )),
        },
    }
}

/// What the Secret holds.
fn material(secret: Secret, namespace: &str) -> anyhow::Result<Material> {
    let mut data = secret.data.unwrap_or_default();
    let mut take = |key: &str| {
        data.remove(key).map(|value| value.0).ok_or_else(|| {
            anyhow!(
                "the Secret {namespace}/{OPERATOR_SECRET}, which is an operator's certificate, has no {key}: give --tls-ca, \
                 --tls-cert and --tls-key, or have it made anew"
            )
        })
    };
    let (ca, cert, key) = (take("ca.crt")?, take("tls.crt")?, take("tls.key")?);
    Ok(Material::new(
        ca,
        Some((cert, key)),
        format!("Secret {namespace}/{OPERATOR_SECRET}"),
    ))
}

/// How to speak with the server, and as whom; and what may help where it ends connections without a word.
type Credentials = (Option<Connector>, Bearer, String);

/// How to speak with the server, and as whom: by what was typed, else as an operator, else by the kubeconfig's token.
async fn server_credentials(
    client: &kube::Client,
    target: &TargetArgs,
    namespace: &str,
    bearer: Option<String>,
) -> anyhow::Result<Credentials> {
    let typed = target.server.token()?;
    if let Some(tls) = target.server.connector(SERVER)? {
        let hint = target.server.hint(typed.is_some());
        return Ok((Some(tls), Bearer::new(typed.as_deref())?, hint));
    }
    if typed.is_none() {
        match operator(client, namespace).await? {
            Operator::Is(material) => {
                let hint = format!(
                    "it may refuse the certificate of the Secret {namespace}/{OPERATOR_SECRET}: has it expired?"
                );
                return Ok((Some(Connector::new(*material, SERVER)?), Bearer::default(), hint));
            }
            // Nobody made certificates: whether the server does without, it will say.
            Operator::Missing => {
                let hint = format!(
                    "it was asked in plain text, since there is no Secret {namespace}/{OPERATOR_SECRET}; if it wants \
                     certificates, give --tls-ca, --tls-cert and --tls-key"
                );
                return Ok((None, Bearer::default(), hint));
            }
            Operator::Hidden => {}
        }
    }
    let no_right = |what: &str| {
        anyhow!(
            "you may not get the Secret {namespace}/{OPERATOR_SECRET}, which is an operator's certificate, and {what}: have \
             yourself be given the right to get that Secret, or a token (--token-file) and the right to get the ConfigMap \
             {namespace}/{CA_CONFIG_MAP}"
        )
    };
    let Some(token) = typed.or(bearer) else {
        return Err(no_right("the kubeconfig has no token"));
    };
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let ca = match maps.get(CA_CONFIG_MAP).await {
        Ok(map) => map.data.and_then(|mut data| data.remove("ca.crt")),
        Err(error) => {
            return Err(no_right(&format!(
                "the ConfigMap {CA_CONFIG_MAP} can't be read ({})",
                why(&error)
            )));
        }
    };
    let ca = ca.ok_or_else(|| no_right(&format!("the ConfigMap {CA_CONFIG_MAP} has no ca.crt")))?;
    let material = Material::new(
        ca.into_bytes(),
        None,
        format!("ConfigMap {namespace}/{CA_CONFIG_MAP}"),
    );
    Ok((
        Some(Connector::new(material, SERVER)?),
        Bearer::new(Some(&token))?,
        "if it takes no tokens, give a certificate (--tls-ca, --tls-cert and --tls-key)".to_owned(),
    ))
}

/// The token that the kubeconfig's user shows the API server, if it is by a token.
async fn bearer_of(config: &Config) -> Option<String> {
    let layer = config.auth_layer().ok()??;
    // The layer itself knows files, plugins and their renewal: it is asked what it would add to a request.
    let echo = tower::service_fn(|request: Request<kube::client::Body>| async move {
        Ok::<_, tower::BoxError>(Response::new(request.headers().get("authorization").cloned()))
    });
    let service = tower::ServiceBuilder::new().layer(layer).service(echo);
    let asked = service.oneshot(Request::new(kube::client::Body::empty()));
    let header = tokio::time::timeout(LIST_TIMEOUT, asked)
        .await
        .ok()?
        .ok()?
        .into_body()?;
    Some(header.to_str().ok()?.strip_prefix("Bearer ")?.to_owned())
}

/// A server of the cluster: whichever of its pods answers when a connection is made.
fn server_fleet(
    client: &kube::Client,
    namespace: &str,
    context: &str,
    tls: Option<Connector>,
    bearer: &Bearer,
) -> Fleet {
    let servers = Servers {
        pods: Api::namespaced(client.clone(), namespace),
        tls,
        last: Arc::default(),
    };
    let channel = Endpoint::from_static("http://server.orb8")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let servers = servers.clone();
            async move { servers.connect().await.map(TokioIo::new) }
        }));
    Fleet::server(
        channel,
        bearer.clone(),
        format!("context {context}"),
        format!("the server of context {context}"),
    )
}

/// The servers of a cluster, of which each can answer.
#[derive(Clone)]
struct Servers {
    pods: Api<Pod>,
    tls: Option<Connector>,
    /// The pod that was connected to last. A new connection is made where that one was lost.
    last: Arc<Mutex<Option<String>>>,
}

impl Servers {
    /// A connection to the first that takes one.
    async fn connect(&self) -> io::Result<Forwarded> {
        let params = ListParams::default().labels(SERVER_SELECTOR);
        let listed = tokio::time::timeout(LIST_TIMEOUT, self.pods.list(&params))
            .await
            .map_err(|_| io::Error::other("the API server gave no answer about the server's pods"))?
            .map_err(|error| io::Error::other(why(&error)))?;
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut told = Vec::new();
        for server in in_turn(listed.items, last.as_deref()) {
            let name = format!("pod {}/{}", server.namespace, server.name);
            match tokio::time::timeout(SERVER_TIMEOUT, self.connect_to(&server)).await {
                Ok(Ok(stream)) => {
                    *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(server.name);
                    return Ok(stream);
                }
                Ok(Err(error)) => told.push(format!("{name}: {error}")),
                Err(_) => told.push(format!("{name}: no answer within {} s", SERVER_TIMEOUT.as_secs())),
            }
        }
        Err(io::Error::other(if told.is_empty() {
            "no pod of the server runs".to_owned()
        } else {
            told.join("; ")
        }))
    }

    async fn connect_to(&self, server: &AgentPod) -> io::Result<Forwarded> {
        let mut forwarder = self
            .pods
            .portforward(&server.name, &[SERVER_PORT])
            .await
            .map_err(|error| match status_of(&error) {
                Some(403) => io::Error::other(format!(
                    "you may not forward a port to it: that takes the right to create pods/portforward in namespace {}",
                    server.namespace
                )),
                _ => io::Error::other(why(&error)),
            })?;
        let refused = forwarder.take_error(SERVER_PORT);
        let stream = forwarder
            .take_stream(SERVER_PORT)
            .ok_or_else(|| io::Error::other("the API server gave no stream"))?;
        match (secure(stream, self.tls.as_ref()).await, refused) {
            // That the pod does not listen is told aside, and tells more than a handshake that broke off.
            (Err(error), Some(refused)) => match tokio::time::timeout(WHY_TIMEOUT, refused).await {
                Ok(Some(why)) => Err(io::Error::other(format!(
                    "port {SERVER_PORT} can't be reached: {}",
                    why.trim()
                ))),
                _ => Err(error),
            },
            (secured, _) => secured,
        }
    }
}

/// The servers that run, in the order in which to try them: those that are ready first, and of these the one that was
/// just lost last.
fn in_turn(pods: Vec<Pod>, lost: Option<&str>) -> Vec<AgentPod> {
    let mut servers: Vec<AgentPod> = pods
        .into_iter()
        .map(AgentPod::of)
        .filter(|server| server.phase == "Running")
        .collect();
    servers.sort_by_key(|server| std::cmp::Reverse((server.rank(), lost != Some(&*server.name))));
    servers
}

/// The HTTP status that the API server answered with, if it did.
fn status_of(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => {
            Some(status.as_u16())
        }
        _ => None,
    }
}

fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        error => innermost(error),
    }
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PodCondition, PodSpec, PodStatus},
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
        jiff,
    };

    use super::*;

    fn pod(name: &str, node: Option<&str>, phase: &str, ready: bool, leaving: bool) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("orb8".into()),
                deletion_timestamp: leaving.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: node.map(str::to_owned),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.into()),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
        }
    }

    #[test]
    fn the_pod_that_most_likely_answers_is_the_node_s_agent() {
        let agents = by_node(vec![
            pod("old", Some("n1"), "Running", true, true),
            pod("new", Some("n1"), "Running", true, false),
            pod("starting", Some("n1"), "Pending", false, false),
            pod("unready", Some("n2"), "Running", false, false),
            pod("waiting", Some("n3"), "Pending", false, false),
            pod("nowhere", None, "Pending", false, false),
            Pod::default(),
        ]);
        let names: Vec<_> = agents
            .iter()
            .map(|(node, agent)| (&**node, &*agent.name))
            .collect();
        assert_eq!(names, [("n1", "new"), ("n2", "unready"), ("n3", "waiting")]);
        assert_eq!(agents["n2"].trouble(), None);
        assert_eq!(
            agents["n3"].trouble().unwrap(),
            "its agent, pod orb8/waiting, is Pending"
        );
    }

    #[test]
    fn of_the_servers_that_are_ready_the_one_that_was_lost_comes_last() {
        let servers = || {
            vec![
                pod("starting", Some("n1"), "Running", false, false),
                pod("a", Some("n1"), "Running", true, false),
                pod("waiting", None, "Pending", false, false),
                pod("b", Some("n2"), "Running", true, false),
                pod("leaving", Some("n3"), "Running", true, true),
            ]
        };
        let order = |lost| {
            let names: Vec<String> = in_turn(servers(), lost)
                .into_iter()
                .map(|server| server.name)
                .collect();
            names.join(" ")
        };
        assert_eq!(order(None), "a b starting leaving");
        assert_eq!(order(Some("a")), "b a starting leaving");
        assert_eq!(order(Some("b")), "a b starting leaving");
    }

    #[test]
    fn a_certificate_that_is_incomplete_is_no_reason_for_plain_text() {
        let secret = |keys: &[&str]| Secret {
            data: Some(
                keys.iter()
                    .map(|key| ((*key).to_owned(), k8s_openapi::ByteString(b"x".to_vec())))
                    .collect(),
            ),
            ..Secret::default()
        };
        assert!(material(secret(&["ca.crt", "tls.crt", "tls.key"]), "orb8").is_ok());
        let error = material(secret(&["ca.crt", "tls.crt"]), "orb8")
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("orb8/orb8-operator-tls") && error.contains("no tls.key"),
            "{error}"
        );
    }

    #[test]
    fn errors_say_what_was_tried_and_what_to_do() {
        let forbidden = ClusterError::Forbidden {
            context: "c".into(),
            what: "list pods".into(),
            namespace: "orb8".into(),
        };
        assert!(!forbidden.is_absence());
        let text = forbidden.to_string();
        assert!(
            text.contains("kubectl auth can-i create pods/portforward -n orb8"),
            "{text}"
        );
        let none = ClusterError::NoAgents {
            context: "c".into(),
            looked: "all namespaces".into(),
        };
        assert!(none.is_absence() && none.to_string().contains("kubectl apply -k deploy/"));
    }
}
