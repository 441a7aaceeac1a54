//! Why a request is refused, and how often that happened.

use std::sync::atomic::{AtomicU64, Ordering};

use tonic::Status;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Neither a certificate nor a token.
    Anonymous {
        /// Whether a token would do.
        tokens: bool,
    },
    /// A certificate of somebody who asks nothing.
    Identity(String),
    /// A token that the API server does not know, or that is none.
    Token,
    /// The API server can't be asked.
    ApiServer(String),
    /// A namespace that this person may not see.
    Namespace(String),
    /// There is no namespace that this person may see.
    Nothing,
    /// What only operators may do.
    Operators(&'static str),
    /// A condition that could tell of what this person may not see, or that makes no sense.
    Condition(String),
    /// As many questions of one client as there may be.
    Queries(usize),
    /// As many streams of events.
    Streams(usize),
    /// As many unknown tokens of one address.
    Reviews,
}

impl Refusal {
    pub(super) const NAMES: [&'static str; 11] = [
        "anonymous",
        "identity",
        "token",
        "api_server",
        "namespace",
        "no_namespace",
        "operators_only",
        "condition",
        "queries",
        "streams",
        "reviews",
    ];

    const fn index(&self) -> usize {
        match self {
            Self::Anonymous { .. } => 0,
            Self::Identity(_) => 1,
            Self::Token => 2,
            Self::ApiServer(_) => 3,
            Self::Namespace(_) => 4,
            Self::Nothing => 5,
            Self::Operators(_) => 6,
            Self::Condition(_) => 7,
            Self::Queries(_) => 8,
            Self::Streams(_) => 9,
            Self::Reviews => 10,
        }
    }

    /// For the client.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Anonymous { tokens: true } => Status::unauthenticated(
                "who asks? Connect with an operator's certificate (Secret orb8-operator-tls), or send a token of this \
                 cluster (authorization: Bearer ...)",
            ),
            Self::Anonymous { tokens: false } => Status::unauthenticated(
                "who asks? Connect with an operator's certificate (Secret orb8-operator-tls); tokens are taken only if the \
                 server runs with --token-review",
            ),
            Self::Identity(identity) => Status::permission_denied(format!(
                "the certificate is that of {identity}: only {} may ask the server",
                orb8_tls::OPERATOR
            )),
            Self::Token => Status::unauthenticated(
                "the cluster does not accept this token: it has expired, is for another audience, or is no token",
            ),
            Self::ApiServer(why) => Status::unavailable(format!(
                "who asks, and what they may see, can't be found out now: the API server does not answer ({why}); try again, \
                 or use an operator's certificate"
            )),
            Self::Namespace(namespace) => Status::permission_denied(format!(
                "namespace {namespace}: you may not see it (that takes `get pods` there)"
            )),
            Self::Nothing => Status::permission_denied(
                "there is no namespace that you are known to see (that takes `get pods` there); if there is one, name it",
            ),
            Self::Operators(what) => Status::permission_denied(format!(
                "{what} is for operators only: connect with an operator's certificate (Secret orb8-operator-tls)"
            )),
            Self::Condition(why) => Status::invalid_argument(why),
            Self::Queries(most) => Status::resource_exhausted(format!(
                "{most} questions of yours are being answered already; try again"
            )),
            Self::Streams(most) => {
                Status::resource_exhausted(format!("you follow events {most} times already; end one first"))
            }
            Self::Reviews => Status::resource_exhausted(
                "too many tokens from your address are being checked; try again in a moment",
            ),
        }
    }
}

/// What the guard has counted since its start.
#[derive(Debug, Default)]
pub struct GuardCounts {
    refused: [AtomicU64; Refusal::NAMES.len()],
    /// Rows and events that agents gave, and that who asked may not see. More than a few: agents of an older version.
    pub dropped: AtomicU64,
    /// Questions to the API server: whose token it is, and what they may see.
    pub reviews: AtomicU64,
    /// Of these, those that it did not answer.
    pub reviews_failed: AtomicU64,
}

impl GuardCounts {
    /// Requests that were refused, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::NAMES
            .into_iter()
            .zip(self.refused.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Those refused for one of the reasons that [`GuardCounts::refused`] names.
    #[must_use]
    pub fn refused_for(&self, reason: &str) -> u64 {
        self.refused()
            .find_map(|(name, count)| (name == reason).then_some(count))
            .unwrap_or_default()
    }

    /// Counts a refusal, and words it.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Status {
        self.refused[refusal.index()].fetch_add(1, Ordering::Relaxed);
        refusal.status()
    }
}
