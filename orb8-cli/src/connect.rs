//! Finding who answers: the server or the agents that were named, the agent of this machine, a cluster, or an agent in
//! this process.

use std::{env, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use orb8_agent::settings::SyscallMode;
use orb8_fleet::{Clock, Member, Reach, Trouble};
use orb8_proto::v1::{GetAgentStatusRequest, NodeInfo};
use orb8_tls::{AGENT, SERVER, dial};
use tonic::transport::{Channel, Endpoint};

use crate::{
    address::{Address, AgentAddress, ServerAddress},
    args::{ClusterArgs, ServerArgs, TargetArgs},
    cluster::{self, ClusterError},
    contexts::{Contexts, Saved},
    exit::Usage,
    fleet::{Bearer, Fleet, innermost},
    standalone::{Standalone, StandaloneOptions},
    terminal,
};

/// Where an agent is looked for when none is named.
const LOCAL: &str = "127.0.0.1:9090";
/// How long the look takes at most. On loopback an agent takes the connection at once.
const LOCAL_TIMEOUT: Duration = Duration::from_millis(300);
/// How long something that took the connection has to answer like an agent: a busy one may be in a drain.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long connecting to a named agent takes at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Who is to answer, before trying.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Server(ServerAddress),
    Agents(Vec<AgentAddress>),
    Cluster,
    Standalone,
    /// An agent on this machine if there is one, else the cluster's, else standalone.
    Any,
}

/// Variables of the environment that say who answers.
#[derive(Clone, Debug, Default)]
struct Variables {
    server: Option<String>,
    agent: Option<String>,
}

impl Variables {
    fn read() -> Self {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            server: variable("ORB8_SERVER"),
            agent: variable("ORB8_AGENT"),
        }
    }
}

/// What a verb needs of an agent that is started for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// No system calls.
    Network,
    /// System calls are counted.
    Counts,
    /// Their errors and times are measured too.
    Latency,
    /// GPUs, and who holds them: no probe.
    Gpus,
    /// It must be one that goes on after the command.
    Running,
}

/// What was typed, what the environment says, and what the current context does, in this order. What a context says that
/// was not typed is put into `args`.
fn target(args: &mut TargetArgs, variables: &Variables, contexts: &Contexts) -> Result<Target, Usage> {
    if args.standalone {
        return Ok(Target::Standalone);
    }
    if let Some(server) = args.server.server.clone() {
        no_cluster(args, &server)?;
        return Ok(Target::Server(server));
    }
    if !args.agent.is_empty() {
        if args.server.token_file.is_some() {
            return Err(Usage(
                "agents take no tokens: --token-file is for a --server, or for a cluster".to_owned(),
            ));
        }
        return agents(args, args.agent.clone());
    }
    if !args.interface.is_empty() && variables.agent.is_none() {
        return Ok(Target::Standalone);
    }
    if let Some(name) = args.cluster.context.clone()
        && let Some(saved) = contexts.contexts.get(&name)
    {
        args.cluster.context = None;
        return adopt(args, saved);
    }
    let ClusterArgs {
        kubeconfig,
        context,
        agent_namespace,
        direct,
        node,
    } = &args.cluster;
    if kubeconfig.is_some() || context.is_some() {
        return Ok(Target::Cluster);
    }
    if agent_namespace.is_some() || *direct {
        // Of the cluster that is meant where none is named.
        return match contexts.current()? {
            Some(saved) if saved.server.is_none() => adopt(args, saved),
            _ => Ok(Target::Cluster),
        };
    }
    if let Some(server) = &variables.server {
        return server.parse().map(Target::Server).map_err(|expected| {
            Usage(format!(
                "invalid value '{server}' in the environment variable ORB8_SERVER: {expected}"
            ))
        });
    }
    if let Some(value) = &variables.agent
        && node.is_empty()
    {
        let addresses = value
            .split(',')
            .map(|address| {
                address.trim().parse().map_err(|expected| {
                    Usage(format!(
                        "invalid value '{address}' in the environment variable ORB8_AGENT: {expected}"
                    ))
                })
            })
            .collect::<Result<_, _>>()?;
        return agents(args, addresses);
    }
    match contexts.current()? {
        Some(saved) => adopt(args, saved),
        None if !node.is_empty() => Ok(Target::Cluster),
        None => Ok(Target::Any),
    }
}

/// A server that is named by its address is in no cluster that could be named too.
fn no_cluster(args: &TargetArgs, server: &ServerAddress) -> Result<(), Usage> {
    let ClusterArgs {
        kubeconfig,
        context,
        agent_namespace,
        ..
    } = &args.cluster;
    let named = [
        ("--kubeconfig", kubeconfig.is_some()),
        ("--context", context.is_some()),
        ("--agent-namespace", agent_namespace.is_some()),
    ];
    match named.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Usage(format!(
            "the server at {server} is named already: leave {option} out, or --server"
        ))),
        None => Ok(()),
    }
}

