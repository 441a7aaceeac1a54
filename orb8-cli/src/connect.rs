//! Finding who answers: the agents that were named, the agent of this machine, the agents of a cluster, or an agent
//! in this process.

use std::{env, fmt, str::FromStr, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use orb8_agent::settings::SyscallMode;
use orb8_proto::v1::GetAgentStatusRequest;
use tonic::transport::{Channel, Endpoint};

use crate::{
    args::TargetArgs,
    cluster::{self, ClusterError},
    exit::Usage,
    fleet::{Fleet, Member, Trouble, innermost},
    standalone::{Standalone, StandaloneOptions},
    terminal,
};

/// Port of an agent, where none is given.
const PORT: u16 = 9090;
/// Where an agent is looked for when none is named.
const LOCAL: &str = "127.0.0.1:9090";
/// How long the look takes at most. On loopback an agent takes the connection at once.
const LOCAL_TIMEOUT: Duration = Duration::from_millis(300);
/// How long something that took the connection has to answer like an agent: a busy one may be in a drain.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long connecting to a named agent takes at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// `HOST:PORT` of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentAddress(String);

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AgentAddress {
    type Err = String;

    /// `HOST`, `HOST:PORT`, `[IPV6]:PORT` or a bare IPv6 address; `http://` in front is allowed.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "HOST:PORT (node1:9090, 10.0.0.5:9090, [fd00::1]:9090) is needed".to_owned();
        let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        if let Ok(ip) = bare.parse::<std::net::Ipv6Addr>() {
            return Ok(Self(format!("[{ip}]:{PORT}")));
        }
        let (host, port) = match bare.rsplit_once(':') {
            Some((host, port)) if !bare.ends_with(']') => {
                let port = port
                    .parse::<u16>()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(expected)?;
                (host, port)
            }
            _ => (bare, PORT),
        };
        let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
            }
        };
        if valid {
            Ok(Self(format!("{host}:{port}")))
        } else {
            Err(expected())
        }
    }
}

/// Who is to answer, before trying.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Agents(Vec<AgentAddress>),
    Cluster,
    Standalone,
    /// An agent on this machine if there is one, else the cluster's, else standalone.
    Any,
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
    /// It must be one that goes on after the command.
    Running,
}

