//! GPUs of many nodes: each once, each of its own node, and who did not answer is named.

#[path = "support/asked.rs"]
mod asked;
#[path = "support/story.rs"]
mod story;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use asked::{Client, hub, hub_with, quick, runtime, states};
use orb8_fleet::{Clock, Limits, Member, PodNodes, Reach, Wanted};
use orb8_proto::v1::{
    CudaCalls, Endpoint, GpuDevice, GpuEvent, GpuFilter, GpuHolder, GpuMig, GpuQuery, GpuReadings, GpuSource,
    GpuSummary, NodeState, State, StreamEventsRequest, query_gpus_response::Part,
    stream_events_response::Event,
};
use proptest::prelude::*;
use story::{Behaviour, Story, at};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tonic::{Code, Status};

struct Told {
    devices: Vec<GpuDevice>,
    calls: Vec<CudaCalls>,
    summary: GpuSummary,
}

async fn gpus(client: &Client, query: GpuQuery) -> Result<Told, Status> {
    let mut stream = client.clone().query_gpus(query).await?.into_inner();
    let (mut devices, mut calls, mut summary) = (Vec::new(), Vec::new(), None);
    while let Some(response) = stream.message().await? {
        assert!(summary.is_none(), "the summary is last");
        match response.part {
            Some(Part::Batch(batch)) => devices.extend(batch.devices),
            Some(Part::Cuda(batch)) => calls.extend(batch.calls),
            Some(Part::Summary(last)) => summary = Some(last),
            None => {}
        }
    }
    Ok(Told {
        devices,
        calls,
        summary: summary.expect("each answer has a summary"),
    })
}

fn device(uuid: &str, instance: Option<u32>) -> GpuDevice {
    GpuDevice {
        uuid: uuid.to_owned(),
        mig: instance.map(|instance| GpuMig {
            instance,
            ..GpuMig::default()
        }),
        holders: vec![GpuHolder {
            owner: Some(Endpoint {
                namespace: "ml".to_owned(),
                pod: format!("train-{uuid}"),
                ..Endpoint::default()
            }),
            ..GpuHolder::default()
        }],
        ..GpuDevice::default()
    }
}

fn source(name: &str, state: State) -> GpuSource {
    GpuSource {
        name: name.to_owned(),
        state: state.into(),
        reason: "connection refused".to_owned(),
        ..GpuSource::default()
    }
}

fn with_gpus(name: &str, behaviour: Behaviour, uuids: &[&str]) -> Arc<Story> {
    let story = Story::behaving(name, behaviour);
    *story.devices.lock().unwrap() = uuids.iter().map(|uuid| device(uuid, None)).collect();
    *story.sources.lock().unwrap() = vec![source("dcgm", State::Active)];
    story
}

