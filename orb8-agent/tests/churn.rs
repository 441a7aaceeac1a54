//! A thousand short-lived pods on one node, whose addresses go from one to the next within a second, and of which the API
//! server tells late: none is ever taken for another, and none stays without a name.
//!
//! Each stand-in for a pod is a cgroup with a kubelet's path, a network namespace with a veth, and a process in both that
//! sends a known number of datagrams to a pod that echoes them. It sends from a port that no other one has: the port says
//! whose a flow must be, whatever the agent says.
#![allow(missing_docs, reason = "tests")]

#[allow(dead_code, reason = "other tests use the rest")]
mod support {
    pub(crate) mod agent;
    pub(crate) mod api_server;
    pub(crate) mod namespace;
}

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    net::UdpSocket,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::sched::{CloneFlags, setns};
use orb8_proto::v1::{Endpoint, EndpointKind, Flow, Reporter, observation_point::Point};
use serde_json::{Value, json};
use support::{
    agent::{Agent, PATIENCE, eventually},
    api_server::ApiServer,
    namespace::{Namespace, can_run},
};

const PODS: usize = 1000;
/// So many are alive at once.
const LANES: usize = 16;
/// Addresses of a lane, which its pods have in turn.
const ADDRESSES: usize = 2;
const NODE: &str = "churn-node";
const ECHO: &str = "10.9.200.1";
const ECHO_PORT: u16 = 7000;
/// Of the first pod's socket.
const FIRST_PORT: u16 = 10_000;
const PAYLOAD: usize = 64;
/// With IPv4 and UDP headers.
const PACKET: u64 = PAYLOAD as u64 + 28;
/// A runtime has so much to do at least between a pod's interface and its first process.
const RUNTIME: Duration = Duration::from_millis(200);
/// After so long in a container's life its flows have names.
const NAMED_WITHIN: Duration = Duration::from_secs(2);
/// Makes this program a pod's process: `LOCAL-PORT DATAGRAMS MILLISECONDS`.
const ROLE: &str = "CHURN_TEST_POD";

/// What is known of a stand-in, whatever the agent says.
#[derive(Clone, Debug)]
struct Truth {
    started: Instant,
    ended: Option<Instant>,
    /// Datagrams that its interface sent and received, as the interface itself says.
    sent: u64,
    received: u64,
}

type Truths = Mutex<BTreeMap<usize, Truth>>;

/// Numbers that look random and are the same in every run.
fn mixed(number: usize, salt: u64) -> u64 {
    let mut x = (number as u64 + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(salt);
    x ^= x >> 31;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 29)
}

fn uid(number: usize) -> String {
    format!("{number:08x}-0000-4000-8000-{:012x}", mixed(number, 1) >> 16)
}

fn container(number: usize) -> String {
    format!("{:016x}", mixed(number, 2)).repeat(4)
}

fn name(number: usize) -> String {
    format!("pod-{number}")
}

fn address(lane: usize, turn: usize) -> String {
    format!("10.9.{lane}.{}", turn % ADDRESSES + 1)
}

fn mac(lane: usize, turn: usize) -> String {
    format!("02:00:00:00:{lane:02x}:{:02x}", turn % ADDRESSES + 1)
}

/// A cgroup as a kubelet and a runtime make it: both drivers, every QoS class.
struct Cgroup {
    root: PathBuf,
    directory: PathBuf,
}

impl Cgroup {
    fn new(root: &Path, number: usize) -> Self {
        let (uid, id) = (uid(number), container(number));
        let dashed = uid.replace('-', "_");
        let path = match number % 5 {
            0 => format!("kubepods/burstable/pod{uid}/{id}"),
            1 => format!("kubepods/besteffort/pod{uid}/{id}"),
            2 => format!("kubepods/pod{uid}/{id}"),
            3 => format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/cri-containerd-{id}.scope"
            ),
            _ => format!("kubepods.slice/kubepods-pod{dashed}.slice/crio-{id}.scope"),
        };
        let directory = root.join(path);
        fs::create_dir_all(&directory).unwrap();
        Self {
            root: root.to_owned(),
            directory,
        }
    }

    /// As it goes with its pod: the container's, then the pod's.
    fn remove(&self) {
        for directory in self.directory.ancestors().take(2) {
            // The last process may be a moment away from leaving.
            for _ in 0..100 {
                match fs::remove_dir(directory) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    _ => break,
                }
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
        for directory in self.directory.ancestors().skip(2) {
            if directory == self.root || fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }
}

/// Removes what is left below the test's own cgroup.
struct Root(PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        fn remove(directory: &Path) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = fs::remove_dir(directory);
        }
        remove(&self.0);
    }
}

