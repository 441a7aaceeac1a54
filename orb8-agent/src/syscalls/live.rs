//! Who listens to events of calls, and which calls the programs tell for them.
//!
//! The programs tell a call only while somebody listens to it: each of those of the setting `syscall_events` as soon as
//! anybody does, and of others every so many-th that a listener asked for; of several wishes for one call, the most frequent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use orb8_common::syscall::OUT_OF_RANGE;
use orb8_proto::v1;
use tokio::sync::broadcast::{self, error::RecvError};
use tracing::warn;

use super::{
    CallFilter, CallQueryError,
    baseline::Verdict,
    call::{Abi, Call},
    event::CallEvent,
    filter::MAX_SAMPLING,
    query::change,
};
use crate::{
    core::{Core, lock},
    probe::object::LoadError,
    store::{endpoint, timestamp},
};

/// What listeners get.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum LiveCall {
    /// A call.
    Event(CallEvent),
    /// A change of a workload's calls.
    Change(Verdict),
}

impl LiveCall {
    /// Its message.
    pub(crate) fn message(&self, node: &str) -> v1::SyscallEvent {
        match self {
            Self::Event(event) => event.message(node),
            Self::Change(verdict) => v1::SyscallEvent {
                time: Some(timestamp(verdict.time_ns)),
                node: node.to_owned(),
                owner: Some(endpoint(&verdict.workload.owner(), true)),
                syscall: verdict.call.name().into_owned(),
                abi: v1::SyscallAbi::from(verdict.call.abi).into(),
                weight: 1,
                change: Some(change(verdict)),
                ..v1::SyscallEvent::default()
            },
        }
    }
}

/// Which events a listener wants.
#[derive(Debug)]
pub(crate) struct LiveCallFilter {
    filter: CallFilter,
    /// Calls of the setting.
    told: Arc<BTreeSet<Call>>,
    /// Every so many-th of the others that the filter names; 0: none.
    sampling: u32,
}

impl LiveCallFilter {
    /// Checks a filter whose label selectors are resolved.
    ///
    /// # Errors
    /// If a value makes no sense, or no event would ever come.
    pub(crate) fn new(
        filter: Option<&v1::SyscallFilter>,
        sampling: u32,
        told: &Arc<BTreeSet<Call>>,
    ) -> Result<Self, CallQueryError> {
        let filter = CallFilter::new(filter)?;
        if !filter.errnos().is_empty() {
            return Err(CallQueryError::EventsByErrno);
        }
        if sampling > MAX_SAMPLING {
            return Err(CallQueryError::Sampling(sampling));
        }
        if sampling > 0 && !filter.names_calls() {
            return Err(CallQueryError::SampleWhat);
        }
        if sampling == 0 && filter.names_calls() && !told.iter().any(|&call| filter.matches_call(call)) {
            let names: BTreeSet<_> = told.iter().map(|call| call.name()).collect();
            let names: Vec<_> = names.into_iter().collect();
            return Err(CallQueryError::NeverTold {
                told: if names.is_empty() {
                    "no call is".to_owned()
                } else {
                    format!("only {} are", names.join(", "))
                },
            });
        }
        Ok(Self {
            filter,
            told: told.clone(),
            sampling,
        })
    }

    /// Whether the listener wants it.
    pub(crate) fn matches(&self, event: &LiveCall) -> bool {
        match event {
            LiveCall::Event(event) => {
                (self.sampling > 0 || self.told.contains(&event.call))
                    && self.filter.matches_call(event.call)
                    && self.filter.matches_owner(&event.owner)
            }
            LiveCall::Change(verdict) => {
                self.filter.matches_call(verdict.call) && self.filter.matches_owner(&verdict.workload.owner())
            }
        }
    }

    /// How often it wants each call told.
    fn weights(&self) -> HashMap<Call, u32> {
        let mut weights = HashMap::new();
        for &call in &*self.told {
            if self.filter.matches_call(call) {
                weights.insert(call, 1);
            }
        }
        if self.sampling > 0 {
            let all = Abi::HERE
                .iter()
                .flat_map(|&abi| (0..OUT_OF_RANGE as u16).map(move |number| Call { abi, number }));
            for call in all.filter(|&call| self.filter.matches_call(call)) {
                // A category has the calls that there are, not all numbers.
                if call.known_name().is_some() || self.told.contains(&call) || self.filter.names_number(call)
                {
                    weights.entry(call).or_insert(self.sampling);
                }
            }
        }
        weights
    }
}

/// Listeners to events of calls.
#[derive(Debug)]
pub(crate) struct SyscallLive {
    sender: broadcast::Sender<Arc<LiveCall>>,
    /// By number: what each wants told.
    listeners: Mutex<BTreeMap<u64, HashMap<Call, u32>>>,
    next: AtomicU64,
    pub(crate) told: Arc<BTreeSet<Call>>,
    /// Events that listeners were too slow for.
    pub(crate) missed: AtomicU64,
    /// Events handed to listeners.
    pub(crate) delivered: AtomicU64,
}

