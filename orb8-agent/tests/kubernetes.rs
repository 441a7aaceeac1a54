//! The watches against an API server on loopback that speaks the real protocol, and fails in the real ways.
#![allow(missing_docs, reason = "tests")]

mod support {
    pub(crate) mod api_server;
}

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use orb8_agent::{
    kubernetes::{
        Cluster, ClusterLimits, Holder, KubernetesOptions, Pod, Resource, Source, WatchState, watch,
    },
    probe::kernel_clock::unix_now_ns,
};
use serde_json::{Value, json};
use support::api_server::{Answer, ApiServer, Asked, eventually};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

const NODE: &str = "node-1";
const SECOND: u64 = 1_000_000_000;
const TCP: u8 = 6;

/// A cluster that is watched until the end of the test.
struct Watching {
    cluster: Arc<Cluster>,
    _stop: DropGuard,
}

impl Watching {
    fn begin(server: &ApiServer, all_pods: bool) -> Self {
        let options = KubernetesOptions {
            node: NODE.to_owned(),
            all_pods,
            limits: ClusterLimits::default(),
        };
        let stop = CancellationToken::new();
        let cluster = watch(server.config(), &Source::InCluster, &options, &stop).expect("a cluster");
        Self {
            cluster,
            _stop: stop.drop_guard(),
        }
    }

    /// Waits until everything has been listed and is being watched.
    async fn of(server: &ApiServer) -> Self {
        let watching = Self::begin(server, true);
        for resource in Resource::ALL {
            eventually("lists", || watching.state(resource).0.listed.then_some(())).await;
            eventually("watches", || {
                server
                    .asked(resource.name())
                    .iter()
                    .any(Asked::is_watch)
                    .then_some(())
            })
            .await;
        }
        watching
    }

    fn state(&self, resource: Resource) -> (WatchState, usize) {
        let watches = self.cluster.watches();
        let of = watches.into_iter().find(|(of, ..)| *of == resource);
        let (_, state, objects) = of.expect("every resource is watched");
        (state, objects)
    }

    fn pod(&self, uid: &str) -> Arc<Pod> {
        let pod = self.cluster.pod_by_uid(uid);
        pod.unwrap_or_else(|| panic!("{uid} is not known"))
    }

    /// Uid of the pod that had an address at a time, and the number of that claim.
    fn holder(&self, address: &str, time_ns: u64) -> Option<(String, u64)> {
        match self.cluster.holder(ip(address), time_ns)? {
            Holder::Pod(pod, claim) => Some((pod.uid.to_string(), claim)),
            Holder::Resident(..) | Holder::Node(_) | Holder::Service => None,
        }
    }

    fn holds(&self, address: &str) -> Option<String> {
        Some(self.holder(address, unix_now_ns())?.0)
    }

    async fn becomes(&self, address: &str, uid: &str) {
        eventually(&format!("{uid} at {address}"), || {
            (self.holds(address)? == uid).then_some(())
        })
        .await;
    }

    async fn gone(&self, uid: &str) {
        eventually(&format!("the end of {uid}"), || {
            self.cluster.pod_by_uid(uid)?.deleted.then_some(())
        })
        .await;
    }

    async fn failed(&self, resource: Resource) -> String {
        eventually("a failure", || self.state(resource).0.failure).await
    }

    async fn well(&self, resource: Resource) {
        eventually(&format!("{} to be watched again", resource.name()), || {
            let (state, _) = self.state(resource);
            (state.failure.is_none() && state.stale_since.is_none()).then_some(())
        })
        .await;
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A pod of another node, without address if that is empty. Its uid is `uid-NAME`.
fn pod(name: &str, address: &str) -> Value {
    let mut pod = json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "creationTimestamp": null,
                     "labels": {"app": "web"}},
        "spec": {"nodeName": "node-2", "containers": [{"name": "main", "image": "x"}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    });
    if !address.is_empty() {
        pod["status"]["phase"] = json!("Running");
        pod["status"]["podIP"] = json!(address);
        pod["status"]["podIPs"] = json!([{"ip": address}]);
    }
    pod
}

/// RFC 3339.
fn time(second: u64) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(second);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn started(mut pod: Value, second: u64) -> Value {
    let state = json!({"running": {"startedAt": time(second)}});
    pod["status"]["containerStatuses"] =
        json!([{"name": "main", "containerID": "containerd://0a", "state": state}]);
    pod
}

fn finished(mut pod: Value, from: u64, to: u64) -> Value {
    let state = json!({"terminated": {"exitCode": 0, "startedAt": time(from), "finishedAt": time(to)}});
    pod["status"]["phase"] = json!("Succeeded");
    pod["status"]["containerStatuses"] =
        json!([{"name": "main", "containerID": "containerd://0a", "state": state}]);
    pod
}

fn service(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
                 "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]},
        "status": {"loadBalancer": {}},
    })
}

