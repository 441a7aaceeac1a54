//! How the server runs: flags, each with a variable of the environment.

use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};
use orb8_tls::{ClientCertificates, ConnectionLimits, TlsFiles};

use crate::{certgen, guard::GuardLimits, server::ServerError};

/// One question to all nodes of a cluster, one answer.
///
/// Finds the agents, keeps a connection to each, and serves the agents' own protocol over all of them. Keeps nothing: run
/// as many as you like.
#[derive(Debug, Parser)]
#[command(name = "orb8-server", version, max_term_width = 100)]
pub struct Cli {
    /// How it runs.
    #[command(flatten)]
    pub settings: Settings,
    /// What else it can do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the settings as they come out of flags and environment, and end
    Config,
    /// Make the certificates of agents, server and operators, or renew them, and end
    Certgen(certgen::Options),
}

/// Settings of a server.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Address that gRPC is served on
    #[arg(
        long,
        env = "ORB8_SERVER_GRPC_ADDRESS",
        value_name = "IP",
        default_value = "127.0.0.1"
    )]
    pub grpc_address: IpAddr,
    /// Port of gRPC; 0 takes any free port and logs which
    #[arg(
        long,
        env = "ORB8_SERVER_GRPC_PORT",
        value_name = "PORT",
        default_value_t = 8080
    )]
    pub grpc_port: u16,
    /// Address that metrics, /healthz and /readyz are served on
    #[arg(
        long,
        env = "ORB8_SERVER_METRICS_ADDRESS",
        value_name = "IP",
        default_value = "127.0.0.1"
    )]
    pub metrics_address: IpAddr,
    /// Port of metrics, /healthz and /readyz; 0 takes any free port and logs which
    #[arg(
        long,
        env = "ORB8_SERVER_METRICS_PORT",
        value_name = "PORT",
        default_value_t = 8081
    )]
    pub metrics_port: u16,

    /// The agents, one by one: HOST:PORT, separated by commas. Without this and the next two, in a pod: those of the
    /// Service orb8-agents of its own namespace
    #[arg(
        long, env = "ORB8_SERVER_AGENTS", value_name = "HOST:PORT", value_delimiter = ',',
        conflicts_with_all = ["agent_service", "agent_srv"]
    )]
    pub agents: Vec<HostPort>,
    /// The agents are the endpoints of this Kubernetes Service, at its port named `grpc`
    #[arg(
        long,
        env = "ORB8_SERVER_AGENT_SERVICE",
        value_name = "NAMESPACE/NAME",
        conflicts_with = "agent_srv"
    )]
    pub agent_service: Option<ServiceName>,
    /// The agents are what DNS SRV records of this name say, asked for every 10 s
    #[arg(
        long, env = "ORB8_SERVER_AGENT_SRV", value_name = "NAME", value_parser = NonEmptyStringValueParser::new()
    )]
    pub agent_srv: Option<String>,
    /// Kubeconfig file; without one, the pod's service account, or KUBECONFIG
    #[arg(long, env = "ORB8_SERVER_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Certificate authorities, in PEM, that agents' and clients' certificates must come from
    #[arg(long, env = "ORB8_SERVER_TLS_CA", value_name = "FILE", requires_all = ["tls_cert", "tls_key"])]
    pub tls_ca: Option<PathBuf>,
    /// This server's certificate, in PEM, for the DNS name server.orb8. Looked at for changes every 10 s, as is the key
    #[arg(long, env = "ORB8_SERVER_TLS_CERT", value_name = "FILE", requires_all = ["tls_ca", "tls_key"])]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM
    #[arg(long, env = "ORB8_SERVER_TLS_KEY", value_name = "FILE", requires_all = ["tls_ca", "tls_cert"])]
    pub tls_key: Option<PathBuf>,
    /// Serve, and talk to agents, in plain text though not only on loopback: anybody who reaches the port may ask everything
    #[arg(
        long, env = "ORB8_SERVER_INSECURE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
        default_value = "false", action = clap::ArgAction::Set
    )]
    pub insecure: bool,
    /// Also take bearer tokens of the cluster: who shows one is told what belongs to namespaces in which they may get pods.
    /// Takes the ClusterRole system:auth-delegator
    #[arg(
        long, env = "ORB8_SERVER_TOKEN_REVIEW", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
        default_value = "false", action = clap::ArgAction::Set
    )]
    pub token_review: bool,
    /// Audiences, one of which a token has to be for, separated by commas; none: tokens for the API server
    #[arg(
        long = "token-audience",
        env = "ORB8_SERVER_TOKEN_AUDIENCE",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub token_audiences: Vec<String>,
    /// Questions of one client at once; more are refused. A client is a certificate and an address, or a token's user
    #[arg(
        long, env = "ORB8_SERVER_CLIENT_QUERIES", value_name = "NUMBER", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub client_queries: u32,
    /// Streams of events of one client at once; more are refused
    #[arg(
        long, env = "ORB8_SERVER_CLIENT_STREAMS", value_name = "NUMBER", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub client_streams: u32,

    /// How long an agent may keep an answer waiting: for its first part, and for each after it (10ms to 5m)
    #[arg(long, env = "ORB8_SERVER_DEADLINE", value_name = "TIME", default_value = "5s", value_parser = span(10, 300_000))]
    pub deadline: Duration,
    /// How often each agent is asked whether it lives, and what time it has (100ms to 5m)
    #[arg(long, env = "ORB8_SERVER_HEARTBEAT", value_name = "TIME", default_value = "5s", value_parser = span(100, 300_000))]
    pub heartbeat: Duration,
    /// Questions answered at once; more are refused
    #[arg(
        long, env = "ORB8_SERVER_QUERIES", value_name = "NUMBER", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub queries: u32,
    /// Streams of events at once; more are refused
    #[arg(
        long, env = "ORB8_SERVER_STREAMS", value_name = "NUMBER", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub streams: u32,
    /// Agents that one question is put to at the same time
    #[arg(
        long, env = "ORB8_SERVER_CONCURRENCY", value_name = "NUMBER", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=16384)
    )]
    pub concurrency: u32,
    /// A client that takes nothing for so long is cut off (100ms to 10m)
    #[arg(long, env = "ORB8_SERVER_PATIENCE", value_name = "TIME", default_value = "30s", value_parser = span(100, 600_000))]
    pub patience: Duration,
    /// Connections at once; more are closed
    #[arg(
        long, env = "ORB8_SERVER_CONNECTIONS", value_name = "NUMBER", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=65536)
    )]
    pub connections: u32,
    /// Connections at once from one address; more are closed
    #[arg(
        long, env = "ORB8_SERVER_CONNECTIONS_PER_SOURCE", value_name = "NUMBER", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=65536)
    )]
    pub connections_per_source: u32,
    /// Flows that one question for edges may join, and rows that one for system calls may sum: bounds memory, at about 1 KiB
    /// each
    #[arg(
        long, env = "ORB8_SERVER_ROWS", value_name = "NUMBER", default_value_t = 250_000,
        value_parser = clap::value_parser!(u32).range(1000..=16_777_216)
    )]
    pub rows: u32,
    /// Name of this server in answers; the host name unless given
    #[arg(long, env = "ORB8_SERVER_NAME", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// What is logged: a level (error, warn, info, debug, trace) or a list such as `info,orb8_server=debug`
    #[arg(long, env = "ORB8_SERVER_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// Reads a time between so many milliseconds.
