//! A connection to each agent, and how it is.
//!
//! Each agent has a task that asks it regularly whether it lives ([`heartbeat`]), which also tells what
//! time it has. What the tasks find is published together, so that a thousand changes are not a thousand copies.

mod heartbeat;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use orb8_fleet::{Clock, Member, Members, Reach, Trouble, innermost};
use orb8_proto::v1::{ListPodsRequest, NodeInfo, NodeState, orbit_service_client::OrbitServiceClient};
use orb8_tls::{Connector, dial};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tracing::{debug, info};

use self::heartbeat::{ClockSamples, heartbeat};
use crate::{
    discovery::{Agents, Discovery, Found},
    pods::PodMap,
    wall_clock,
};

/// Changes are published no more often than this.
const PUBLISH: Duration = Duration::from_millis(50);
/// How long connecting takes at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// First contacts at the same time: a thousand handshakes at once would have all wait for the last.
const FIRST_CONTACTS: usize = 64;
/// An agent that is away is tried again after this, and after twice as long each time, up to the most.
const BACK_OFF: Duration = Duration::from_millis(500);
const BACK_OFF_MOST: Duration = Duration::from_secs(10);
/// An agent that has left is named in answers for so long: another one may be about to take its place, and until then the
/// node's part is missing.
const LEFT_NAMED: Duration = Duration::from_mins(1);
/// Bytes that an agent may send before they are taken: of one answer, and of all of its answers together. A thousand agents
/// may all be at this limit.
const WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Largest message that is taken from an agent.
const MAX_MESSAGE: usize = 16 << 20;

/// What the pool has counted.
#[derive(Debug, Default)]
pub(crate) struct PoolCounts {
    pub(crate) heartbeats: AtomicU64,
    pub(crate) heartbeat_failures: AtomicU64,
    pub(crate) connects: AtomicU64,
}

/// The agents.
pub(crate) struct Pool {
    pub(crate) members: Members,
    pub(crate) counts: Arc<PoolCounts>,
}

/// What tasks share.
struct Shared {
    members: Mutex<BTreeMap<String, Member>>,
    changed: Notify,
    counts: Arc<PoolCounts>,
    pods: Option<Arc<PodMap>>,
    tls: Option<Connector>,
    insecure: bool,
    heartbeat: Duration,
    /// See [`LEFT_NAMED`].
    left_named: Duration,
    contacts: Semaphore,
}

impl Pool {
    /// Follows what discovery finds, until `stop`.
    pub(crate) fn start(
        discovery: &Discovery,
        tls: Option<Connector>,
        insecure: bool,
        heartbeat: Duration,
        stop: &CancellationToken,
    ) -> Self {
        let counts = Arc::new(PoolCounts::default());
        let shared = Arc::new(Shared {
            members: Mutex::default(),
            changed: Notify::new(),
            counts: counts.clone(),
            pods: discovery.pods.clone(),
            tls,
            insecure,
            heartbeat,
            left_named: LEFT_NAMED,
            contacts: Semaphore::new(FIRST_CONTACTS),
        });
        let (sender, members) = watch::channel(Arc::from([]));
        tokio::spawn(publish(shared.clone(), sender, stop.clone()));
        tokio::spawn(follow(shared, discovery.agents.clone(), stop.clone()));
        Self { members, counts }
    }
}

/// Sends the members on, some time after they change.
async fn publish(shared: Arc<Shared>, sender: watch::Sender<Arc<[Member]>>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.changed.notified() => {}
        }
        let members: Arc<[Member]> = shared.lock().values().cloned().collect();
        sender.send_replace(members);
        tokio::time::sleep(PUBLISH).await;
    }
}

/// A task that keeps an agent, and what it was begun for.
struct Kept {
    found: Found,
    stop: CancellationToken,
    retry: Arc<Notify>,
}

/// Begins and ends the agents' tasks.
async fn follow(
    shared: Arc<Shared>,
    mut agents: watch::Receiver<Option<Arc<Agents>>>,
    stop: CancellationToken,
) {
    let mut kept: BTreeMap<String, Kept> = BTreeMap::new();
    // Until when they are named.
    let mut left: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let now = agents.borrow_and_update().clone();
        if let Some(now) = now {
            if let Some(pods) = &shared.pods {
                pods.set_nodes(now.keys().cloned().collect());
            }
            kept.retain(|name, old| {
                if now
                    .get(name)
                    .is_some_and(|found| found.address == old.found.address)
                {
                    return true;
                }
                old.stop.cancel();
                if !now.contains_key(name) {
                    info!(node = name, "an agent has left");
                    left.insert(name.clone(), Instant::now() + shared.left_named);
                    shared.update(name, |member| {
                        let reason = "its agent has left, and no other has come".to_owned();
                        member.reach = Reach::Away {
                            state: NodeState::Unreachable,
                            reason,
                        };
                    });
                }
                false
            });
            for (name, found) in now.iter() {
                left.remove(name);
                match kept.get_mut(name) {
                    Some(old) if old.found == *found => {}
                    Some(old) => {
                        // A pod took another's place at the same address, or is ready now.
                        old.found = found.clone();
                        shared.update(name, |member| {
                            member.info.agent.clone_from(&found.pod);
                            member.info.reason.clone_from(&found.note);
                        });
                        old.retry.notify_one();
                    }
                    None => {
                        let begun = Kept {
                            found: found.clone(),
                            stop: stop.child_token(),
                            retry: Arc::default(),
                        };
                        tokio::spawn(keep(
                            shared.clone(),
                            name.clone(),
                            found.clone(),
                            begun.retry.clone(),
                            begun.stop.clone(),
                        ));
                        kept.insert(name.clone(), begun);
                    }
                }
            }
            shared.changed.notify_one();
        }
        left.retain(|name, until| {
            if *until > Instant::now() {
                return true;
            }
            shared.lock().remove(name);
            shared.changed.notify_one();
            false
        });
        let next = left.values().min().copied();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            changed = agents.changed() => if changed.is_err() { return },
        }
    }
}

