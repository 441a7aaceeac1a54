//! Prometheus metrics.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};

use futures::future::BoxFuture;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tower::{Layer, Service};

use crate::status::{State, process};

/// Seconds until an answer begins.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// What is counted as requests pass.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<Request, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        }
    }
}

impl Metrics {
    /// The page. The metrics that others count are read now.
    pub(crate) fn page(&self, state: &State) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("orb8_server");
        registry.register(
            "requests",
            "Requests, by method and gRPC status code with which the answer began",
            self.requests.clone(),
        );
        registry.register(
            "answer_seconds",
            "Time until the answer began: until all agents that were asked had said something",
            self.seconds.clone(),
        );
        let gauge = |registry: &mut Registry, name: &str, help: &str, value: f64| {
            let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        };
        let counter = |registry: &mut Registry, name: &str, help: &str, value: u64| {
            let counter = Counter::<u64>::default();
            counter.inc_by(value);
            registry.register(name, help, counter);
        };
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let agents = Family::<Kind, Gauge>::default();
        let told = state.agents();
        for (state, count) in [
            ("connected", told.connected),
            ("unreachable", told.unreachable),
            ("silent", told.silent),
        ] {
            agents.get_or_create(&Kind { state }).set(count.cast_signed());
        }
        registry.register("agents", "Agents that were found, by how they are", agents);
        let registry_mut = &mut registry;
        let pool = &state.pool;
        counter(
            registry_mut,
            "heartbeats",
            "Heartbeats sent to agents",
            load(&pool.heartbeats),
        );
        counter(
            registry_mut,
            "heartbeat_failures",
            "Heartbeats that were not answered",
            load(&pool.heartbeat_failures),
        );
        counter(
            registry_mut,
            "agent_connects",
            "Times that an agent began to answer",
            load(&pool.connects),
        );
        let hub = &state.hub;
        counter(
            registry_mut,
            "refused",
            "Questions and streams refused: too many at once",
            load(&hub.refused),
        );
        counter(
            registry_mut,
            "cut_off",
            "Clients cut off, since they took nothing for too long",
            load(&hub.cut_off),
        );
        counter(
            registry_mut,
            "events",
            "Events handed on to clients",
            load(&hub.events),
        );
        counter(
            registry_mut,
            "events_lost",
            "Events that clients were too slow to take",
            load(&hub.events_lost),
        );
        let failures = Family::<Kind, Counter>::default();
        for (state, count) in [
            ("silent", load(&hub.silent)),
            ("unreachable", load(&hub.unreachable)),
            ("error", load(&hub.errors)),
        ] {
            failures.get_or_create(&Kind { state }).inc_by(count);
        }
        registry_mut.register(
            "agent_failures",
            "Answers of agents that did not come, or not to the end",
            failures,
        );
        let refusals = Family::<Reason, Counter>::default();
        for (reason, count) in state.refusals.refused() {
            refusals.get_or_create(&Reason { reason }).inc_by(count);
        }
        registry_mut.register(
            "guard_refused",
            "Requests that were refused, by reason: who asked may not, or may not so much",
            refusals,
        );
        counter(
            registry_mut,
            "guard_dropped",
            "Rows and events that agents gave and that who asked may not see: agents of an older version",
            load(&state.refusals.dropped),
        );
        counter(
            registry_mut,
            "reviews",
            "Questions to the API server: whose token it is, and what they may see",
            load(&state.refusals.reviews),
        );
        counter(
            registry_mut,
            "review_failures",
            "Of these, those that it did not answer",
            load(&state.refusals.reviews_failed),
        );
        let connections = Family::<Kind, Counter>::default();
        for (state, count) in [
            ("accepted", load(&state.connections.accepted)),
            ("refused", load(&state.connections.refused)),
            ("handshake_failed", load(&state.connections.handshake_failed)),
            ("timed_out", load(&state.connections.timed_out)),
        ] {
            connections.get_or_create(&Kind { state }).inc_by(count);
        }
        registry_mut.register("connections", "Connections, by what became of them", connections);
        gauge(
            registry_mut,
            "open_connections",
            "Connections that are open",
            load(&state.connections.open) as f64,
        );
        let (queries, streams) = state.in_use();
        gauge(
            registry_mut,
            "queries_in_use",
            "Questions being answered",
            queries as f64,
        );
        gauge(
            registry_mut,
            "streams_in_use",
            "Clients that follow events",
            streams as f64,
        );
        let age = state
            .discovery
            .watches
            .iter()
            .map(|watch| watch.age().as_secs_f64());
        gauge(
            registry_mut,
            "discovery_age_seconds",
            "Age of what is known of agents and pods; 0 while the API server is watched",
            age.fold(0.0, f64::max),
        );
        gauge(
            registry_mut,
            "clock_offset_seconds",
            "How far the clock of an agent is off this server's, at most",
            state.clock_offset(),
        );
        let (memory, cpu) = process();
        gauge(
            registry_mut,
            "resident_memory_bytes",
            "Memory of this process",
            memory as f64,
        );
        gauge(
            registry_mut,
            "cpu_seconds",
            "Processor time of this process since its start",
            cpu.as_secs_f64(),
        );
        let mut page = String::new();
        encode(&mut page, &registry)?;
        page.write_str("")?;
        Ok(page)
    }

    fn observe(&self, method: &str, code: &str, seconds: f64) {
        self.requests
            .get_or_create(&Request {
                method: method.to_owned(),
                code: code.to_owned(),
            })
            .inc();
        self.seconds
            .get_or_create(&Method {
                method: method.to_owned(),
            })
            .observe(seconds);
    }
}

/// Counts requests.
#[derive(Clone, Debug)]
pub(crate) struct Observe {
    metrics: Arc<Metrics>,
}

impl Observe {
    pub(crate) const fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub(crate) struct Observed<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, In, Out> Service<hyper::Request<In>> for Observed<S>
where
    S: Service<hyper::Request<In>, Response = hyper::Response<Out>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: hyper::Request<In>) -> Self::Future {
        // Of known methods only: a path is whatever a client sends.
        let method = match request.uri().path().rsplit_once('/') {
            Some(("/orb8.v1.OrbitService", method)) if METHODS.contains(&method) => method.to_owned(),
            _ => "other".to_owned(),
        };
        let (metrics, begin) = (self.metrics.clone(), Instant::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // An answer that is an error alone has its code in the head.
            let code = response.headers().get("grpc-status");
            let code = code
                .and_then(|code| code.to_str().ok())
                .filter(|code| code.len() <= 2)
                .unwrap_or("0");
            metrics.observe(&method, code, begin.elapsed().as_secs_f64());
            Ok(response)
        })
    }
}

/// Of the protocol.
const METHODS: [&str; 10] = [
    "QueryFlows",
    "GetAgentStatus",
    "StreamEvents",
    "ListPods",
    "QuerySyscalls",
    "SetSyscallMode",
    "QueryEdges",
    "ListNodes",
    "QueryStatus",
    "QueryPods",
];