/// What was typed and what the environment says, in this order.
fn target(args: &TargetArgs, environment: Option<&str>) -> Result<Target, Usage> {
    let environment = environment.filter(|value| !value.is_empty());
    if args.standalone {
        return Ok(Target::Standalone);
    }
    if args.cluster.is_asked() {
        return Ok(Target::Cluster);
    }
    let agents = match environment {
        _ if !args.agent.is_empty() => args.agent.clone(),
        Some(value) => value
            .split(',')
            .map(|address| {
                address.trim().parse().map_err(|expected| {
                    Usage(format!(
                        "invalid value '{address}' in the environment variable ORB8_AGENT: {expected}"
                    ))
                })
            })
            .collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    match agents.first() {
        Some(agent) if !args.interface.is_empty() => Err(Usage(format!(
            "--interface is for --standalone; which interfaces the agent at {agent} observes is its own setting"
        ))),
        Some(_) => Ok(Target::Agents(agents)),
        None if !args.interface.is_empty() => Ok(Target::Standalone),
        None => Ok(Target::Any),
    }
}

/// Finds who answers, as `args` and `ORB8_AGENT` say.
///
/// # Errors
/// If nobody does: what was tried, and what to do.
pub(crate) async fn open(args: &TargetArgs, need: Need) -> anyhow::Result<Fleet> {
    match target(args, env::var("ORB8_AGENT").ok().as_deref())? {
        Target::Agents(addresses) => match addresses.as_slice() {
            [address] => with_agent(address).await,
            addresses => with_agents(addresses),
        },
        Target::Cluster => cluster::find(&args.cluster).await,
        Target::Standalone => standalone(args, need).await,
        Target::Any => any(args, need).await,
    }
}

/// An agent of this machine, else the cluster's, else one in this process.
async fn any(args: &TargetArgs, need: Need) -> anyhow::Result<Fleet> {
    if let Some(fleet) = local().await {
        terminal::say(&format!("orb8: using the agent at {LOCAL} (--standalone: not)"));
        return Ok(fleet);
    }
    let mut tried = format!("no agent answers at {LOCAL}");
    match cluster::find(&args.cluster).await {
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

async fn with_agent(address: &AgentAddress) -> anyhow::Result<Fleet> {
    let channel = endpoint(&address.0)?.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|error| {
        anyhow!(
            "no agent answers at {address}: {}. Start one there (`sudo orb8-agent`; it listens on loopback \
             unless told otherwise), check the address, or load the probes here: `sudo orb8 --standalone …`",
            innermost(&error)
        )
    })?;
    Ok(Fleet::one(named(channel, &address.0)))
}

/// Several, which are connected to when they are asked: one that is away does not silence the others.
fn with_agents(addresses: &[AgentAddress]) -> anyhow::Result<Fleet> {
    let mut members: Vec<Member> = Vec::new();
    for address in addresses {
        if members.iter().any(|member| member.name == address.0) {
            return Err(Usage(format!(
                "the agent at {address} is named twice: it would be counted twice"
            ))
            .into());
        }
        let channel = endpoint(&address.0)?
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_lazy();
        members.push(named(channel, &address.0).with_deadline(Trouble::default()));
    }
    let name = format!("{} agents", members.len());
    Ok(Fleet::many(members, Vec::new(), name))
}

fn named(channel: Channel, address: &str) -> Member {
    Member::new(channel, address.to_owned(), format!("the agent at {address}"))
}

/// The agent of this machine, if there is one.
async fn local() -> Option<Fleet> {
    let attempt = async {
        let endpoint = endpoint(LOCAL).ok()?.connect_timeout(LOCAL_TIMEOUT);
        let channel = endpoint.connect().await.ok()?;
        let mut member = named(channel, LOCAL);
        member
            .client
            .get_agent_status(GetAgentStatusRequest {})
            .await
            .ok()?;
        Some(Fleet::one(member))
    };
    tokio::time::timeout(ANSWER_TIMEOUT, attempt).await.ok().flatten()
}

async fn standalone(args: &TargetArgs, need: Need) -> anyhow::Result<Fleet> {
    let syscalls = match need {
        Need::Network => SyscallMode::Off,
        Need::Counts => SyscallMode::Counts,
        Need::Latency => SyscallMode::Latency,
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
    fn addresses() {
        for (typed, meant) in [
            ("node1", "node1:9090"),
            ("node1:1", "node1:1"),
            ("http://10.0.0.5:9090/", "10.0.0.5:9090"),
            ("[::1]:80", "[::1]:80"),
            ("[::1]", "[::1]:9090"),
            ("fd00::1", "[fd00::1]:9090"),
        ] {
            assert_eq!(typed.parse::<AgentAddress>().unwrap().0, meant);
        }
        for bad in ["", ":1", "a:0", "a:x", "a b:1", "[x]:1", "https://a:1", "a:99999"] {
            assert!(bad.parse::<AgentAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_beat_the_environment() {
        let flags = |line: &str| {
            use clap::Parser as _;
            crate::args::Cli::try_parse_from(format!("orb8 {line}status").split(' '))
                .unwrap()
                .target
        };
        let agent = |text: &str| Target::Agents(text.split(',').map(|text| text.parse().unwrap()).collect());
        assert_eq!(target(&flags(""), None).unwrap(), Target::Any);
        assert_eq!(target(&flags(""), Some("")).unwrap(), Target::Any);
        assert_eq!(target(&flags(""), Some("e:1")).unwrap(), agent("e:1"));
        assert_eq!(target(&flags("--agent a:1 "), Some("e:1")).unwrap(), agent("a:1"));
        assert_eq!(target(&flags("--agent a:1,b "), None).unwrap(), agent("a:1,b"));
        assert_eq!(target(&flags(""), Some("a:1, b:2")).unwrap(), agent("a:1,b:2"));
        for cluster in [
            "--context c ",
            "--kubeconfig f ",
            "--node n ",
            "--agent-namespace n ",
        ] {
            assert_eq!(target(&flags(cluster), Some("e:1")).unwrap(), Target::Cluster);
        }
        assert_eq!(
            target(&flags("--standalone "), Some("e:1")).unwrap(),
            Target::Standalone
        );
        assert_eq!(
            target(&flags("--interface eth0 "), None).unwrap(),
            Target::Standalone
        );
        assert!(target(&flags("--agent a:1 --interface eth0 "), None).is_err());
        assert!(
            target(&flags(""), Some("a b"))
                .unwrap_err()
                .to_string()
                .contains("ORB8_AGENT")
        );
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