/// What a pod's process does. It is a test only so that this program can be it.
#[test]
fn is_a_pod_if_told_so() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let numbers: Vec<u64> = role.split(' ').map(|word| word.parse().unwrap()).collect();
    let (port, count, life) = (numbers[0] as u16, numbers[1], Duration::from_millis(numbers[2]));
    let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
    socket.connect((ECHO, ECHO_PORT)).unwrap();
    let pause = life / u32::try_from(count).unwrap();
    socket
        .set_read_timeout(Some(pause.max(Duration::from_millis(20))))
        .unwrap();
    let mut echoed = 0;
    for _ in 0..count {
        let began = Instant::now();
        socket.send(&[0; PAYLOAD]).unwrap();
        echoed += u64::from(socket.recv(&mut [0; 2 * PAYLOAD]).is_ok());
        thread::sleep(pause.saturating_sub(began.elapsed()));
    }
    // What came late.
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    while echoed < count && socket.recv(&mut [0; 2 * PAYLOAD]).is_ok() {
        echoed += 1;
    }
    // What the interface was told to send before it was ready is not on the wire; more than was sent is an ICMP error, to an
    // echo for who had the address before.
    let [sent, received] = on_the_wire(&fs::read_to_string("/proc/self/net/dev").unwrap());
    let sent = sent.min(count);
    println!("said: {sent} {received}");
}

/// Packets that eth0 sent and received, by `/proc/PID/net/dev` (proc_pid_net(5)).
fn on_the_wire(text: &str) -> [u64; 2] {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    let fields: Vec<u64> = line
        .expect("eth0")
        .split_whitespace()
        .map(|field| field.parse().unwrap())
        .collect();
    [fields[9], fields[1]]
}

/// Its neighbour discovery and multicast reports would be packets of which the test knows nothing.
fn no_ipv6(namespace: &Namespace) {
    namespace.inside(|| {
        for which in ["all", "default"] {
            // Without IPv6 there is nothing to switch off.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
        }
    });
}

/// The API server, on a thread in the node's namespace, until the sender is dropped.
fn api_server(host: &Namespace) -> (Arc<ApiServer>, mpsc::Sender<()>) {
    let (give, take) = mpsc::channel();
    let (keep, kept) = mpsc::channel::<()>();
    let namespace = host.open();
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let server = Arc::new(runtime.block_on(ApiServer::start()));
        give.send(server).unwrap();
        runtime.block_on(async {
            while !matches!(kept.try_recv(), Err(mpsc::TryRecvError::Disconnected)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    });
    (take.recv().unwrap(), keep)
}

/// RFC 3339 in whole seconds, as the API server has times.
fn seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn pod(number: usize, address: &str, started: SystemTime, ended: Option<SystemTime>) -> Value {
    let id = format!("containerd://{}", container(number));
    let state = match ended {
        None => json!({"running": {"startedAt": seconds(started)}}),
        Some(ended) => json!({"terminated": {"startedAt": seconds(started), "finishedAt": seconds(ended)}}),
    };
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"namespace": "churn", "name": name(number), "uid": uid(number),
                     "creationTimestamp": seconds(started)},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "x"}]},
        "status": {"phase": if ended.is_some() { "Succeeded" } else { "Running" }, "qosClass": "Burstable",
                   "podIP": address, "podIPs": [{"ip": address}], "startTime": seconds(started),
                   "containerStatuses": [{"name": "main", "containerID": id, "state": state}]},
    })
}

/// The machine that the pods are on.
struct Machine {
    host: Namespace,
    cgroups: PathBuf,
    api: Arc<ApiServer>,
}

