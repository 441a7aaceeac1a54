//! Who answers: an agent, many agents that are asked as one, or a server that asks them.
//!
//! All speak the same protocol. Many agents are asked by a hub in this process, which is what a server runs too.

use std::{error::Error as _, sync::Arc};

use anyhow::{Context as _, anyhow};
use orb8_fleet::{Hub, Limits, Member};
use orb8_proto::v1::orbit_service_client::OrbitServiceClient;
use tokio::sync::watch;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::{exit::Usage, standalone::Standalone};

pub(crate) use orb8_fleet::innermost;

/// The protocol's client.
pub(crate) type Client = OrbitServiceClient<InterceptedService<Channel, Bearer>>;

/// Largest message that is taken: bounds memory.
const MAX_MESSAGE: usize = 16 << 20;

/// Shows a token with each request, if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// # Errors
    /// If it can't be sent.
    pub(crate) fn new(token: Option<&str>) -> anyhow::Result<Self> {
        let value = token
            .map(|token| format!("Bearer {}", token.trim()).parse::<MetadataValue<Ascii>>())
            .transpose()
            .map_err(|_| Usage("the token has characters that no token has".to_owned()))?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        Ok(Self(value))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Who answers.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// Ready to be asked; connects by itself, and again after the connection is lost.
    pub(crate) client: Client,
    /// Who they are together, for titles.
    pub(crate) name: String,
    /// The namespace of the kubeconfig's context, if the answer comes through one.
    pub(crate) namespace: Option<String>,
    /// Of these nodes only; none: of all.
    pub(crate) nodes: Vec<String>,
    kind: Kind,
    /// What may help where nobody answers, or the connection ends without a word.
    hint: Option<String>,
    standalone: Option<Standalone>,
    /// The members of a hub of this process.
    _members: Option<watch::Sender<Arc<[Member]>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// One agent: who it is, as the subject of a sentence.
    One(String),
    /// Several, by a hub in this process.
    Hub,
    /// A server: as for one agent.
    Server(String),
}

impl Fleet {
    fn new(channel: Channel, bearer: Bearer, name: String, kind: Kind) -> Self {
        Self {
            client: OrbitServiceClient::with_interceptor(channel, bearer)
                .max_decoding_message_size(MAX_MESSAGE),
            name,
            namespace: None,
            nodes: Vec::new(),
            kind,
            hint: None,
            standalone: None,
            _members: None,
        }
    }

    /// A single agent: its name, and who it is as the subject of a sentence.
    pub(crate) fn one(channel: Channel, name: String, title: String) -> Self {
        Self::new(channel, Bearer::default(), name, Kind::One(title))
    }

    /// Several agents.
    pub(crate) fn many(members: Vec<Member>, name: String) -> Self {
        let (sender, members) = watch::channel(Arc::from(members));
        let hub = Hub::new(members, Limits::default());
        Self {
            _members: Some(sender),
            ..Self::new(hub.channel(), Bearer::default(), name, Kind::Hub)
        }
    }

    /// A server.
    pub(crate) fn server(channel: Channel, bearer: Bearer, name: String, title: String) -> Self {
        Self::new(channel, bearer, name, Kind::Server(title))
    }

    /// The agent of this process.
    pub(crate) fn standalone(standalone: Standalone) -> Self {
        Self {
            ..Self::one(
                standalone.channel(),
                "standalone".to_owned(),
                "the agent in this process".to_owned(),
            )
        }
        .holding(standalone)
    }

    fn holding(mut self, standalone: Standalone) -> Self {
        self.standalone = Some(standalone);
        self
    }

    /// The same, with the namespace that is meant where none is given.
    pub(crate) fn in_namespace(mut self, namespace: String) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// The same, of these nodes only.
    pub(crate) fn of_nodes(mut self, nodes: Vec<String>) -> Self {
        self.nodes = nodes;
        self
    }