fn span(least: u64, most: u64) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let allowed = || {
            let show = |ms| humantime::format_duration(Duration::from_millis(ms)).to_string();
            format!(
                "a time between {} and {} is needed, such as 5s",
                show(least),
                show(most)
            )
        };
        let time = humantime::parse_duration(text).map_err(|error| format!("{error}: {}", allowed()))?;
        let in_range = (Duration::from_millis(least)..=Duration::from_millis(most)).contains(&time);
        in_range.then_some(time).ok_or_else(allowed)
    }
}

/// `HOST:PORT` of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort(pub String);

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "HOST:PORT (node1:9090, 10.0.0.5:9090, [fd00::1]:9090) is needed".to_owned();
        let (host, port) = text.trim().rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
            }
        };
        if !valid || port == 0 {
            return Err(wrong());
        }
        Ok(Self(format!("{host}:{port}")))
    }
}

/// A Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [namespace, name] if !namespace.is_empty() && !name.is_empty() => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("NAMESPACE/NAME is needed, such as orb8/orb8-agents".to_owned()),
        }
    }
}

impl Settings {
    /// The certificates' files, if there are any.
    #[must_use]
    pub fn tls(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            ca: self.tls_ca.clone()?,
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
        })
    }

    /// What each value alone does not show.
    ///
    /// # Errors
    /// [`ServerError::Setting`], in words for the user.
    pub fn check(&self) -> Result<(), ServerError> {
        if self.tls().is_none() && !self.insecure && !self.grpc_address.is_loopback() {
            return Err(ServerError::Setting(format!(
                "--grpc-address {} is not on loopback, and there are no certificates: give --tls-ca, --tls-cert and --tls-key \
                 (ORB8_SERVER_TLS_CA, …; `orb8-server certgen` makes them), or --insecure if anybody who reaches the port may \
                 ask everything",
                self.grpc_address
            )));
        }
        if self.tls().is_some() && self.insecure {
            return Err(ServerError::Setting(
                "--insecure and --tls-cert contradict each other: leave one out".to_owned(),
            ));
        }
        if self.token_review && self.tls().is_none() {
            return Err(ServerError::Setting(
                "--token-review needs --tls-ca, --tls-cert and --tls-key: tokens are not for plain text, which answers everybody"
                    .to_owned(),
            ));
        }
        if self.grpc_port != 0 && self.grpc_port == self.metrics_port {
            return Err(ServerError::Setting(format!(
                "gRPC and metrics cannot both listen on port {}: change --grpc-port or --metrics-port",
                self.grpc_port
            )));
        }
        Ok(())
    }

    pub(crate) fn limits(&self) -> orb8_fleet::Limits {
        orb8_fleet::Limits {
            deadline: self.deadline,
            concurrency: self.concurrency as usize,
            queries: self.queries as usize,
            streams: self.streams as usize,
            patience: self.patience,
            max_rows: self.rows as usize,
            ..orb8_fleet::Limits::default()
        }
    }

    pub(crate) fn guard_limits(&self) -> GuardLimits {
        GuardLimits {
            queries: self.client_queries as usize,
            streams: self.client_streams as usize,
            ..GuardLimits::default()
        }
    }

    /// Who shows a token may do without a certificate.
    pub(crate) const fn client_certificates(&self) -> ClientCertificates {
        if self.token_review {
            ClientCertificates::Optional
        } else {
            ClientCertificates::Required
        }
    }

    pub(crate) fn connection_limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            total: self.connections as usize,
            per_source: self.connections_per_source as usize,
            ..ConnectionLimits::default()
        }
    }

    /// How gRPC is served, for `status`.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        if self.tls_ca.is_some() && self.token_review {
            "TLS 1.3, clients by certificate or token"
        } else if self.tls_ca.is_some() {
            "TLS 1.3, clients by certificate"
        } else if self.grpc_address.is_loopback() {
            "plain text on loopback"
        } else {
            "plain text to the network (insecure)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &str) -> Result<Settings, String> {
        let cli = Cli::try_parse_from(format!("orb8-server {line}").split_whitespace())
            .map_err(|error| error.to_string())?;
        cli.settings.check().map_err(|error| error.to_string())?;
        Ok(cli.settings)
    }

    #[test]
    fn wrong_values_are_refused_with_their_names_and_ranges() {
        for (line, told) in [
            ("--deadline 1ms", "between 10ms and 5m"),
            ("--queries 0", "1..=1024"),
            ("--agents node1", "HOST:PORT"),
            ("--agents a:1 --agent-srv x", "cannot be used with"),
            ("--agent-service x", "NAMESPACE/NAME"),
            ("--tls-cert x", "--tls-ca"),
            ("--grpc-address 0.0.0.0", "--insecure"),
            ("--grpc-port 8081", "8081"),
            ("--token-review", "--tls-cert"),
            ("--insecure=maybe", "--insecure"),
        ] {
            let error = settings(line).unwrap_err();
            assert!(error.contains(told), "{line}: {error}");
        }
        assert!(settings("--insecure --grpc-address ::").unwrap().insecure);
        assert_eq!(settings("").unwrap().transport(), "plain text on loopback");
        assert_eq!(settings("--agents a:1,[::1]:2").unwrap().agents.len(), 2);
    }
}