impl Machine {
    /// A namespace joined to the bridge, with neighbours that never change: nothing but the test's packets runs, and none
    /// of them to any but whom it is for.
    fn namespace(
        &self,
        role: &str,
        veth: &str,
        address: &str,
        mac: &str,
        neighbours: &[(String, String)],
    ) -> Namespace {
        let pod = Namespace::new(role);
        no_ipv6(&pod);
        self.host.batch(&format!(
            "link add {veth} type veth peer name eth0 address {mac} netns {}\n\
             link set {veth} master br0 addrgenmode none up\n\
             link set {veth} type bridge_slave flood off\n",
            pod.name()
        ));
        let mut commands = format!("link set eth0 addrgenmode none up\naddr add {address}/16 dev eth0\n");
        for (address, mac) in neighbours {
            commands.push_str(&format!(
                "neigh replace {address} lladdr {mac} dev eth0 nud permanent\n"
            ));
        }
        pod.batch(&commands);
        pod
    }

    /// The life of a pod.
    fn live(&self, number: usize, lane: usize, turn: usize, truths: &Truths) {
        let (address, mac) = (address(lane, turn), mac(lane, turn));
        let echo = [(ECHO.to_owned(), ECHO_MAC.to_owned())];
        let namespace = self.namespace(
            &format!("cp{number}"),
            &format!("c{number}"),
            &address,
            &mac,
            &echo,
        );
        let cgroup = Cgroup::new(&self.cgroups, number);
        let (count, life) = (1 + mixed(number, 3) % 20, 200 + mixed(number, 4) % 1800);
        let (port, procs) = (
            usize::from(FIRST_PORT) + number,
            cgroup.directory.join("cgroup.procs"),
        );
        let file = namespace.open();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "is_a_pod_if_told_so",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, format!("{port} {count} {life}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // SAFETY: open, write and one more system call, which are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                fs::write(&procs, "0")?;
                setns(&file, CloneFlags::CLONE_NEWNET).map_err(Into::into)
            })
        };
        thread::sleep(RUNTIME);
        let (started, began) = (Instant::now(), SystemTime::now());
        let truth = Truth {
            started,
            ended: None,
            sent: 0,
            received: 0,
        };
        truths.lock().unwrap().insert(number, truth);
        let child = command.spawn().unwrap();
        // The API server tells late, and of every tenth pod only when it has ended.
        let is_told_last = number.is_multiple_of(10);
        if !is_told_last {
            thread::sleep(Duration::from_millis(100 + mixed(number, 5) % 700));
            self.api.apply("pods", pod(number, &address, began, None));
        }
        let output = child.wait_with_output().unwrap();
        let ended = SystemTime::now();
        let text = String::from_utf8_lossy(&output.stdout);
        let said: Vec<u64> = text
            .split_once("said: ")
            .unwrap_or_else(|| panic!("pod {number}: {text}"))
            .1
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        if let Some(truth) = truths.lock().unwrap().get_mut(&number) {
            truth.ended = Some(Instant::now());
            (truth.sent, truth.received) = (said[0], said[1]);
        }
        if is_told_last {
            self.api.apply("pods", pod(number, &address, began, None));
        }
        let last = self.api.apply("pods", pod(number, &address, began, Some(ended)));
        assert!(last > 0);
        drop(namespace);
        drop(cgroup);
        self.api
            .delete("pods", &pod(number, &address, began, Some(ended)));
    }
}

const ECHO_MAC: &str = "02:00:00:00:ff:01";

/// The end of a flow that is a stand-in's, and whose: by the interface where it was counted, and where that is the other
/// pod's, by its port.
fn whose(flow: &Flow) -> Option<(usize, bool)> {
    if flow.protocol != 17 {
        return None;
    }
    let number = |end: &Option<Endpoint>| {
        let port = usize::try_from(end.as_ref()?.port).ok()?;
        let number = port.checked_sub(usize::from(FIRST_PORT))?;
        (number < PODS).then_some(number)
    };
    let (number, is_sender) = number(&flow.src)
        .map(|number| (number, true))
        .or_else(|| number(&flow.dst).map(|number| (number, false)))?;
    // An echo that comes late comes to who has the address by then.
    let at = match flow.point.as_ref().and_then(|it| it.point.as_ref()) {
        Some(Point::Interface(name)) => name.strip_prefix('c').and_then(|number| number.parse().ok()),
        _ => None,
    };
    Some((at.unwrap_or(number), is_sender))
}