fn agents(args: &TargetArgs, addresses: Vec<AgentAddress>) -> Result<Target, Usage> {
    match addresses.first() {
        Some(agent) if !args.interface.is_empty() => Err(Usage(format!(
            "--interface is for --standalone; which interfaces the agent at {agent} observes is its own setting"
        ))),
        _ => Ok(Target::Agents(addresses)),
    }
}

/// Fills in what a context says.
fn adopt(args: &mut TargetArgs, saved: &Saved) -> Result<Target, Usage> {
    let ServerArgs {
        tls_ca,
        tls_cert,
        tls_key,
        token_file,
        insecure,
        ..
    } = &mut args.server;
    for (to, from) in [
        (tls_ca, &saved.tls_ca),
        (tls_cert, &saved.tls_cert),
        (tls_key, &saved.tls_key),
        (token_file, &saved.token_file),
        (&mut args.cluster.kubeconfig, &saved.kubeconfig),
    ] {
        if to.is_none() {
            to.clone_from(from);
        }
    }
    *insecure |= saved.insecure;
    if args.cluster.context.is_none() {
        args.cluster.context.clone_from(&saved.kube_context);
    }
    if args.cluster.agent_namespace.is_none() {
        args.cluster.agent_namespace.clone_from(&saved.agent_namespace);
    }
    match &saved.server {
        Some(server) => server
            .parse()
            .map_err(|expected| Usage(format!("the context's server '{server}': {expected}")))
            .and_then(|address: ServerAddress| {
                if args.cluster.direct {
                    return Err(Usage(format!(
                        "--direct is for a cluster: the context's server at {address} is named by its address"
                    )));
                }
                no_cluster(args, &address)?;
                Ok(Target::Server(address))
            }),
        None => Ok(Target::Cluster),
    }
}

/// Finds who answers, as `args`, the environment and the saved contexts say.
///
/// # Errors
/// If nobody does: what was tried, and what to do.
pub(crate) async fn open(args: &TargetArgs, need: Need) -> anyhow::Result<Fleet> {
    let mut args = args.clone();
    let target = target(&mut args, &Variables::read(), &Contexts::read()?)?;
    args.server.fill_from_environment();
    match target {
        Target::Server(address) => with_server(&args, &address),
        Target::Agents(addresses) => match addresses.as_slice() {
            [address] => with_agent(&args.server, address).await,
            addresses => with_agents(&args.server, addresses),
        },
        Target::Cluster => cluster::find(&args).await,
        Target::Standalone => standalone(&args, need).await,
        Target::Any => any(&args, need).await,
    }
}

/// A server that was named. Connected to when it is asked.
fn with_server(args: &TargetArgs, address: &ServerAddress) -> anyhow::Result<Fleet> {
    let tls = args.server.connector(SERVER)?;
    let token = args.server.token()?;
    must_be_private(address, tls.is_some(), args.server.insecure)?;
    if tls.is_none() && token.is_some() && !address.is_loopback() {
        return Err(Usage("a token in plain text is everybody's: give --tls-ca".to_owned()).into());
    }
    let channel = endpoint(&address.0)?
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector_lazy(tower::service_fn(move |uri| dial(uri, tls.clone())));
    let fleet = Fleet::server(
        channel,
        Bearer::new(token.as_deref())?,
        address.0.clone(),
        format!("the server at {address}"),
    );
    Ok(fleet
        .of_nodes(args.cluster.node.clone())
        .hinting(Some(args.server.hint(token.is_some()))))
}

/// Plain text is for this machine alone.
fn must_be_private<const PORT: u16>(address: &Address<PORT>, tls: bool, insecure: bool) -> Result<(), Usage> {
    if tls || insecure || address.is_loopback() {
        return Ok(());
    }
    Err(Usage(format!(
        "{address} is another machine, and there are no certificates: give --tls-ca, --tls-cert and --tls-key, or \
         --insecure if whoever is on the way may read along"
    )))
}

/// An agent of this machine, else the cluster's, else one in this process.
async fn any(args: &TargetArgs, need: Need) -> anyhow::Result<Fleet> {
    if let Some(fleet) = local(&args.server).await? {
        terminal::say(&format!("orb8: using the agent at {LOCAL} (--standalone: not)"));
        return Ok(fleet);
    }
    let mut tried = format!("no agent answers at {LOCAL}");
    match cluster::find(args).await {
        Ok(fleet) => return Ok(fleet),
        Err(error) => match error.downcast::<ClusterError>() {
            Ok(ClusterError::NoContext) => {}
            Ok(error) if error.is_absence() && need == Need::Running => tried = format!("{tried}; {error}"),
            Ok(error) if error.is_absence() => {
                terminal::say(&format!("orb8: {error}; looking at this machine instead"));
                tried = format!("{tried}; {error}");
            }
            Ok(error) => return Err(error.into()),
            Err(error) => return Err(error),
        },
    }
    if need == Need::Running {
        bail!("{tried}: start an agent (`sudo orb8-agent`), or name one with --agent HOST:PORT");
    }
    standalone(args, need).await.context(tried)
}

