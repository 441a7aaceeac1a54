//! Watching one kind of objects for as long as the server runs.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use kube::{
    Api, Client,
    runtime::watcher::{self, DefaultBackoff, Event, watcher},
};
use orb8_proto::v1::{self, WatchStatus};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Where the back-off has no answer, which does not happen.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How a watch is.
#[derive(Clone, Debug, Default)]
pub(crate) struct WatchState(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    resource: &'static str,
    listed: bool,
    failure: Option<String>,
    /// Since when what is known may be out of date.
    stale_since: Option<Instant>,
    objects: u64,
    events: u64,
    restarts: u64,
}

impl WatchState {
    pub(crate) fn new(resource: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            resource,
            stale_since: Some(Instant::now()),
            ..Inner::default()
        })))
    }

    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether all objects have been listed once.
    pub(crate) fn is_listed(&self) -> bool {
        self.with(|state| state.listed)
    }

    /// How old what is known is; zero while the watch stands.
    pub(crate) fn age(&self) -> Duration {
        self.with(|state| state.stale_since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    pub(crate) fn status(&self) -> WatchStatus {
        self.with(|state| WatchStatus {
            resource: state.resource.to_owned(),
            state: match state.failure {
                None if state.listed => v1::State::Active.into(),
                _ => v1::State::Failed.into(),
            },
            reason: state.failure.clone().unwrap_or_default(),
            objects: state.objects,
            age: state.listed.then(|| {
                crate::wall_clock::duration(state.stale_since.map_or(Duration::ZERO, |t| t.elapsed()))
            }),
            events: state.events,
            restarts: state.restarts,
        })
    }
}

/// What happens to objects.
pub(crate) trait Watched<K>: Send + Sync + 'static {
    /// There is one, or it changed.
    fn apply(&self, object: K);
    /// One is gone.
    fn delete(&self, object: K);
    /// All are to be listed anew.
    fn begin(&self);
    /// All have been listed: what was not applied since [`Watched::begin`] is gone.
    fn end(&self);
    /// How many there are.
    fn len(&self) -> usize;
}

/// Watches until `stop`. While the API server is away, what was known last serves.
pub(crate) async fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    watched: Arc<impl Watched<K>>,
    state: WatchState,
    stop: CancellationToken,
) where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = || Box::pin(watcher(api.clone(), config.clone()));
    let mut events = begin();
    let mut backoff = DefaultBackoff::default();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(event) => event,
                None => return,
            },
        };
        match event {
            // Comes before each attempt to list, whatever becomes of it.
            Ok(Event::Init) => watched.begin(),
            Ok(event) => {
                let listed = matches!(event, Event::InitDone);
                match event {
                    Event::InitApply(object) | Event::Apply(object) => watched.apply(object),
                    Event::Delete(object) => watched.delete(object),
                    Event::InitDone => watched.end(),
                    Event::Init => {}
                }
                let objects = watched.len() as u64;
                let recovered = state.with(|state| {
                    state.events += 1;
                    state.objects = objects;
                    if listed {
                        state.listed = true;
                        state.stale_since = None;
                        return state.failure.take().is_some();
                    }
                    false
                });
                if listed {
                    backoff = DefaultBackoff::default();
                }
                if recovered {
                    info!("the API server answers again");
                }
            }
            Err(error) => {
                let reason = explain(&error);
                let first = state.with(|state| {
                    state.restarts += 1;
                    state.stale_since.get_or_insert_with(Instant::now);
                    state.failure.replace(reason.clone()).is_none()
                });
                // Once, not at every attempt.
                if first {
                    warn!(
                        reason,
                        "the API server cannot be watched; what was known last serves"
                    );
                }
                let wait = backoff.next().unwrap_or(LONGEST_WAIT);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                // A watch that goes on where it was says nothing until something changes: only a new list shows that the API
                // server is back.
                events = begin();
            }
        }
    }
}

fn explain(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        source = cause.source();
    }
    text
}

/// All namespaces, or one.
pub(crate) fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

#[cfg(test)]
impl WatchState {
    pub(crate) fn set_listed_for_test(&self) {
        self.with(|state| {
            state.listed = true;
            state.stale_since = None;
        });
    }
}