/// Whether an end has the pod's name; an error if it has another one's.
fn is_named(end: &Endpoint, number: usize) -> Result<bool, String> {
    let wrong = || Err(format!("{} is taken for {end:?}", name(number)));
    if !end.pod_uid.is_empty() && end.pod_uid != uid(number) {
        return wrong();
    }
    if end.pod.is_empty() {
        // Known as a container, or not yet known at all; but never as something else.
        let known = [&container(number), ""].contains(&end.container.as_str());
        let kinds = [
            EndpointKind::Pod,
            EndpointKind::Process,
            EndpointKind::External,
            EndpointKind::Unspecified,
        ];
        return if known && kinds.contains(&end.kind()) {
            Ok(false)
        } else {
            wrong()
        };
    }
    if (end.namespace.as_str(), end.pod.as_str()) == ("churn", name(number).as_str()) {
        Ok(true)
    } else {
        wrong()
    }
}

/// What one look at the agent's flows finds wrong.
fn look(agent: &Agent<'_>, truths: &Truths, named: &mut BTreeMap<usize, Duration>) -> Vec<String> {
    let asked = Instant::now();
    let flows = agent.flows();
    let truths = truths.lock().unwrap().clone();
    let mut wrong = Vec::new();
    for flow in &flows.flows {
        let Some((number, sent)) = whose(flow) else {
            continue;
        };
        let end = if sent { &flow.src } else { &flow.dst };
        let end = end.as_ref().expect("an end with a port");
        let truth = &truths[&number];
        let age = asked.saturating_duration_since(truth.started);
        match is_named(end, number) {
            Err(text) => wrong.push(text),
            Ok(true) => {
                named.entry(number).or_insert(age);
            }
            Ok(false) => {
                let is_told = number % 10 != 0 && truth.ended.is_none();
                if age > NAMED_WITHIN && is_told {
                    wrong.push(format!(
                        "{} has no name after {age:?}: {end:?} {:?}",
                        name(number),
                        flow.reporter()
                    ));
                }
            }
        }
    }
    wrong
}