async fn with_agent(args: &ServerArgs, address: &AgentAddress) -> anyhow::Result<Fleet> {
    let tls = args.connector(AGENT)?;
    must_be_private(address, tls.is_some(), args.insecure)?;
    let dialing = tower::service_fn(move |uri| dial(uri, tls.clone()));
    let channel = endpoint(&address.0)?.connect_timeout(CONNECT_TIMEOUT).connect_with_connector(dialing).await.map_err(|error| {
        anyhow!(
            "no agent answers at {address}: {}. Start one there (`sudo orb8-agent`; it listens on loopback \
             unless told otherwise), check the address, or load the probes here: `sudo orb8 --standalone …`",
            innermost(&error)
        )
    })?;
    Ok(named(channel, &address.0).hinting(Some(args.hint(false))))
}

/// Several, which are connected to when they are asked: one that is away does not silence the others.
fn with_agents(args: &ServerArgs, addresses: &[AgentAddress]) -> anyhow::Result<Fleet> {
    let tls = args.connector(AGENT)?;
    let mut members: Vec<Member> = Vec::new();
    for address in addresses {
        if members.iter().any(|member| member.name == address.0) {
            return Err(Usage(format!(
                "the agent at {address} is named twice: it would be counted twice"
            ))
            .into());
        }
        must_be_private(address, tls.is_some(), args.insecure)?;
        let (tls, trouble) = (tls.clone(), Trouble::default());
        let told = trouble.clone();
        let channel = endpoint(&address.0)?
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_with_connector_lazy(tower::service_fn(move |uri| {
                let (tls, told) = (tls.clone(), told.clone());
                async move {
                    let dialed = dial(uri, tls).await;
                    told.set(dialed.as_ref().err().map(ToString::to_string));
                    dialed
                }
            }));
        members.push(Member {
            name: address.0.clone(),
            reach: Reach::Channel(channel),
            clock: Clock::default(),
            info: NodeInfo {
                name: address.0.clone(),
                address: address.0.clone(),
                ..NodeInfo::default()
            },
            trouble,
        });
    }
    let name = format!("{} agents", members.len());
    Ok(Fleet::many(members, name))
}

fn named(channel: Channel, address: &str) -> Fleet {
    Fleet::one(channel, address.to_owned(), format!("the agent at {address}"))
}

/// The agent of this machine, if there is one. With certificates, where some are given.
async fn local(args: &ServerArgs) -> anyhow::Result<Option<Fleet>> {
    let tls = args.connector(AGENT)?;
    let attempt = async {
        let endpoint = endpoint(LOCAL).ok()?.connect_timeout(LOCAL_TIMEOUT);
        let dialing = tower::service_fn(move |uri| dial(uri, tls.clone()));
        let channel = endpoint.connect_with_connector(dialing).await.ok()?;
        let fleet = named(channel, LOCAL);
        fleet
            .client
            .clone()
            .get_agent_status(GetAgentStatusRequest {})
            .await
            .ok()?;
        Some(fleet)
    };
    Ok(tokio::time::timeout(ANSWER_TIMEOUT, attempt).await.ok().flatten())
}

async fn standalone(args: &TargetArgs, need: Need) -> anyhow::Result<Fleet> {
    let syscalls = match need {
        Need::Network => SyscallMode::Off,
        Need::Counts => SyscallMode::Counts,
        Need::Latency => SyscallMode::Latency,
        Need::Gpus => return Ok(Fleet::standalone(Standalone::gpus()?)),
        Need::Running => {
            return Err(Usage(
                "this is about an agent that goes on after the command: leave --standalone and --interface out"
                    .to_owned(),
            )
            .into());
        }
    };
    let options = StandaloneOptions {
        interfaces: args.interface.clone(),
        syscalls,
    };
    Ok(Fleet::standalone(Standalone::start(&options).await?))
}