/// Keeps one agent, for as long as it is found there.
async fn keep(shared: Arc<Shared>, name: String, found: Found, retry: Arc<Notify>, stop: CancellationToken) {
    let trouble = Trouble::default();
    let away = |reason: String| Reach::Away {
        state: NodeState::Unreachable,
        reason,
    };
    let channel = match shared.channel(&found.address, &trouble) {
        Ok(channel) => channel,
        Err(reason) => {
            shared.insert(&name, &found, away(reason), &trouble);
            return;
        }
    };
    shared.insert(&name, &found, away("not connected yet".to_owned()), &trouble);
    let mut client = OrbitServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let mut clock = ClockSamples::default();
    let mut back_off = BACK_OFF;
    let mut alive = false;
    loop {
        let permit = match alive {
            true => None,
            false => tokio::select! {
                () = stop.cancelled() => return,
                permit = shared.contacts.acquire() => permit.ok(),
            },
        };
        let beat = tokio::select! {
            () = stop.cancelled() => return,
            beat = heartbeat(&mut client, shared.heartbeat.max(CONNECT_TIMEOUT)) => beat,
        };
        shared.counts.heartbeats.fetch_add(1, Ordering::Relaxed);
        let wait = match beat {
            Ok(beat) => {
                if !alive {
                    alive = true;
                    back_off = BACK_OFF;
                    shared.counts.connects.fetch_add(1, Ordering::Relaxed);
                    info!(node = name, address = found.address, "an agent is connected");
                }
                clock.add(&beat);
                shared.update(&name, |member| {
                    if stop.is_cancelled() {
                        return;
                    }
                    if member.info.started != beat.info.started && member.info.started.is_some() {
                        // Another process: what it keeps began with it.
                        member.info.connects += 1;
                    } else if matches!(member.reach, Reach::Away { .. }) {
                        member.info.connects += 1;
                    }
                    member.reach = Reach::Channel(channel.clone());
                    member.clock = clock.clock();
                    let old = std::mem::take(&mut member.info);
                    member.info = NodeInfo {
                        address: old.address,
                        agent: old.agent,
                        reason: note(&old.reason, &name, &found, &beat.info),
                        connects: old.connects,
                        time: None,
                        heard: Some(wall_clock::timestamp()),
                        round_trip: clock.round_trip().map(wall_clock::duration),
                        transport: shared.transport().to_owned(),
                        ..beat.info
                    };
                });
                learn_pods(&shared, &name, &mut client).await;
                drop(permit);
                // Not all at the same moment.
                shared.heartbeat.mul_f64(spread())
            }
            Err(status) => {
                shared.counts.heartbeat_failures.fetch_add(1, Ordering::Relaxed);
                let (state, reason) = explain(&status, &trouble);
                debug!(node = name, reason, "an agent does not answer");
                if std::mem::take(&mut alive) {
                    info!(node = name, reason, "an agent does not answer any more");
                    clock = ClockSamples::default();
                }
                shared.update(&name, |member| {
                    if !stop.is_cancelled() {
                        member.reach = Reach::Away { state, reason };
                    }
                });
                drop(permit);
                let wait = back_off.mul_f64(spread());
                back_off = (back_off * 2).min(BACK_OFF_MOST);
                wait
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = retry.notified() => {
                // Something is new there: soon again, but not by a thousand at the same moment.
                tokio::time::sleep(BACK_OFF.mul_f64(spread() - 0.5)).await;
                back_off = BACK_OFF;
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What is to be said of an agent that answers.
fn note(old: &str, name: &str, found: &Found, info: &NodeInfo) -> String {
    let mut notes = Vec::new();
    if !found.note.is_empty() {
        notes.push(found.note.clone());
    } else if old.starts_with("another agent") {
        notes.push(old.to_owned());
    }
    let by_address = name == found.address;
    if !by_address && !info.name.is_empty() && info.name != name {
        notes.push(format!("its agent says that it is node {}", info.name));
    }
    let own = env!("CARGO_PKG_VERSION");
    if info.version.is_empty() {
        notes.push(format!(
            "its agent does not tell its version; this server is {own}"
        ));
    } else if info.version != own {
        notes.push(format!(
            "its agent is of version {}, this server of {own}",
            info.version
        ));
    }
    notes.join("; ")
}

/// Which pods an agent knows, also those that ended before this server looked; if that is not known yet.
async fn learn_pods(shared: &Shared, name: &str, client: &mut OrbitServiceClient<Channel>) {
    let Some(pods) = &shared.pods else { return };
    let Some(listing) = pods.wants(name) else { return };
    let asked = client.list_pods(ListPodsRequest::default());
    match tokio::time::timeout(CONNECT_TIMEOUT, asked).await {
        Ok(Ok(answer)) => pods.agent_told(name, listing, answer.into_inner().pods),
        // All agents are asked until it has told.
        Ok(Err(error)) => debug!(node = name, %error, "an agent does not tell its pods"),
        Err(_) => debug!(node = name, "an agent does not tell its pods in time"),
    }
}

fn explain(status: &Status, trouble: &Trouble) -> (NodeState, String) {
    let reason = match status.code() {
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal => trouble
            .get()
            .or_else(|| std::error::Error::source(status).map(innermost))
            .unwrap_or_else(|| status.message().to_owned()),
        Code::DeadlineExceeded => return (NodeState::Silent, status.message().to_owned()),
        code => format!("{} ({code:?})", status.message()),
    };
    (NodeState::Unreachable, reason)
}

/// Between a half and one and a half.
fn spread() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    0.5 + (RandomState::new().hash_one(0) % 1000) as f64 / 1000.0
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, name: &str, found: &Found, reach: Reach, trouble: &Trouble) {
        let member = Member {
            name: name.to_owned(),
            reach,
            clock: Clock::default(),
            info: NodeInfo {
                name: name.to_owned(),
                address: found.address.clone(),
                agent: found.pod.clone(),
                reason: found.note.clone(),
                ..NodeInfo::default()
            },
            trouble: trouble.clone(),
        };
        self.lock().insert(name.to_owned(), member);
        self.changed.notify_one();
    }

    fn update(&self, name: &str, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.lock().get_mut(name) {
            change(member);
            self.changed.notify_one();
        }
    }

    /// A channel that connects by itself.
    fn channel(&self, address: &str, trouble: &Trouble) -> Result<Channel, String> {
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let loopback = host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
            || host == "localhost";
        if self.tls.is_none() && !self.insecure && !loopback {
            return Err(
                "it is not on loopback, and this server has no certificates: give --tls-ca, --tls-cert and --tls-key, or \
                 --insecure"
                    .to_owned(),
            );
        }
        let (tls, trouble) = (self.tls.clone(), trouble.clone());
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .user_agent(concat!("orb8-server/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| error.to_string())?
            .connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
                let (tls, trouble) = (tls.clone(), trouble.clone());
                async move {
                    let dialed = tokio::time::timeout(CONNECT_TIMEOUT, dial(uri, tls)).await;
                    let dialed = dialed.unwrap_or_else(|_| {
                        Err(std::io::Error::new(
                            std::io::ErrorKind::TimedOut,
                            format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
                        ))
                    });
                    trouble.set(dialed.as_ref().err().map(ToString::to_string));
                    dialed
                }
            })))
    }

    const fn transport(&self) -> &'static str {
        if self.tls.is_some() {
            "TLS 1.3"
        } else {
            "plain text"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_that_left_is_named_for_some_time() {
        let shared = Arc::new(Shared {
            members: Mutex::default(),
            changed: Notify::new(),
            counts: Arc::default(),
            pods: None,
            tls: None,
            insecure: false,
            heartbeat: Duration::from_secs(1),
            left_named: Duration::from_millis(500),
            contacts: Semaphore::new(1),
        });
        let found = Found {
            address: "127.0.0.1:1".to_owned(),
            ..Found::default()
        };
        let one: Arc<Agents> = Arc::new([("n1".to_owned(), found)].into());
        let (agents, receiver) = watch::channel(Some(one.clone()));
        let stop = CancellationToken::new();
        let _guard = stop.clone().drop_guard();
        tokio::spawn(follow(shared.clone(), receiver, stop));
        let reason = || {
            let members = shared.lock();
            members.get("n1").map(|member| match &member.reach {
                Reach::Away { reason, .. } => reason.clone(),
                Reach::Channel(_) => "connected".to_owned(),
            })
        };
        let within = async |what: &str, is: &dyn Fn(Option<String>) -> bool| {
            for _ in 0..500 {
                if is(reason()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{what}: {:?}", reason());
        };
        let has_left = |reason: Option<String>| reason.is_some_and(|reason| reason.contains("has left"));
        within("found", &|reason| reason.is_some()).await;
        agents.send_replace(Some(Arc::default()));
        within("named", &has_left).await;
        // Back in time.
        agents.send_replace(Some(one));
        within("back", &|reason| reason.is_some() && !has_left(reason)).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(reason().is_some() && !has_left(reason()), "{:?}", reason());
        agents.send_replace(Some(Arc::default()));
        within("named again", &has_left).await;
        within("forgotten", &|reason| reason.is_none()).await;
    }
}
