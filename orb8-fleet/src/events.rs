//! Events of many nodes in one stream.
//!
//! Each member has a task that follows it, and begins anew when the connection breaks. All hand their events to one bounded
//! queue; what a slow client makes overflow is counted, and told.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use orb8_proto::{
    Responses,
    v1::{
        EventBatch, EventLoss, GpuEvent, NetworkEvent, NodeAnswer, NodeState, StreamEventsRequest,
        StreamEventsResponse, stream_events_response::Event,
    },
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tonic::{Code, Status};

use crate::{
    ask::{Asked, Selection, nobody},
    hosts::{name_hosts, name_node},
    hub::Hub,
    member::Reach,
    times::shift_event,
};

/// Messages of all members that wait for the client.
const QUEUE: usize = 1024;
/// Events of one message.
const BATCH: usize = 512;
/// A member that ended its stream is tried again after this, and after twice as long each time up to the most.
const BACK_OFF: Duration = Duration::from_millis(250);
const BACK_OFF_MOST: Duration = Duration::from_secs(10);
/// How often losses of the queue are told.
const LOSS_REPORT: Duration = Duration::from_secs(1);

/// What members' tasks say.
enum Told {
    /// Some events of one.
    Events(Vec<StreamEventsResponse>),
    /// A member's events begin, or end; `refused`: the request makes no sense to it.
    Node {
        answer: Box<NodeAnswer>,
        refused: Option<Status>,
    },
}

/// Between members' tasks and the client's.
#[derive(Clone)]
struct Queue {
    sender: mpsc::Sender<Told>,
    lost: Arc<AtomicU64>,
}

impl Hub {
    /// Events of all members.
    pub(crate) async fn events(
        &self,
        request: StreamEventsRequest,
    ) -> Result<Responses<StreamEventsResponse>, Status> {
        let permit = self.stream_permit()?;
        let batch = request.batch;
        let nodes = request.nodes.clone();
        let own = StreamEventsRequest {
            nodes: Vec::new(),
            batch: true,
            ..request
        };
        let Selection { asked, others, .. } = self.select(&nodes, None)?;
        let (sender, mut told) = mpsc::channel(QUEUE);
        let queue = Queue {
            sender,
            lost: Arc::default(),
        };
        let mut followers = Followers {
            hub: self.clone(),
            request: own,
            queue: queue.clone(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
        };
        let mut waiting: std::collections::BTreeSet<String> =
            asked.iter().map(|asked| asked.member.name.clone()).collect();
        let mut answers = others;
        for asked in asked {
            followers.follow(asked);
        }
        // Whether anybody answers, and what is said meanwhile.
        let mut early = Vec::new();
        let end = Instant::now() + self.limits.deadline;
        while !waiting.is_empty() {
            match tokio::time::timeout_at(end, told.recv()).await {
                Ok(Some(Told::Node { answer, refused })) => {
                    if let Some(refused) = refused {
                        return Err(Status::invalid_argument(refused.message()));
                    }
                    waiting.remove(&answer.name);
                    answers.push(*answer);
                }
                Ok(Some(Told::Events(events))) => early.extend(events),
                Ok(None) | Err(_) => break,
            }
            if early.len() > BATCH {
                // Who is fast is not to wait for who is slow.
                break;
            }
        }
        if waiting.is_empty()
            && let Some(error) = nobody(&answers, None)
        {
            return Err(error);
        }
        let counts = self.counts.clone();
        let mut members = self.members.clone();
        Ok(self.deliver(permit, async move |out| {
            // Who answers is told only where there is more than one to tell of.
            let many = answers.len() + waiting.len() > 1;
            if many {
                let first = answers.into_iter().map(Event::Node).map(response);
                out.send_all(first.collect(), batch).await?;
            }
            out.send_all(early, batch).await?;
            let mut report = tokio::time::interval(LOSS_REPORT);
            report.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    some = told.recv() => {
                        let Some(some) = some else { return Ok(()) };
                        let mut events = Vec::new();
                        let mut next = Some(some);
                        while let Some(told_now) = next.take() {
                            match told_now {
                                Told::Events(more) => events.extend(more),
                                Told::Node { answer, .. } if many => events.push(response(Event::Node(*answer))),
                                Told::Node { .. } => {}
                            }
                            if events.len() < BATCH {
                                next = told.try_recv().ok();
                            }
                        }
                        out.send_all(events, batch).await?;
                    }
                    changed = members.changed() => {
                        if changed.is_err() {
                            // Whoever kept the members is gone: so is the service.
                            return out.fail(Status::unavailable("the server is stopping; ask again")).await;
                        }
                        let gone = followers.adjust(&nodes);
                        let gone = gone.into_iter().map(Event::Node).map(response).collect();
                        if many {
                            out.send_all(gone, batch).await?;
                        }
                    }
                    _ = report.tick() => {
                        let lost = queue.lost.swap(0, Ordering::Relaxed);
                        if lost > 0 {
                            counts.events_lost.fetch_add(lost, Ordering::Relaxed);
                            let loss = EventLoss { stream: lost, ..EventLoss::default() };
                            out.send_all(vec![response(Event::Loss(loss))], batch).await?;
                        }
                    }
                }
            }
        }))
    }
}