fn endpoint(address: &str) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Usage(format!("invalid agent address '{address}': {error}")))?
        // A stream of events may be silent for long; that the agent is gone must show all the same.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .user_agent(concat!("orb8/", env!("CARGO_PKG_VERSION")))?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flags_beat_the_environment_and_that_beats_contexts() {
        let none = Contexts::default();
        let target = |line: &str, agent: Option<&str>, server: Option<&str>, contexts: &Contexts| {
            use clap::Parser as _;
            let mut args = crate::args::Cli::try_parse_from(format!("orb8 {line}status").split(' '))
                .unwrap()
                .target;
            let variables = Variables {
                server: server.map(str::to_owned),
                agent: agent.map(str::to_owned),
            };
            super::target(&mut args, &variables, contexts).map(|target| (target, args))
        };
        let found = |line: &str, agent: Option<&str>| target(line, agent, None, &none).unwrap().0;
        let agent = |text: &str| Target::Agents(text.split(',').map(|text| text.parse().unwrap()).collect());
        assert_eq!(found("", None), Target::Any);
        assert_eq!(found("", Some("e:1")), agent("e:1"));
        assert_eq!(found("--agent a:1 ", Some("e:1")), agent("a:1"));
        assert_eq!(found("--agent a:1,b ", None), agent("a:1,b"));
        assert_eq!(found("", Some("a:1, b:2")), agent("a:1,b:2"));
        for cluster in [
            "--context c ",
            "--kubeconfig f ",
            "--node n ",
            "--agent-namespace n ",
            "--direct ",
        ] {
            assert_eq!(found(cluster, Some("e:1")), Target::Cluster, "{cluster}");
        }
        assert_eq!(found("--standalone ", Some("e:1")), Target::Standalone);
        assert_eq!(found("--interface eth0 ", None), Target::Standalone);
        assert!(target("--agent a:1 --interface eth0 ", None, None, &none).is_err());
        let error = target("", Some("a b"), None, &none).unwrap_err().to_string();
        assert!(error.contains("ORB8_AGENT"), "{error}");

        let server = |text: &str| Target::Server(text.parse().unwrap());
        assert_eq!(found("--server s ", Some("e:1")), server("s:8080"));
        let by_variable = |line: &str| target(line, Some("e:1"), Some("v:1"), &none).unwrap().0;
        assert_eq!(by_variable(""), server("v:1"));
        assert_eq!(by_variable("--node n "), server("v:1"));
        assert_eq!(by_variable("--direct "), Target::Cluster);

        let saved = |server: Option<&str>| Saved {
            server: server.map(str::to_owned),
            kube_context: server.is_none().then(|| "k".to_owned()),
            tls_ca: Some("/ca".into()),
            ..Saved::default()
        };
        let contexts = Contexts {
            current: Some("prod".to_owned()),
            contexts: [
                ("prod".to_owned(), saved(Some("p:1"))),
                ("lab".to_owned(), saved(None)),
            ]
            .into(),
        };
        let (found, args) = target("", None, None, &contexts).unwrap();
        assert_eq!(
            (found, args.server.tls_ca.unwrap()),
            (server("p:1"), "/ca".into())
        );
        let (found, args) = target("--context lab ", Some("e:1"), None, &contexts).unwrap();
        assert_eq!(
            (found, args.cluster.context.as_deref()),
            (Target::Cluster, Some("k"))
        );
        let (found, args) = target("--context other ", None, None, &contexts).unwrap();
        assert_eq!(
            (found, args.cluster.context.as_deref()),
            (Target::Cluster, Some("other"))
        );
        assert_eq!(target("", Some("e:1"), None, &contexts).unwrap().0, agent("e:1"));
        // The cluster of the current context is meant where only a part of one is named.
        let in_lab = Contexts {
            current: Some("lab".to_owned()),
            ..contexts.clone()
        };
        for line in ["--direct ", "--agent-namespace n ", "--node n "] {
            let (found, args) = target(line, None, None, &in_lab).unwrap();
            assert_eq!(
                (found, args.cluster.context.as_deref()),
                (Target::Cluster, Some("k")),
                "{line}"
            );
        }
        // What would be ignored is refused.
        for line in [
            "--server s --kubeconfig f ",
            "--server s --context prod ",
            "--server s --agent-namespace n ",
            "--context prod --direct ",
            "--agent a:1 --token-file f ",
        ] {
            assert!(target(line, None, None, &contexts).is_err(), "{line}");
        }
        let gone = Contexts {
            current: Some("gone".to_owned()),
            ..contexts
        };
        let error = target("", None, None, &gone).unwrap_err().to_string();
        assert!(error.contains("gone"), "{error}");
        assert!(target("--server s ", None, None, &gone).is_ok());
    }

    #[test]
    fn plain_text_leaves_this_machine_only_where_it_may() {
        let address: ServerAddress = "10.0.0.1".parse().unwrap();
        assert!(must_be_private(&address, false, false).is_err());
        assert!(
            must_be_private(&address, false, true).is_ok() && must_be_private(&address, true, false).is_ok()
        );
        let own: AgentAddress = "[::1]".parse().unwrap();
        assert!(must_be_private(&own, false, false).is_ok());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            if let Ok(address) = text.parse::<AgentAddress>() {
                prop_assert!(endpoint(&address.0).is_ok());
            }
        }
    }
}