    /// The same, with what may help where nobody answers.
    pub(crate) fn hinting(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Whether more than one agent is to answer, so that each sentence must say whose it is.
    pub(crate) const fn is_many(&self) -> bool {
        !matches!(self.kind, Kind::One(_))
    }

    /// Whether a server answers.
    pub(crate) const fn is_server(&self) -> bool {
        matches!(self.kind, Kind::Server(_))
    }

    /// Whether the probes were loaded by this command: history begins now.
    pub(crate) const fn is_standalone(&self) -> bool {
        self.standalone.is_some()
    }

    /// The result of `ask`, which is tried once more if the connection broke: another of the servers may take the first
    /// one's place.
    ///
    /// # Errors
    /// In words for the user.
    pub(crate) async fn ask<T, F>(&self, ask: impl Fn(Client) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        match ask(self.client.clone()).await {
            // What a server itself says, of agents that are away for instance, would be the same again.
            Err(status) if self.is_server() && is_lost(&status) && status.source().is_some() => {
                ask(self.client.clone()).await
            }
            result => result,
        }
        .map_err(|status| self.explain(&status))
    }

    /// What a gRPC error means to the user.
    pub(crate) fn explain(&self, status: &Status) -> anyhow::Error {
        let version = env!("CARGO_PKG_VERSION");
        match (&self.kind, status.code()) {
            (Kind::One(who) | Kind::Server(who), Code::InvalidArgument) => {
                Usage(format!("{who} refuses the query: {}", status.message())).into()
            }
            (Kind::Hub, Code::InvalidArgument) => Usage(status.message().to_owned()).into(),
            (Kind::One(who) | Kind::Server(who), Code::Unimplemented) => anyhow!(
                "{who} does not know this request: it is no orb8 agent, or one of another version than this orb8 \
                 ({version})"
            ),
            (Kind::One(who), _) if is_lost(status) => anyhow!(
                "{who} went away before its answer was complete ({}{}); is it still running (`orb8 status`)?",
                cause(status),
                self.hint_to(status)
            ),
            // What a server says of its agents is a sentence already.
            (Kind::Server(_), Code::Unavailable) if status.source().is_none() => {
                anyhow!("{}", status.message())
            }
            (Kind::Server(who), _) if is_lost(status) => {
                anyhow!("{who} can't be asked: {}{}", cause(status), self.hint_to(status))
            }
            (Kind::Server(who), Code::Unauthenticated | Code::PermissionDenied) => {
                anyhow!("{who} refuses: {}", status.message())
            }
            (Kind::Hub, Code::Unavailable) if let Some(hint) = &self.hint => {
                anyhow!("{}; {hint}", status.message())
            }
            (Kind::Hub, _) => anyhow!("{}", status.message()),
            (Kind::One(who) | Kind::Server(who), code) => anyhow!("{who}: {} ({code:?})", status.message()),
        }
    }

    /// The hint, if the connection ended and nothing says why.
    fn hint_to(&self, status: &Status) -> String {
        match &self.hint {
            Some(hint) if is_wordless(status) => format!("; {hint}"),
            _ => String::new(),
        }
    }

    /// Detaches the probes, if this command loaded them.
    ///
    /// # Errors
    /// If something of ours may still be attached.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        match self.standalone {
            Some(standalone) => standalone.stop().await.context("detaching the probes"),
            None => Ok(()),
        }
    }
}

/// Whether the connection broke, or could not be made.
fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal
    )
}

/// Whether the connection was there and ended, and nothing says why.
fn is_wordless(status: &Status) -> bool {
    use std::io::ErrorKind as K;
    let mut cause = status.source();
    if cause.is_none() {
        return false;
    }
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                error.kind(),
                K::BrokenPipe
                    | K::ConnectionReset
                    | K::ConnectionAborted
                    | K::NotConnected
                    | K::UnexpectedEof
            );
        }
        cause = error.source();
    }
    true
}

/// Why, as far as the transport knows it.
fn cause(status: &Status) -> String {
    status
        .source()
        .map_or_else(|| status.message().to_owned(), innermost)
}