/// The tasks of the members that are followed. They end with it.
struct Followers {
    hub: Hub,
    request: StreamEventsRequest,
    queue: Queue,
    tasks: JoinSet<()>,
    running: HashMap<String, tokio::task::AbortHandle>,
}

impl Followers {
    fn follow(&mut self, asked: Asked) {
        let name = asked.member.name.clone();
        let task = self.tasks.spawn(follow(
            self.hub.clone(),
            asked,
            self.request.clone(),
            self.queue.clone(),
        ));
        self.running.insert(name, task);
    }

    /// Follows members that have come, and no longer those that have gone: these are returned.
    fn adjust(&mut self, nodes: &[String]) -> Vec<NodeAnswer> {
        let members = self.hub.members.borrow().clone();
        let mut gone = Vec::new();
        self.running.retain(|name, task| {
            let member = members.iter().find(|member| member.name == *name);
            let (state, reason) = match member.map(|member| &member.reach) {
                Some(Reach::Channel(_)) if !task.is_finished() => return true,
                Some(Reach::Channel(_)) => return false,
                Some(Reach::Away { state, reason }) => (*state, reason.clone()),
                None => (NodeState::Unreachable, "it has left the cluster".to_owned()),
            };
            task.abort();
            gone.push(NodeAnswer {
                name: name.clone(),
                state: state.into(),
                reason,
                ..NodeAnswer::default()
            });
            false
        });
        let wanted: Vec<String> = members
            .iter()
            .filter(|member| member.is_wanted(nodes))
            .map(|member| member.name.clone())
            .filter(|name| !self.running.contains_key(name))
            .collect();
        if !wanted.is_empty()
            && let Ok(selection) = self.hub.select(&wanted, None)
        {
            for asked in selection.asked {
                self.follow(asked);
            }
        }
        while self.tasks.try_join_next().is_some() {}
        gone
    }
}

/// Follows one member for as long as the client stays.
async fn follow(hub: Hub, asked: Asked, request: StreamEventsRequest, queue: Queue) {
    let name = asked.member.name.clone();
    let mut back_off = BACK_OFF;
    let many = hub.members.borrow().len() > 1;
    let kinds = Kinds::of(&request);
    loop {
        let correction = correction_of(&hub, &name);
        let mut client = asked.client.clone();
        let opened = asked.within(client.stream_events(request.clone())).await;
        let status = match opened {
            Ok(stream) => {
                back_off = BACK_OFF;
                if !queue.node(asked.answered(), None).await {
                    return;
                }
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(event)) => queue.events(events_of(event, &name, correction, many, kinds)),
                        Ok(None) => break Status::unavailable("it ended its events"),
                        Err(status) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        hub.counts.failed(&status);
        let refused = (status.code() == Code::InvalidArgument).then(|| status.clone());
        if !queue.node(asked.failed(&status, 0), refused).await {
            return;
        }
        // By a part of its own, so that a thousand do not come back at once.
        tokio::time::sleep(back_off.mul_f64(spread(&name))).await;
        back_off = (back_off * 2).min(BACK_OFF_MOST);
    }
}

/// Between a half and one and a half, by name.
fn spread(name: &str) -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    0.5 + (RandomState::new().hash_one(name) % 1000) as f64 / 1000.0
}

fn correction_of(hub: &Hub, name: &str) -> i64 {
    hub.members
        .borrow()
        .iter()
        .find(|member| member.name == name)
        .map_or(0, |member| member.clock.correction_ns())
}

/// The kinds of events that a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kinds {
    network: bool,
    syscall: bool,
    gpu: bool,
}

impl Kinds {
    const fn of(request: &StreamEventsRequest) -> Self {
        let (network, syscall, gpu) = (
            request.network.is_some(),
            request.syscall.is_some(),
            request.gpu.is_some(),
        );
        let any = !network && !syscall && !gpu;
        Self {
            network: network || any,
            syscall: syscall || any,
            gpu: gpu || any,
        }
    }