/// What tells devices of an answer apart.
fn places(devices: &[GpuDevice]) -> Vec<(String, String, Option<u32>)> {
    devices
        .iter()
        .map(|device| {
            let instance = device.mig.as_ref().map(|mig| mig.instance);
            (device.node.clone(), device.uuid.to_ascii_lowercase(), instance)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn the_answer_of_all_is_the_union_of_each_one_s_and_each_device_is_there_once(
        nodes in prop::collection::vec(
            prop::collection::vec(("[a-cA-C]{1,2}", prop::option::of(0..3_u32), 0..100_u64), 0..12),
            1..5,
        ),
    ) {
        runtime().block_on(async {
            let mut expected = BTreeSet::new();
            let mut memory = 0;
            let stories: Vec<_> = nodes
                .iter()
                .enumerate()
                .map(|(index, told)| {
                    let name = format!("n{index}");
                    let story = with_gpus(&name, Behaviour::Good, &[]);
                    for (uuid, instance, used) in told {
                        let readings = GpuReadings { memory_used_bytes: Some(*used), ..GpuReadings::default() };
                        let told = GpuDevice { readings: Some(readings), ..device(uuid, *instance) };
                        if expected.insert((name.clone(), uuid.to_ascii_lowercase(), *instance)) {
                            memory += used;
                        }
                        story.devices.lock().unwrap().push(told);
                    }
                    story
                })
                .collect();
            let asked = hub(&stories, Limits::default()).await;
            let told = gpus(&asked.client, GpuQuery::default()).await.unwrap();
            // Sorted, and nothing twice.
            assert_eq!(places(&told.devices), expected.iter().cloned().collect::<Vec<_>>());
            let sum: u64 = told.devices.iter().filter_map(|device| device.readings.as_ref()?.memory_used_bytes).sum();
            assert_eq!(sum, memory, "of what is told twice, the first counts");
            for (index, answer) in told.summary.nodes.iter().enumerate() {
                let own = expected.iter().filter(|(node, ..)| *node == format!("n{index}")).count();
                assert_eq!((answer.state(), answer.items), (NodeState::Answered, own as u64));
                assert_eq!(answer.notes.is_empty(), own == nodes[index].len(), "{:?}", answer.notes);
            }
        });
    }
}

/// Each is there as it was told, but for its node.
#[tokio::test]
async fn a_node_is_whose_agent_answered() {
    let [honest, liar] = [
        with_gpus("honest", Behaviour::Good, &["GPU-a"]),
        with_gpus("liar", Behaviour::Good, &["GPU-a"]),
    ];
    liar.devices.lock().unwrap()[0].node = "honest".to_owned();
    *honest.cuda.lock().unwrap() = vec![CudaCalls {
        function: "cuLaunchKernel".to_owned(),
        count: 7,
        ..CudaCalls::default()
    }];
    let mut members = vec![honest.member().await, liar.member().await];
    let told = gpus(
        &hub_with(members.clone(), quick(), None).client,
        GpuQuery::default(),
    )
    .await
    .unwrap();
    let nodes: Vec<_> = told.devices.iter().map(|device| device.node.as_str()).collect();
    assert_eq!(nodes, ["honest", "liar"]);
    assert_eq!(told.devices[0].holders, honest.devices.lock().unwrap()[0].holders);
    assert_eq!((told.calls[0].node.as_str(), told.calls[0].count), ("honest", 7));
    assert_eq!(told.summary.node, "2 nodes");

    // Two addresses of one agent: it is asked twice, and its devices are there once.
    members = vec![
        story::member("10.0.0.1:9090", honest.serve().await),
        story::member("10.0.0.2:9090", honest.serve().await),
    ];
    let told = gpus(&hub_with(members, quick(), None).client, GpuQuery::default())
        .await
        .unwrap();
    assert_eq!(
        places(&told.devices),
        [("honest".to_owned(), "gpu-a".to_owned(), None)]
    );
    let [first, second] = &told.summary.nodes[..] else {
        panic!("{:?}", told.summary)
    };
    assert_eq!((first.items, second.items), (1, 0));
    assert_eq!(first.node, "honest");
    assert!(second.notes[0].contains("told before"), "{second:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_answer_is_named_and_nobody_waits_for_them() {
    let stories = [
        with_gpus("good", Behaviour::Good, &["GPU-1"]),
        with_gpus("silent", Behaviour::Silent, &["GPU-2"]),
        with_gpus("refusing", Behaviour::Refuse, &["GPU-3"]),
        with_gpus(
            "breaking",
            Behaviour::BreakAfterFirst,
            &["GPU-4", "GPU-5", "GPU-6", "GPU-7"],
        ),
        with_gpus("old", Behaviour::Old, &[]),
        with_gpus("dripping", Behaviour::Drip, &[]),
        with_gpus("flooding", Behaviour::Flood, &["GPU-8"]),
    ];
    let mut members = Vec::new();
    for story in &stories {
        members.push(story.member().await);
    }
    members.push(story::unreachable("unreachable"));
    members.push(Member {
        reach: Reach::Away {
            state: NodeState::Silent,
            reason: "nothing heard for 5 s".to_owned(),
        },
        ..story::unreachable("away")
    });
    // Half of the room for one node that tells without an end.
    let limits = Limits {
        max_rows: 131_072,
        ..quick()
    };
    let asked = hub_with(members, limits, None);
    let began = Instant::now();
    let told = gpus(&asked.client, GpuQuery::default()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let nodes = &told.summary.nodes;
    assert_eq!(
        states(nodes),
        [
            ("good", NodeState::Answered),
            ("silent", NodeState::Silent),
            ("refusing", NodeState::Refused),
            ("breaking", NodeState::Partial),
            ("old", NodeState::Refused),
            ("dripping", NodeState::Silent),
            ("flooding", NodeState::Partial),
            ("unreachable", NodeState::Unreachable),
            ("away", NodeState::Silent),
        ]
    );
    let of = |node: &str| told.devices.iter().filter(|device| device.node == node).count();
    assert_eq!((of("good"), of("breaking"), of("silent")), (1, 3, 0));
    assert_eq!(nodes[3].items, 3);
    assert!(
        nodes[3].reason.contains("broke off after 3 devices"),
        "{}",
        nodes[3].reason
    );
    assert!(
        nodes[4].reason.starts_with("does not know this request"),
        "{}",
        nodes[4].reason
    );
    assert!(nodes[5].reason.contains("had not ended"), "{}", nodes[5].reason);
    assert!(
        nodes[6].reason.contains("16 MiB that one node"),
        "{}",
        nodes[6].reason
    );
    assert_eq!(nodes[6].items, of("flooding") as u64);
    assert!(of("flooding") < 65_536);

    // Of those that fail in words, the asker's own nonsense is an error of all.
    let good = with_gpus("good", Behaviour::Good, &["GPU-1"]);
    let asked = hub(&[good, Story::behaving("bad", Behaviour::Invalid)], quick()).await;
    let error = gpus(&asked.client, GpuQuery::default()).await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    let asked = hub(&[Story::behaving("old", Behaviour::Old)], quick()).await;
    let error = gpus(&asked.client, GpuQuery::default()).await.err().unwrap();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
}

#[tokio::test]
async fn what_an_agent_told_before_it_was_killed_is_there() {
    let [steady, dying] = [
        with_gpus("steady", Behaviour::Good, &["GPU-1"]),
        with_gpus("dying", Behaviour::PauseAfterFirst, &["GPU-2", "GPU-3"]),
    ];
    // Its connection goes through here, so that it can be cut in the midst.
    let address = dying.serve().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = listener.local_addr().unwrap();
    let cut = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        // Nobody else gets through.
        drop(listener);
        let mut agent = TcpStream::connect(address).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut agent).await;
    });
    let members = vec![steady.member().await, story::member("dying", through)];
    let limits = Limits {
        deadline: Duration::from_secs(20),
        ..Limits::default()
    };
    let asked = hub_with(members, limits, None);
    let killed = tokio::spawn(async move {
        while dying.gpu_asked.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Time for its first devices to arrive.
        tokio::time::sleep(Duration::from_millis(300)).await;
        cut.abort();
    });
    let told = tokio::time::timeout(Duration::from_secs(10), gpus(&asked.client, GpuQuery::default()))
        .await
        .expect("nobody waits for the dead")
        .unwrap();
    killed.await.unwrap();
    assert_eq!(
        states(&told.summary.nodes),
        [("steady", NodeState::Answered), ("dying", NodeState::Partial)]
    );
    assert_eq!(told.devices.len(), 3);
    assert!(told.summary.nodes[1].reason.contains("after 2 devices"));
}

#[tokio::test]
async fn all_together_have_room_for_so_much() {
    let uuids: Vec<String> = (0..60).map(|number| format!("GPU-{number}")).collect();
    let uuids: Vec<&str> = uuids.iter().map(String::as_str).collect();
    let stories = [
        with_gpus("n1", Behaviour::Good, &uuids),
        with_gpus("n2", Behaviour::Good, &uuids),
    ];
    let limits = Limits {
        max_rows: 400,
        ..quick()
    };
    let told = gpus(&hub(&stories, limits).await.client, GpuQuery::default())
        .await
        .unwrap();
    let cut: Vec<_> = told
        .summary
        .nodes
        .iter()
        .filter(|answer| answer.state() == NodeState::Partial)
        .collect();
    assert!(!cut.is_empty() && told.devices.len() < 120, "{:?}", told.summary);
    assert!(
        cut.iter().all(|answer| answer.reason.contains("may take")),
        "{cut:?}"
    );
    assert_eq!(
        told.devices.len() as u64,
        told.summary.nodes.iter().map(|answer| answer.items).sum::<u64>()
    );
}

#[tokio::test]
async fn a_node_without_a_gpu_is_no_failure_and_a_broken_source_is_told() {
    let [without, broken, gpu] = [
        Story::behaving("without", Behaviour::Good),
        Story::behaving("broken", Behaviour::Good),
        with_gpus("gpu", Behaviour::Good, &["GPU-1"]),
    ];
    let off = || {
        vec![
            source("dcgm", State::Off),
            source("nvml", State::Off),
            source("pod-resources", State::Failed),
        ]
    };
    *without.sources.lock().unwrap() = off();
    *without.gpu_notes.lock().unwrap() = vec!["there is no GPU here".to_owned()];
    *broken.sources.lock().unwrap() = vec![source("dcgm", State::Failed), source("nvml", State::Off)];
    gpu.sources
        .lock()
        .unwrap()
        .push(source("pod-resources", State::Failed));
    let asked = hub(&[without.clone(), broken, gpu], quick()).await;
    let told = gpus(&asked.client, GpuQuery::default()).await.unwrap();
    let notes: Vec<_> = told
        .summary
        .nodes
        .iter()
        .map(|answer| (answer.state(), answer.items, answer.notes.as_slice()))
        .collect();
    let answered = NodeState::Answered;
    let told_of = |name: &str| vec![format!("{name} can't be used: connection refused")];
    assert_eq!(
        notes,
        [
            (answered, 0, &[][..]),
            (answered, 0, &told_of("dcgm")[..]),
            (answered, 1, &told_of("pod-resources")[..]),
        ]
    );
    assert!(told.summary.notes.is_empty(), "{:?}", told.summary.notes);

    // Nowhere any: one sentence, and no error.
    let other = Story::behaving("other", Behaviour::Good);
    *other.sources.lock().unwrap() = off();
    let told = gpus(&hub(&[without, other], quick()).await.client, GpuQuery::default())
        .await
        .unwrap();
    assert!(told.devices.is_empty());
    assert_eq!(
        told.summary.notes,
        ["None of the 2 nodes that answered has a source of GPU readings: neither dcgm-exporter nor NVML."]
    );
    assert!(told.summary.nodes.iter().all(|answer| answer.notes.is_empty()));
}

/// Pods are on `n1`.
struct OnFirst;

impl PodNodes for OnFirst {
    fn nodes_of(&self, _: &Wanted) -> Option<BTreeSet<String>> {
        Some(["n1".to_owned()].into())
    }
}

#[tokio::test]
async fn times_are_by_one_clock_and_only_who_can_know_is_asked() {
    const HOUR: i64 = 3600;
    let [ahead, other] = [
        with_gpus("n1", Behaviour::Good, &["GPU-1"]),
        with_gpus("n2", Behaviour::Good, &["GPU-2"]),
    ];
    *ahead.to.lock().unwrap() = at(1000 + HOUR);
    {
        let device = &mut ahead.devices.lock().unwrap()[0];
        device.last = at(995 + HOUR);
        (device.holders[0].since, device.holders[0].until) = (at(900 + HOUR), at(950 + HOUR));
    }
    let mut members = vec![ahead.member().await, other.member().await];
    members[0].clock = Clock {
        offset_ns: HOUR * 1_000_000_000,
        error_ns: 1_000_000,
    };
    let asked = hub_with(members, quick(), Some(Arc::new(OnFirst)));
    let query = GpuQuery {
        filter: Some(GpuFilter {
            pods: vec!["train".to_owned()],
            ..GpuFilter::default()
        }),
        since: at(800),
        until: at(1100),
        idle: true,
        ..GpuQuery::default()
    };
    let told = gpus(&asked.client, query.clone()).await.unwrap();
    let holder = &told.devices[0].holders[0];
    assert_eq!(
        (told.devices[0].last, holder.since, holder.until),
        (at(995), at(900), at(950))
    );
    assert_eq!((told.summary.to, told.summary.nodes[0].to), (at(1000), at(1000)));
    assert_eq!(
        states(&told.summary.nodes),
        [("n1", NodeState::Answered), ("n2", NodeState::NotAsked)]
    );
    assert_eq!(
        *ahead.gpu_asked.lock().unwrap(),
        [GpuQuery {
            since: at(800 + HOUR),
            until: at(1100 + HOUR),
            ..query
        }]
    );
    assert!(other.gpu_asked.lock().unwrap().is_empty());
    // Of whatever pod: of all.
    let named = GpuQuery {
        nodes: vec!["n2".to_owned()],
        ..GpuQuery::default()
    };
    assert_eq!(gpus(&asked.client, named).await.unwrap().devices.len(), 1);
    assert!(other.gpu_asked.lock().unwrap()[0].nodes.is_empty());
    let nowhere = GpuQuery {
        nodes: vec!["nowhere".to_owned()],
        ..GpuQuery::default()
    };
    assert_eq!(
        gpus(&asked.client, nowhere).await.err().unwrap().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn events_of_gpus_come_from_all_nodes() {
    let stories = ["n1", "n2", "old"].map(|name| Story::behaving(name, Behaviour::Good));
    for story in &stories[..2] {
        *story.gpu_event.lock().unwrap() = Some(GpuEvent {
            time: at(100),
            xid: 79,
            ..GpuEvent::default()
        });
    }
    let asked = hub(&stories, quick()).await;
    let request = StreamEventsRequest {
        gpu: Some(GpuFilter::default()),
        batch: true,
        ..StreamEventsRequest::default()
    };
    let mut stream = asked
        .client
        .clone()
        .stream_events(request)
        .await
        .unwrap()
        .into_inner();
    let (mut nodes, mut answered) = (BTreeSet::new(), BTreeSet::new());
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    let enough = tokio::time::Instant::now() + Duration::from_millis(500);
    while nodes.len() < 2 || answered.len() < 3 || tokio::time::Instant::now() < enough {
        let message = tokio::time::timeout_at(end, stream.message())
            .await
            .expect("events in time");
        let events = match message.unwrap().unwrap().event.unwrap() {
            Event::Batch(batch) => batch.events.into_iter().filter_map(|event| event.event).collect(),
            event => vec![event],
        };
        for event in events {
            match event {
                Event::Gpu(event) => {
                    assert_eq!((event.xid, event.time), (79, at(100)));
                    nodes.insert(event.node);
                }
                Event::Node(node) => {
                    answered.insert(node.name);
                }
                // An agent that does not know of them tells of flows instead.
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(nodes, ["n1".to_owned(), "n2".to_owned()].into());
}