impl SyscallLive {
    /// Keeps up to `buffer` events for slow listeners.
    pub(crate) fn new(told: BTreeSet<Call>, buffer: u32) -> Self {
        Self {
            sender: broadcast::channel(buffer as usize).0,
            listeners: Mutex::default(),
            next: AtomicU64::new(0),
            told: Arc::new(told),
            missed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        }
    }

    /// Hands an event to all listeners.
    pub(crate) fn send(&self, event: LiveCall) {
        // Nobody listens: all the same.
        let _ = self.sender.send(Arc::new(event));
    }

    /// How often each call is to be told: the most frequent wish for it.
    pub(crate) fn weights(&self) -> HashMap<Call, u32> {
        let mut all = HashMap::<Call, u32>::new();
        for wanted in lock(&self.listeners).values() {
            for (&call, &weight) in wanted {
                all.entry(call)
                    .and_modify(|before| *before = weight.min(*before))
                    .or_insert(weight);
            }
        }
        all
    }

    /// Listens from now on.
    ///
    /// # Errors
    /// If the programs cannot be told to send events.
    pub(crate) fn subscribe(
        core: &Arc<Core>,
        filter: &LiveCallFilter,
    ) -> Result<CallSubscription, LoadError> {
        let live = &core.syscalls.live;
        let number = live.next.fetch_add(1, Ordering::Relaxed);
        lock(&live.listeners).insert(number, filter.weights());
        let subscription = CallSubscription {
            receiver: live.sender.subscribe(),
            core: core.clone(),
            number,
        };
        // Dropped, it takes its wishes back.
        lock(&core.syscalls.probe).apply_weights(live)?;
        Ok(subscription)
    }
}

/// Events for one listener.
#[derive(Debug)]
pub(crate) struct CallSubscription {
    receiver: broadcast::Receiver<Arc<LiveCall>>,
    core: Arc<Core>,
    number: u64,
}

/// What a listener gets.
#[derive(Debug)]
pub(crate) enum ReceivedCall {
    /// An event.
    Event(Arc<LiveCall>),
    /// So many events were missed here.
    Missed(u64),
}

impl CallSubscription {
    /// The next event; `None` when the agent ends. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<ReceivedCall> {
        let live = &self.core.syscalls.live;
        match self.receiver.recv().await {
            Ok(event) => {
                live.delivered.fetch_add(1, Ordering::Relaxed);
                Some(ReceivedCall::Event(event))
            }
            Err(RecvError::Lagged(missed)) => {
                live.missed.fetch_add(missed, Ordering::Relaxed);
                Some(ReceivedCall::Missed(missed))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

impl Drop for CallSubscription {
    fn drop(&mut self) {
        let syscalls = &self.core.syscalls;
        lock(&syscalls.live.listeners).remove(&self.number);
        if let Err(error) = lock(&syscalls.probe).apply_weights(&syscalls.live) {
            warn!(%error, "the syscall programs go on sending events that nobody reads");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Arc<BTreeSet<Call>> {
        Arc::new(Call::named("execve").into_iter().collect())
    }

    fn filter(calls: &[&str], sampling: u32) -> Result<LiveCallFilter, CallQueryError> {
        let filter = v1::SyscallFilter {
            syscalls: calls.iter().map(|&call| call.to_owned()).collect(),
            ..v1::SyscallFilter::default()
        };
        LiveCallFilter::new(Some(&filter), sampling, &told())
    }

    #[test]
    fn calls_are_told_as_often_as_somebody_wants() {
        let live = SyscallLive::new((*told()).clone(), 16);
        let (read, execve) = (Call::parse("read").unwrap()[0], Call::parse("execve").unwrap()[0]);
        assert!(live.weights().is_empty());
        let listen = |number, filter: &LiveCallFilter| lock(&live.listeners).insert(number, filter.weights());
        listen(0, &LiveCallFilter::new(None, 0, &told()).unwrap());
        assert_eq!(live.weights().get(&execve), Some(&1));
        assert_eq!(live.weights().get(&read), None);
        listen(1, &filter(&["read", "execve"], 100).unwrap());
        listen(2, &filter(&["read"], 10).unwrap());
        assert_eq!((live.weights()[&read], live.weights()[&execve]), (10, 1));
        lock(&live.listeners).remove(&2);
        assert_eq!(live.weights()[&read], 100);
    }

    #[test]
    fn what_would_never_come_is_refused() {
        let error = |result: Result<LiveCallFilter, CallQueryError>| result.unwrap_err().to_string();
        let never = error(filter(&["read"], 0));
        assert!(
            never.contains("only execve are") && never.contains("syscall_sampling"),
            "{never}"
        );
        assert!(error(filter(&[], 100)).contains("name them"));
        assert!(error(filter(&["read"], 1_000_001)).contains("1000001"));
        assert!(filter(&["read", "execve"], 0).is_ok());
        let errnos = v1::SyscallFilter {
            errnos: vec!["ENOENT".to_owned()],
            ..v1::SyscallFilter::default()
        };
        assert!(error(LiveCallFilter::new(Some(&errnos), 0, &told())).contains("errnos"));
    }
}