    /// An agent that does not know of events of GPUs takes a request for these alone as one for all others.
    const fn include(self, event: &Event) -> bool {
        match event {
            Event::Network(_) => self.network,
            Event::Syscall(_) => self.syscall,
            Event::Gpu(_) => self.gpu,
            Event::Loss(_) | Event::Node(_) | Event::Batch(_) => true,
        }
    }
}

/// The events of a message, of these kinds, with times by our clock; losses and GPUs say whose they are.
fn events_of(
    message: StreamEventsResponse,
    name: &str,
    correction: i64,
    many: bool,
    kinds: Kinds,
) -> Vec<StreamEventsResponse> {
    let mut events = match message.event {
        Some(Event::Batch(batch)) => batch.events,
        Some(event) => vec![response(event)],
        None => Vec::new(),
    };
    events.retain(|response| response.event.as_ref().is_some_and(|event| kinds.include(event)));
    for event in events.iter_mut().filter_map(|response| response.event.as_mut()) {
        match event {
            Event::Loss(loss) => name.clone_into(&mut loss.node),
            Event::Network(NetworkEvent { flow: Some(flow), .. }) if many => name_hosts(flow),
            Event::Gpu(GpuEvent { node, .. }) => name_node(node, name, ""),
            _ => {}
        }
        match event {
            event if correction != 0 => shift_event(event, correction),
            _ => {}
        }
    }
    events
}

impl Queue {
    /// Events that have no room are counted.
    fn events(&self, events: Vec<StreamEventsResponse>) {
        let count = events.len() as u64;
        if count > 0 && self.sender.try_send(Told::Events(events)).is_err() {
            self.lost.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What becomes of a member is never left out. Whether anybody listens still.
    async fn node(&self, answer: NodeAnswer, refused: Option<Status>) -> bool {
        self.sender
            .send(Told::Node {
                answer: Box::new(answer),
                refused,
            })
            .await
            .is_ok()
    }
}

pub(crate) const fn response(event: Event) -> StreamEventsResponse {
    StreamEventsResponse { event: Some(event) }
}

/// Several as one message.
pub(crate) const fn batch(events: Vec<StreamEventsResponse>) -> StreamEventsResponse {
    response(Event::Batch(EventBatch { events }))
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::{FlowFilter, GpuFilter, SyscallEvent, SyscallFilter};

    use super::*;

    #[test]
    fn only_kinds_that_were_asked_for_are_handed_on() {
        let all = || {
            batch(vec![
                response(Event::Network(NetworkEvent::default())),
                response(Event::Syscall(SyscallEvent::default())),
                response(Event::Gpu(GpuEvent::default())),
                response(Event::Loss(EventLoss::default())),
            ])
        };
        let count = |network: bool, syscall: bool, gpu: bool| {
            let request = StreamEventsRequest {
                network: network.then(FlowFilter::default),
                syscall: syscall.then(SyscallFilter::default),
                gpu: gpu.then(GpuFilter::default),
                ..StreamEventsRequest::default()
            };
            events_of(all(), "n1", 0, true, Kinds::of(&request)).len()
        };
        assert_eq!(count(false, false, false), 4);
        assert_eq!(count(false, false, true), 2);
        assert_eq!(count(true, false, false), 2);
        assert_eq!(count(true, true, false), 3);
        assert_eq!(count(true, true, true), 4);
    }

    #[test]
    fn the_node_of_a_gpu_is_whose_agent_told_and_its_times_are_ours() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let told = response(Event::Gpu(GpuEvent {
            time: at(105),
            node: "somebody-else".to_owned(),
            holders: vec![orb8_proto::v1::GpuHolder {
                since: at(55),
                ..Default::default()
            }],
            ..GpuEvent::default()
        }));
        let kinds = Kinds::of(&StreamEventsRequest::default());
        let event = |name: &str| match events_of(told.clone(), name, 5_000_000_000, true, kinds)
            .remove(0)
            .event
        {
            Some(Event::Gpu(event)) => event,
            other => panic!("{other:?}"),
        };
        let named = event("n1");
        assert_eq!((named.node.as_str(), named.time), ("n1", at(100)));
        assert_eq!(named.holders[0].since, at(50));
        // Where only its address is known, it says itself where it is.
        assert_eq!(event("10.0.0.1:9090").node, "somebody-else");
    }
}