#[test]
fn none_of_a_thousand_short_lived_pods_is_taken_for_another() {
    if !can_run() {
        return;
    }
    let cgroup2 = orb8_agent::preflight::Preflight::run()
        .cgroup2()
        .expect("a cgroup2 hierarchy");
    let root = Root(cgroup2.join(format!("orb8-churn-{}", std::process::id())));
    fs::create_dir_all(&root.0).unwrap();
    let host = Namespace::new("churn");
    no_ipv6(&host);
    host.batch(
        "link add br0 type bridge mcast_snooping 0\naddr add 10.9.255.254/16 dev br0\nlink set br0 addrgenmode none up\n",
    );
    let (api, _keep) = api_server(&host);
    api.apply(
        "nodes",
        json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE, "uid": "node"},
               "status": {"addresses": [{"type": "InternalIP", "address": "10.9.255.254"}]}}),
    );
    let machine = Machine {
        host,
        cgroups: root.0.clone(),
        api,
    };

    // The pod that echoes is there all the time.
    let neighbours: Vec<(String, String)> = (0..LANES)
        .flat_map(|lane| (0..ADDRESSES).map(move |turn| (address(lane, turn), mac(lane, turn))))
        .collect();
    let echo = machine.namespace("ce", "cecho", ECHO, ECHO_MAC, &neighbours);
    let socket = echo.inside(|| UdpSocket::bind((ECHO, ECHO_PORT)).unwrap());
    // Datagrams that it got and sent back, by the port that they came from.
    let echoes = Arc::new(Mutex::new(BTreeMap::<u16, u64>::new()));
    let counted = echoes.clone();
    thread::spawn(move || {
        let mut buffer = [0; 2 * PAYLOAD];
        while let Ok((size, from)) = socket.recv_from(&mut buffer) {
            *counted.lock().unwrap().entry(from.port()).or_default() += 1;
            // One that has gone does not hear it.
            let _ = socket.send_to(&buffer[..size], from);
        }
    });

    let mut kubeconfig = tempfile::NamedTempFile::new().unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "churn",
        "clusters": [{"name": "churn", "cluster": {"server": machine.api.config().cluster_url.to_string()}}],
        "users": [{"name": "churn", "user": {}}],
        "contexts": [{"name": "churn", "context": {"cluster": "churn", "user": "churn"}}],
    });
    kubeconfig.write_all(config.to_string().as_bytes()).unwrap();
    let kubeconfig_path = kubeconfig.path().to_str().unwrap();
    let agent = Agent::start(&machine.host, &["--kubeconfig", kubeconfig_path, "--node", NODE]);
    agent.observes(&["cecho"]);
    eventually("the node to be known", || {
        let status = agent.status().kubernetes?;
        (status.state == i32::from(orb8_proto::v1::State::Active)).then_some(())
    });

    let (truths, next, over) = (Truths::default(), AtomicUsize::new(0), AtomicBool::new(false));
    let (wrong, mut named) = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut wrong, mut named) = (Vec::new(), BTreeMap::new());
            while !over.load(Ordering::Relaxed) && wrong.len() < 20 {
                wrong.extend(look(&agent, &truths, &mut named));
                thread::sleep(Duration::from_millis(200));
            }
            (wrong, named)
        });
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let (machine, truths, next) = (&machine, &truths, &next);
                scope.spawn(move || {
                    for turn in 0.. {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= PODS {
                            return;
                        }
                        machine.live(number, lane, turn, truths);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = lanes.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a pod failed");
        watcher.join().unwrap()
    });
    assert!(wrong.is_empty(), "{} times:\n{}", wrong.len(), wrong.join("\n"));

    // At the end all have their names, and the datagrams that they, their interfaces and the echo say. On a machine that is
    // busy with a thousand namespaces, an interface may be observed late: what passed before is in the ledger.
    let truths_now = truths.lock().unwrap().clone();
    let echoes = echoes.lock().unwrap().clone();
    let seen: BTreeSet<usize> = agent
        .flows()
        .flows
        .iter()
        .filter_map(|flow| Some(whose(flow)?.0))
        .collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut named = BTreeMap::new();
        let wrong = look(&agent, &truths, &mut named);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let nameless: Vec<usize> = seen
            .iter()
            .copied()
            .filter(|number| !named.contains_key(number))
            .collect();
        if nameless.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            let flows = agent.flows();
            let of_them = |flow: &&Flow| whose(flow).is_some_and(|(number, _)| nameless.contains(&number));
            let flows: Vec<&Flow> = flows.flows.iter().filter(of_them).take(20).collect();
            panic!("nameless at the end: {nameless:?}: {flows:#?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    let flows = agent.flows();
    let (mut unseen, mut late) = (0, 0);
    for (number, truth) in &truths_now {
        let echoed = echoes.get(&(FIRST_PORT + *number as u16)).copied().unwrap_or(0);
        for (is_sender, reporter, least, most) in [
            (true, Reporter::Source, truth.sent, truth.sent),
            (true, Reporter::Destination, echoed, echoed),
            (false, Reporter::Source, echoed, echoed),
            // The last ones may come to an interface that is about to go, or to the one that has the address next.
            (false, Reporter::Destination, truth.received, u64::MAX),
        ] {
            let total = flows.total(|flow| {
                whose(flow) == Some((*number, is_sender)) && flow.reporter() == reporter && {
                    let end = if is_sender { &flow.src } else { &flow.dst };
                    is_named(end.as_ref().expect("an end"), *number) == Ok(true)
                }
            });
            let is_own_report = is_sender == (reporter == Reporter::Source);
            if is_own_report && total.packets < least {
                unseen += least - total.packets;
                late += 1;
                continue;
            }
            assert!(
                (least..=most).contains(&total.packets) && total.bytes == total.packets * PACKET,
                "{} {} {least} to {most} datagrams; {reporter:?} says {total:?}",
                name(*number),
                if is_sender { "sent" } else { "got" },
            );
        }
    }
    let said = agent.ledger("interface").lost;
    assert!(
        unseen <= said && late <= PODS / 50,
        "{unseen} unseen by {late} reports, {said} are in the ledger"
    );
    println!(
        "{} pods were seen; {late} reports lack {unseen} datagrams, {said} are in the ledger",
        seen.len()
    );
    assert!(seen.len() > PODS * 99 / 100, "only {} pods were seen", seen.len());
    let mut times: Vec<Duration> = std::mem::take(&mut named).into_values().collect();
    times.sort();
    println!(
        "named when first asked after: median {:?}, 99 % {:?}, at most {:?} ({} pods seen alive)",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1],
        times.len()
    );
    agent.stop();
}