fn slice(name: &str, service: &str, addresses: Option<&[&str]>) -> Value {
    let endpoints: Option<Value> =
        addresses.map(|addresses| json!([{"addresses": addresses, "conditions": {}}]));
    json!({
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"),
                     "labels": {"kubernetes.io/service-name": service, "service.kubernetes.io/headless": ""}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": endpoints.as_ref().map(|_| json!([{"name": "", "port": 8080, "protocol": "TCP"}])),
    })
}

fn node(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("uid-{name}")},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]},
    })
}

/// A pod's time with an address, as its statuses tell it.
struct Life {
    name: String,
    address: String,
    from: u64,
    to: Option<u64>,
    stays: bool,
}

impl Life {
    fn uid(&self) -> String {
        format!("uid-{}", self.name)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_thousand_changes_in_ten_seconds_none_is_lost() {
    const ADDRESSES: u64 = 50;
    const ROUNDS: u64 = 29;
    const STEP: u64 = 100;
    let server = ApiServer::start().await;
    let watching = Watching::of(&server).await;

    // Rounds lie in the past, so that who has an address when does not depend on when we hear of it.
    let begin = unix_now_ns() / SECOND - ROUNDS * STEP - 60;
    let mut lives = Vec::new();
    let mut batches: Vec<Vec<(Value, bool)>> = Vec::new();
    let mut late: Vec<Value> = Vec::new();
    for round in 0..ROUNDS {
        let from = begin + round * STEP;
        let last = round == ROUNDS - 1;
        let round: Vec<Life> = (0..ADDRESSES)
            .map(|index| Life {
                name: format!("pod-{round}-{index}"),
                address: format!("10.1.{}.{}", index / 7, index % 7 + 1),
                from,
                to: (index % 2 == 0).then_some(from + STEP / 2),
                stays: last && index % 5 != 0,
            })
            .collect();
        batches.push(round.iter().map(|life| (pod(&life.name, ""), true)).collect());
        let with_address = |life: &Life| (started(pod(&life.name, &life.address), life.from), true);
        // Objects of some that have ended go only when others have their addresses.
        let ends = late.drain(..).map(|object| (object, false));
        batches.push(round.iter().map(with_address).chain(ends).collect());
        let mut events = Vec::new();
        for life in &round {
            let mut object = pod(&life.name, &life.address);
            if let Some(to) = life.to {
                object = finished(object, life.from, to);
                events.push((object.clone(), true));
            }
            if life.to.is_some() && !last {
                late.push(object);
            } else if !life.stays {
                events.push((object, false));
            }
        }
        batches.push(events);
        lives.extend(round);
    }
    let total = batches.iter().map(Vec::len).sum::<usize>();
    assert!(total >= 5000, "{total}");

    let began = Instant::now();
    let mut sent = 0;
    for batch in batches {
        let mut last = HashMap::new();
        for (object, is_there) in batch {
            if is_there {
                server.apply("pods", object.clone());
            } else {
                server.delete("pods", &object);
            }
            sent += 1;
            last.insert(object["metadata"]["uid"].clone(), (object, is_there));
            let due = Duration::from_secs(10).mul_f64(sent as f64 / total as f64);
            sleep(due.saturating_sub(began.elapsed())).await;
        }
        eventually("all changes", || {
            (watching.state(Resource::Pods).0.events == sent).then_some(())
        })
        .await;
        // Each change counts, also where a later one would tell the same.
        for (uid, (object, is_there)) in last {
            let pod = watching.pod(uid.as_str().unwrap_or_default());
            assert_eq!(pod.deleted, !is_there, "{uid}");
            assert_eq!(pod.phase, object["status"]["phase"], "{uid}");
            assert_eq!(pod.ips.is_empty(), object["status"]["podIP"].is_null(), "{uid}");
        }
    }

    let (state, objects) = watching.state(Resource::Pods);
    assert_eq!((state.restarts, state.malformed, state.failure), (0, 0, None));
    let there: HashSet<String> = server
        .objects("pods")
        .iter()
        .map(|object| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(objects, there.len());
    for life in &lives {
        let pod = watching.pod(&life.uid());
        assert_eq!(pod.deleted, !there.contains(&life.uid()), "{}", life.name);
        assert_eq!(pod.ips, [ip(&life.address)]);
        let at = |second: u64| {
            let holder = watching.holder(&life.address, second * SECOND);
            holder.map(|(uid, _)| uid)
        };
        let uid = Some(life.uid());
        // In the second to which its beginning is rounded down, the one before may have had it still.
        assert!([None, uid.clone()].contains(&at(life.from)), "{}", life.name);
        assert_eq!(at(life.from + 1), uid);
        assert_eq!(at(life.from + STEP / 2), uid);
        // Who has finished has it for as long as its last packets may come, else until the next begins.
        let end = life.from + STEP - 5;
        assert_eq!(at(end), uid.filter(|_| life.to.is_none()), "{}", life.name);
    }
}

/// More than a page of pods; two go and one comes while nobody watches.
async fn changes_while_away(server: &mut ApiServer) -> Watching {
    for index in 0..1200 {
        let address = format!("10.2.{}.{}", index / 200, index % 200 + 1);
        server.apply("pods", pod(&format!("stays-{index:04}"), &address));
    }
    server.apply("pods", pod("goes", "10.3.0.1"));
    server.apply("pods", pod("hands-on", "10.3.0.2"));
    let watching = Watching::of(server).await;
    assert_eq!(watching.state(Resource::Pods).1, 1202);
    server.down().await;
    server.delete("pods", &pod("goes", ""));
    server.delete("pods", &pod("hands-on", ""));
    server.apply("pods", pod("new", "10.3.0.2"));
    server.compact();
    watching
}

async fn everything_is_right_after(server: &mut ApiServer, answer: Answer) {
    let watching = changes_while_away(server).await;
    let kept = watching.holder("10.2.5.200", unix_now_ns());
    assert_eq!(kept.as_ref().map(|(uid, _)| &**uid), Some("uid-stays-1199"));
    let before = unix_now_ns();
    server.answer("pods", answer);
    server.up().await;
    watching.gone("uid-goes").await;
    watching.gone("uid-hands-on").await;
    watching.becomes("10.3.0.2", "uid-new").await;
    watching.well(Resource::Pods).await;
    assert_eq!(watching.state(Resource::Pods).1, 1201);
    assert!(watching.state(Resource::Pods).0.restarts >= 1);
    // Number and name of an ownership do not change by being listed again, and the past stays.
    assert_eq!(watching.holder("10.2.5.200", unix_now_ns()), kept);
    let past = |address| watching.holder(address, before).map(|(uid, _)| uid);
    assert_eq!(past("10.3.0.1").as_deref(), Some("uid-goes"));
    assert_eq!(past("10.3.0.2").as_deref(), Some("uid-hands-on"));
    // What comes after is heard.
    server.apply("pods", pod("later", "10.3.0.3"));
    watching.becomes("10.3.0.3", "uid-later").await;

    let asked = server.asked("pods");
    let pages = asked.iter().filter(|asked| asked.query.contains_key("continue"));
    assert_eq!(pages.count(), 4, "two lists of three pages each");
    let lists = asked.iter().filter(|asked| !asked.is_watch());
    assert!(lists.clone().all(|asked| asked.query.contains_key("limit")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_expired_by_an_event_lists_again() {
    let mut server = ApiServer::start().await;
    everything_is_right_after(&mut server, Answer::Normal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_expired_by_an_http_status_lists_again() {
    let mut server = ApiServer::start().await;
    everything_is_right_after(&mut server, Answer::GoneByStatus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_where_it_was_cut() {
    let server = ApiServer::start().await;
    server.apply("pods", pod("a", "10.4.0.1"));
    let watching = Watching::of(&server).await;
    // A bookmark lets it go on from after the time that others forgot.
    server.apply("services", service("other", "10.96.0.1"));
    server.compact();
    server.bookmark("pods");
    server.apply("pods", pod("b", "10.4.0.2"));
    watching.becomes("10.4.0.2", "uid-b").await;
    server.write("pods", "{\"type\":\"ADDED\",\"object\":{\"metad");
    server.cut().await;
    server.apply("pods", pod("c", "10.4.0.3"));
    watching.becomes("10.4.0.3", "uid-c").await;
    let lists = server.asked("pods").into_iter().filter(|asked| !asked.is_watch());
    assert_eq!(lists.count(), 1, "nothing was missed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_line_or_an_error_in_the_stream_loses_no_change() {
    let server = ApiServer::start().await;
    server.apply("pods", pod("a", "10.4.1.1"));
    let watching = Watching::of(&server).await;
    // Whatever it stood for is found by listing.
    server.write("pods", "\u{1}\u{7f} no JSON at all\n");
    watching.failed(Resource::Pods).await;
    watching.well(Resource::Pods).await;
    let lists = server.asked("pods").into_iter().filter(|asked| !asked.is_watch());
    assert_eq!(lists.count(), 2);
    server.apply("pods", pod("b", "10.4.1.2"));
    watching.becomes("10.4.1.2", "uid-b").await;
    server.error("pods", 500);
    let reason = watching.failed(Resource::Pods).await;
    assert!(reason.contains("told by the test"), "{reason}");
    server.apply("pods", pod("c", "10.4.1.3"));
    watching.becomes("10.4.1.3", "uid-c").await;
    watching.well(Resource::Pods).await;
    assert_eq!(watching.holds("10.4.1.1").as_deref(), Some("uid-a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_known_last_serves_through_an_outage_and_recovery_needs_nobody() {
    let mut server = ApiServer::start().await;
    server.apply("pods", pod("a", "10.5.0.1"));
    server.apply("pods", pod("goes", "10.5.0.2"));
    server.apply("services", service("db", "10.96.0.9"));
    server.apply("endpointslices", slice("db-1", "headless", Some(&["10.5.0.1"])));
    server.apply("nodes", node(NODE, "192.0.2.1"));
    let watching = Watching::of(&server).await;
    let cluster = &watching.cluster;
    let whole = || {
        assert_eq!(watching.holds("10.5.0.1").as_deref(), Some("uid-a"));
        assert_eq!(
            cluster.service_at(ip("10.96.0.9"), 80, TCP).as_deref(),
            Some("shop/db")
        );
        let of_endpoint = cluster.service_of_endpoint(ip("10.5.0.1"), 8080, TCP);
        assert_eq!(of_endpoint.as_deref(), Some("shop/headless"));
        assert!(cluster.knows_own_node());
    };
    whole();

    server.down().await;
    for resource in Resource::ALL {
        // The first failure may be that of the connection that was cut.
        eventually("connections to be refused", || {
            let failure = watching.state(resource).0.failure?;
            failure.contains("refused").then_some(())
        })
        .await;
    }
    sleep(Duration::from_secs(2)).await;
    for resource in Resource::ALL {
        let (state, objects) = watching.state(resource);
        let age = state.stale_since.map(|since| since.elapsed());
        assert!(age.is_some_and(|age| age >= Duration::from_secs(2)), "{age:?}");
        assert!(state.listed && objects > 0);
    }
    whole();
    server.delete("pods", &pod("goes", ""));
    server.apply("pods", pod("comes", "10.5.0.3"));

    server.up().await;
    // Of services and nodes there is no news: that the API server answers is enough.
    for resource in Resource::ALL {
        watching.well(resource).await;
    }
    watching.gone("uid-goes").await;
    watching.becomes("10.5.0.3", "uid-comes").await;
    whole();
    for resource in Resource::ALL {
        let asked = server.asked(resource.name());
        let lists = asked.iter().filter(|asked| !asked.is_watch()).count();
        assert_eq!(lists, 1, "{} went on where they were", resource.name());
    }
}

/// Times between requests.
fn gaps(asked: &[Asked]) -> Vec<f64> {
    let pairs = asked.windows(2);
    pairs
        .map(|pair| (pair[1].at - pair[0].at).as_secs_f64())
        .collect()
}

/// Each time is at least twice what the one before was at least, and by jitter up to twice as long.
fn grow(gaps: &[f64]) {
    assert!((2..=6).contains(&gaps.len()), "{gaps:?}");
    let mut least = 0.8;
    for gap in gaps {
        assert!(*gap > least - 0.05, "at least {least}: {gaps:?}");
        assert!(*gap < 2.0 * least + 2.0, "at most {}: {gaps:?}", 2.0 * least);
        least *= 2.0;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_fail_are_tried_more_and_more_rarely_and_not_in_step() {
    let server = ApiServer::start().await;
    server.apply("pods", pod("a", "10.6.0.1"));
    for resource in Resource::ALL {
        server.answer(resource.name(), Answer::Status(500));
    }
    let watching = Watching::begin(&server, true);
    sleep(Duration::from_secs(9)).await;
    let mut firsts = Vec::new();
    for resource in Resource::ALL {
        let gaps = gaps(&server.asked(resource.name()));
        grow(&gaps);
        firsts.push(gaps[0]);
        let (state, _) = watching.state(resource);
        assert!(!state.listed && state.failure.is_some() && state.stale_since.is_some());
        assert_eq!(state.restarts, gaps.len() as u64 + 1);
        server.answer(resource.name(), Answer::Normal);
    }
    let (least, most) = firsts
        .iter()
        .fold((f64::MAX, 0.0_f64), |(a, b), gap| (a.min(*gap), b.max(*gap)));
    assert!(most - least > 0.01, "no jitter: {firsts:?}");
    watching.becomes("10.6.0.1", "uid-a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_fail_are_tried_more_and_more_rarely_and_at_once_after_the_next_failure() {
    let server = ApiServer::start().await;
    let watching = Watching::of(&server).await;
    for _ in 0..2 {
        // A short life would itself be a failure.
        sleep(Duration::from_millis(1200)).await;
        let before = server.asked("pods").len();
        server.answer("pods", Answer::Status(500));
        server.cut().await;
        sleep(Duration::from_secs(8)).await;
        grow(&gaps(&server.asked("pods")[before..]));
        server.answer("pods", Answer::Normal);
        watching.well(Resource::Pods).await;
    }
    // An API server, or what stands before it, that ends each watch at once, is not asked again at once.
    let before = server.asked("services").len();
    server.answer("services", Answer::NoStream);
    server.cut().await;
    sleep(Duration::from_secs(6)).await;
    let asked = server.asked("services");
    let gaps = gaps(&asked[before..]);
    assert!((1..=6).contains(&gaps.len()), "{gaps:?}");
    server.answer("services", Answer::Normal);
    server.apply("services", service("db", "10.96.0.9"));
    eventually("a Service", || {
        watching.cluster.service_at(ip("10.96.0.9"), 80, TCP)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forbidden_is_named_and_the_rest_works() {
    let server = ApiServer::start().await;
    server.apply("pods", pod("a", "10.7.0.1"));
    server.apply("services", service("db", "10.96.0.9"));
    server.apply("endpointslices", slice("db-1", "headless", Some(&["10.7.0.1"])));
    server.apply("nodes", node(NODE, "192.0.2.1"));
    server.answer("endpointslices", Answer::Status(403));
    let watching = Watching::begin(&server, true);
    watching.becomes("10.7.0.1", "uid-a").await;
    let reason = watching.failed(Resource::EndpointSlices).await;
    for word in ["get, list and watch", "endpointslices", "discovery.k8s.io"] {
        assert!(reason.contains(word), "{reason}");
    }
    for resource in [Resource::Pods, Resource::Services, Resource::Nodes] {
        watching.well(resource).await;
        assert_eq!(watching.state(resource).1, 1);
    }
    let (state, objects) = watching.state(Resource::EndpointSlices);
    assert!(!state.listed);
    assert_eq!(objects, 0);
    // Permission is given.
    server.answer("endpointslices", Answer::Normal);
    watching.well(Resource::EndpointSlices).await;
    let of_endpoint = watching.cluster.service_of_endpoint(ip("10.7.0.1"), 8080, TCP);
    assert_eq!(of_endpoint.as_deref(), Some("shop/headless"));
}

/// Pods that no API server would let in, each with a name of its own.
fn malformed_pods() -> Vec<Value> {
    let mut pods = Vec::new();
    let mut broken = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut pod = pod(name, "10.8.9.9");
        change(&mut pod);
        pods.push(pod);
    };
    broken("status", &|pod| pod["status"]["podIPs"] = json!({"ip": 7}));
    broken("spec", &|pod| pod["spec"] = json!("none"));
    broken("labels", &|pod| pod["metadata"]["labels"] = json!(["a", 1]));
    broken("owners", &|pod| {
        pod["metadata"]["ownerReferences"] = json!("Deployment");
    });
    broken("time", &|pod| pod["status"]["startTime"] = json!("yesterday"));
    broken("no-uid", &|pod| pod["metadata"]["uid"] = Value::Null);
    broken("uid", &|pod| pod["metadata"]["uid"] = json!([1]));
    broken("no-namespace", &|pod| pod["metadata"]["namespace"] = Value::Null);
    broken("control\u{1b}[31m\n", &|_| {});
    broken(&"long".repeat(100_000), &|_| {});
    pods
}

fn check_the_odd(watching: &Watching) {
    let ips = |name: &str| watching.pod(&format!("uid-{name}")).ips.clone();
    assert_eq!(ips("invalid-ips"), [ip("10.8.0.2")]);
    assert_eq!(ips("mapped"), [ip("10.8.0.3")]);
    assert_eq!(ips("twice"), [ip("10.8.0.4")]);
    for (name, address) in [
        ("unspecified", "0.0.0.0"),
        ("loopback", "127.0.0.1"),
        ("v6", "::"),
    ] {
        assert_eq!(ips(name), [] as [IpAddr; 0]);
        assert_eq!(watching.holds(address), None);
    }
    assert_eq!(watching.holds("10.8.0.2").as_deref(), Some("uid-invalid-ips"));
    assert_eq!(watching.holds("10.8.0.3").as_deref(), Some("uid-mapped"));
    let node = watching.cluster.holder(ip("192.0.2.1"), unix_now_ns());
    assert!(
        matches!(&node, Some(Holder::Node(node)) if &*node.name == NODE),
        "{node:?}"
    );
    assert_eq!(watching.pod("uid-huge").labels.len(), 20_000);
    assert_eq!(watching.holds("10.8.0.6").as_deref(), Some("uid-huge"));
    assert_eq!(watching.holds("10.8.9.9"), None, "of the malformed");
}

fn odd_pods() -> Vec<Value> {
    let mut invalid = pod("invalid-ips", "10.8.0.2");
    invalid["status"]["podIP"] = json!("10.8.0.300");
    invalid["status"]["podIPs"] =
        json!([{"ip": ""}, {"ip": "10.8.0.2/32"}, {"ip": "10.8.0.2"}, {}, {"ip": null}]);
    let mut twice = pod("twice", "10.8.0.4");
    twice["status"]["podIPs"] = json!([{"ip": "10.8.0.4"}, {"ip": "10.8.0.4"}, {"ip": "::ffff:10.8.0.4"}]);
    let mut host = pod("host", "192.0.2.1");
    host["spec"]["hostNetwork"] = json!(true);
    let mut huge = pod("huge", "10.8.0.6");
    let labels: serde_json::Map<String, Value> = (0..20_000)
        .map(|index| (format!("label-{index}"), json!("x".repeat(60))))
        .collect();
    huge["metadata"]["labels"] = Value::Object(labels);
    let mut nulls = pod("nulls", "10.8.0.7");
    nulls["metadata"]["labels"] = Value::Null;
    nulls["spec"]["initContainers"] = Value::Null;
    nulls["status"]["conditions"] = Value::Null;
    vec![
        invalid,
        pod("mapped", "::ffff:10.8.0.3"),
        twice,
        pod("unspecified", "0.0.0.0"),
        pod("loopback", "127.0.0.1"),
        pod("v6", "::"),
        host,
        huge,
        nulls,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_objects_are_counted_and_nothing_else_is_lost() {
    let server = ApiServer::start().await;
    server.apply("nodes", node(NODE, "192.0.2.1"));
    server.apply(
        "nodes",
        json!({"metadata": {"name": "bad"}, "status": {"addresses": 1}}),
    );
    server.apply("services", service("db", "10.96.0.9"));
    let mut bad = service("bad", "10.96.0.8");
    bad["spec"]["ports"] = json!([{"port": -1}]);
    server.apply("services", bad);
    server.apply("services", json!({"metadata": {"name": "nowhere"}}));
    // What the API server writes for a Service without endpoints.
    server.apply("endpointslices", slice("none", "none", None));
    server.apply(
        "endpointslices",
        slice("db-1", "headless", Some(&["10.8.0.1", "none"])),
    );

    let bad = malformed_pods();
    for object in bad.iter().cloned().chain(odd_pods()) {
        server.apply("pods", object);
    }
    server.apply("pods", pod("z-last", "10.8.0.1"));
    let watching = Watching::of(&server).await;
    let malformed = |resource| watching.state(resource).0.malformed;
    assert_eq!(malformed(Resource::Pods), bad.len() as u64);
    assert_eq!(malformed(Resource::Services), 2);
    assert_eq!(malformed(Resource::Nodes), 1);
    assert_eq!(malformed(Resource::EndpointSlices), 0);
    assert_eq!(watching.state(Resource::Pods).1, odd_pods().len() + 1);
    assert_eq!(watching.holds("10.8.0.1").as_deref(), Some("uid-z-last"));
    check_the_odd(&watching);
    let db = watching.cluster.service_at(ip("10.96.0.9"), 80, TCP);
    assert_eq!(db.as_deref(), Some("shop/db"));

    // The same as changes.
    for object in bad.iter().cloned().chain(odd_pods()) {
        server.apply("pods", object);
    }
    server.apply("pods", pod("after", "10.8.0.8"));
    watching.becomes("10.8.0.8", "uid-after").await;
    assert_eq!(malformed(Resource::Pods), 2 * bad.len() as u64);
    check_the_odd(&watching);
    assert_eq!(
        watching.state(Resource::Pods).0.restarts,
        0,
        "none ends the watch"
    );

    // An object without any metadata ends it, for it has no version to go on from; the list has it right.
    server.write("pods", "{\"type\":\"MODIFIED\",\"object\":{\"spec\":{}}}\n");
    server.write(
        "pods",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":\"none\"}}\n",
    );
    eventually("a restart", || {
        (watching.state(Resource::Pods).0.restarts > 0).then_some(())
    })
    .await;
    watching.well(Resource::Pods).await;
    check_the_odd(&watching);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_unreadable_is_kept_as_it_was_until_it_is_deleted() {
    let mut server = ApiServer::start().await;
    let (a, db) = (pod("a", "10.8.1.1"), service("db", "10.96.0.9"));
    server.apply("pods", a.clone());
    server.apply("services", db.clone());
    let watching = Watching::of(&server).await;
    let (mut bad_pod, mut bad_service) = (a.clone(), db.clone());
    bad_pod["status"]["phase"] = json!(7);
    bad_service["spec"]["ports"] = json!("all");
    server.apply("pods", bad_pod);
    server.apply("services", bad_service);
    for resource in [Resource::Pods, Resource::Services] {
        eventually("a malformed object", || {
            (watching.state(resource).0.malformed > 0).then_some(())
        })
        .await;
    }
    // A list has them as well.
    server.down().await;
    server.compact();
    server.up().await;
    for resource in [Resource::Pods, Resource::Services] {
        eventually("it to be listed", || {
            (watching.state(resource).0.malformed > 1).then_some(())
        })
        .await;
        watching.well(resource).await;
    }
    sleep(Duration::from_millis(200)).await;
    let at = || watching.cluster.service_at(ip("10.96.0.9"), 80, TCP);
    assert_eq!(watching.holds("10.8.1.1").as_deref(), Some("uid-a"));
    assert_eq!(at().as_deref(), Some("shop/db"));
    server.delete("pods", &a);
    server.delete("services", &db);
    watching.gone("uid-a").await;
    eventually("the end of the Service", || at().is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_pod_does_not_take_its_address_back() {
    let server = ApiServer::start().await;
    let begin = unix_now_ns() / SECOND - 100;
    server.apply("pods", started(pod("a-runs", "10.9.1.1"), begin));
    // Without container statuses, as an eviction may leave it: nothing says when it had the address.
    let mut evicted = pod("z-evicted", "10.9.1.1");
    evicted["status"]["phase"] = json!("Failed");
    server.apply("pods", evicted.clone());
    let watching = Watching::of(&server).await;
    assert_eq!(watching.holds("10.9.1.1").as_deref(), Some("uid-a-runs"));
    server.delete("pods", &evicted);
    watching.gone("uid-z-evicted").await;
    assert_eq!(watching.holds("10.9.1.1").as_deref(), Some("uid-a-runs"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_belong_to_what_people_made() {
    let server = ApiServer::start().await;
    let cases = [
        (
            "deployment",
            Some(("ReplicaSet", "cart-7d9f4")),
            Some("7d9f4"),
            Some("Deployment/cart"),
        ),
        (
            "replicaset",
            Some(("ReplicaSet", "cart-7d9f4")),
            None,
            Some("ReplicaSet/cart-7d9f4"),
        ),
        (
            "statefulset",
            Some(("StatefulSet", "db")),
            None,
            Some("StatefulSet/db"),
        ),
        (
            "daemonset",
            Some(("DaemonSet", "agent")),
            None,
            Some("DaemonSet/agent"),
        ),
        ("job", Some(("Job", "once")), None, Some("Job/once")),
        (
            "cronjob",
            Some(("Job", "backup-29384756")),
            None,
            Some("CronJob/backup"),
        ),
        (
            "crd",
            Some(("Rollout", "canary-1")),
            None,
            Some("Rollout/canary-1"),
        ),
        ("bare", None, None, None),
    ];
    for (name, owner, hash, _) in &cases {
        let mut object = pod(name, "");
        if let Some((kind, owner)) = owner {
            object["metadata"]["ownerReferences"] = json!([
                {"kind": "Bystander", "name": "x", "uid": "1", "apiVersion": "v1"},
                {"kind": kind, "name": owner, "uid": "2", "apiVersion": "apps/v1", "controller": true}]);
        }
        if let Some(hash) = hash {
            object["metadata"]["labels"]["pod-template-hash"] = json!(hash);
        }
        server.apply("pods", object);
    }
    let watching = Watching::of(&server).await;
    for (name, _, _, expected) in cases {
        let pod = watching.pod(&format!("uid-{name}"));
        assert_eq!(pod.workload.as_deref(), expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_own_nodes_pods_are_asked_for_if_that_is_wanted() {
    let server = ApiServer::start().await;
    let mut own = pod("own", "10.10.0.1");
    own["spec"]["nodeName"] = json!(NODE);
    server.apply("pods", own);
    server.apply("pods", pod("other", "10.10.0.2"));
    let own_only = Watching::begin(&server, false);
    own_only.becomes("10.10.0.1", "uid-own").await;
    server.apply("pods", pod("another", "10.10.0.3"));
    let mut own = pod("own-2", "10.10.0.4");
    own["spec"]["nodeName"] = json!(NODE);
    server.apply("pods", own);
    own_only.becomes("10.10.0.4", "uid-own-2").await;
    assert_eq!(own_only.state(Resource::Pods).1, 2);
    let asked = server.asked("pods");
    assert!(asked.iter().any(Asked::is_watch));
    for asked in &asked {
        let selector = asked.query.get("fieldSelector").map(String::as_str);
        assert_eq!(selector, Some("spec.nodeName=node-1"));
    }
    for resource in ["services", "endpointslices", "nodes"] {
        let asked = server.asked(resource);
        assert!(
            asked
                .iter()
                .all(|asked| !asked.query.contains_key("fieldSelector"))
        );
    }

    let before = asked.len();
    let all = Watching::of(&server).await;
    assert_eq!(all.state(Resource::Pods).1, 4);
    let asked = server.asked("pods");
    assert!(
        asked[before..]
            .iter()
            .all(|asked| !asked.query.contains_key("fieldSelector"))
    );
}
