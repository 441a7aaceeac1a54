//! Whose token it is, and what they may see: the API server's answers, for as long as they are good.

use std::{
    collections::BTreeMap,
    fmt,
    hash::Hash,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::refusal::{GuardCounts, Refusal};

/// How long a yes is good.
const YES: Duration = Duration::from_secs(60);
/// How long a no is good: less, so that who was just let in does not wait.
const NO: Duration = Duration::from_secs(10);
/// The API server has to answer within this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions to the API server at once.
const AT_ONCE: usize = 16;
const TOKENS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
const ACCESSES: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// Longer tokens are none, bytes.
const LONGEST: usize = 16 << 10;

/// A person, or a program, as the API server knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// What stays when the name is given anew.
    pub uid: String,
    /// Groups that they are in.
    pub groups: Vec<String>,
    /// What else the authenticator tells, which an authoriser may use.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Who knows whose a token is and what they may see: the cluster's API server.
#[tonic::async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// Whose token it is; `None`: nobody's.
    ///
    /// # Errors
    /// Why it is not known.
    async fn identify(&self, token: &str) -> Result<Option<User>, String>;

    /// Whether they may get pods in `namespace`; empty: in all.
    ///
    /// # Errors
    /// Why it is not known.
    async fn may_get_pods(&self, user: &User, namespace: &str) -> Result<bool, String>;
}

/// The API server, asked by `TokenReview` and `SubjectAccessReview`: takes `create` of both, cluster-wide (the ClusterRole
/// `system:auth-delegator` has it).
#[derive(Clone)]
pub struct KubeReviewer {
    client: Client,
    audiences: Vec<String>,
}

impl fmt::Debug for KubeReviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeReviewer")
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

impl KubeReviewer {
    /// Tokens have to be for one of `audiences`; none: for the API server.
    #[must_use]
    pub const fn new(client: Client, audiences: Vec<String>) -> Self {
        Self { client, audiences }
    }
}

#[tonic::async_trait]
impl Reviewer for KubeReviewer {
    async fn identify(&self, token: &str) -> Result<Option<User>, String> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: (!self.audiences.is_empty()).then(|| self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(told)?;
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Ok(None);
        }
        // An authenticator that knows nothing of audiences names none: then the token is for the API server only.
        let meant = status.audiences.unwrap_or_default();
        if !self.audiences.is_empty() && !self.audiences.iter().any(|own| meant.contains(own)) {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        Ok(Some(User {
            name,
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn may_get_pods(&self, user: &User, namespace: &str) -> Result<bool, String> {
        let user = user.clone();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name),
                uid: (!user.uid.is_empty()).then_some(user.uid),
                groups: Some(user.groups),
                extra: Some(user.extra),
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(namespace.to_owned()),
                    verb: Some("get".to_owned()),
                    resource: Some("pods".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(told)?;
        let status = answer.status.unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }
}

/// Without what was asked: that holds a token.
fn told(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            "it does not let the server review tokens: bind the ClusterRole system:auth-delegator".to_owned()
        }
        kube::Error::Api(status) => format!("error {}", status.code),
        other => orb8_fleet::innermost(&other),
    }
}

/// What stands for a token: nothing keeps the token itself.
pub(super) type TokenHash = [u8; 32];

/// Somebody whose token is good.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) user: Arc<User>,
    token: TokenHash,
}

/// Answers, each for a while. Bounded: what was not used for the longest time goes first.
struct Answers<K: Hash + Eq, V>(Mutex<LruCache<K, (Instant, V)>>);

impl<K: Hash + Eq, V: Clone> Answers<K, V> {
    fn new(most: NonZeroUsize) -> Self {
        Self(Mutex::new(LruCache::new(most)))
    }

    fn get(&self, key: &K) -> Option<V> {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, answer) = answers.get(key)?;
        if Instant::now() < *until {
            return Some(answer.clone());
        }
        answers.pop(key);
        None
    }

    fn put(&self, key: K, answer: V, good: Duration) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.put(key, (Instant::now() + good, answer));
    }
}

/// Asks the API server, and keeps its answers. What it does not answer is refused.
pub(super) struct Reviews {
    reviewer: Arc<dyn Reviewer>,
    tokens: Answers<TokenHash, Option<Arc<User>>>,
    accesses: Answers<(TokenHash, String), bool>,
    at_once: Semaphore,
    counts: Arc<GuardCounts>,
}

impl Reviews {
    pub(super) fn new(reviewer: Arc<dyn Reviewer>, counts: Arc<GuardCounts>) -> Self {
        Self {
            reviewer,
            tokens: Answers::new(TOKENS),
            accesses: Answers::new(ACCESSES),
            at_once: Semaphore::new(AT_ONCE),
            counts,
        }
    }

    /// Whose token it is, if that is known without asking; `Some(None)`: nobody's.
    pub(super) fn known(&self, token: &str) -> Option<Option<Person>> {
        if token.is_empty() || token.len() > LONGEST {
            return Some(None);
        }
        let token = hash(token);
        let user = self.tokens.get(&token)?;
        Some(user.map(|user| Person { user, token }))
    }

    /// Whose token it is; `None`: nobody's.
    pub(super) async fn identify(&self, token: &str) -> Result<Option<Person>, Refusal> {
        if let Some(known) = self.known(token) {
            return Ok(known);
        }
        let user = self.ask(self.reviewer.identify(token)).await?.map(Arc::new);
        let good = if user.is_some() { YES } else { NO };
        let token = hash(token);
        self.tokens.put(token, user.clone(), good);
        Ok(user.map(|user| Person { user, token }))
    }

    /// Whether a person may get pods in a namespace; empty: in all.
    pub(super) async fn may_see(&self, person: &Person, namespace: &str) -> Result<bool, Refusal> {
        let key = (person.token, namespace.to_owned());
        if let Some(answer) = self.accesses.get(&key) {
            return Ok(answer);
        }
        let answer = self
            .ask(self.reviewer.may_get_pods(&person.user, namespace))
            .await?;
        self.accesses.put(key, answer, if answer { YES } else { NO });
        Ok(answer)
    }

    /// Whether the token itself is still good; its answer is never older than a minute.
    pub(super) async fn still(&self, person: &Person, token: &str) -> Result<bool, Refusal> {
        let now = self.identify(token).await?;
        Ok(now.is_some_and(|now| now.user == person.user))
    }

    async fn ask<T>(&self, question: impl Future<Output = Result<T, String>>) -> Result<T, Refusal> {
        let asked = tokio::time::timeout(PATIENCE, async {
            // Never closed.
            let _permit = self.at_once.acquire().await;
            self.counts.reviews.fetch_add(1, Ordering::Relaxed);
            question.await
        });
        let seconds = PATIENCE.as_secs();
        let answer = match asked.await {
            Ok(answer) => answer,
            Err(_) => Err(format!("nothing within {seconds} s")),
        };
        answer.map_err(|why| {
            self.counts.reviews_failed.fetch_add(1, Ordering::Relaxed);
            Refusal::ApiServer(why)
        })
    }
}

fn hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}
