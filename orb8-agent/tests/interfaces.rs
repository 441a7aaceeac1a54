//! Following real interfaces, in network namespaces that the tests make.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use orb8_agent::interfaces::{
    Change, Interface, InterfaceWatcher, LinkLayer, Role, WatcherOptions, read_counters,
};
use tokio::time::timeout;

/// Whether the test can run; says why not.
fn can_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let why = "needs root to make network namespaces";
    let required = std::env::var_os("ORB8_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    assert!(!required, "{why}");
    println!("skipped: {why}");
    false
}

fn run(command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {message}");
}

/// A named network namespace, removed at the end.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("orb8-{name}-{}", std::process::id());
        run(&format!("ip netns add {name}"));
        Self(name)
    }

    fn ip(&self, command: &str) {
        run(&format!("ip -n {} {command}", self.0));
    }

    fn batch(&self, commands: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), commands).unwrap();
        self.ip(&format!("-batch {}", file.path().display()));
    }

    /// Runs `work` on a thread inside.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        let thread = thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// What a watcher told so far.
struct Told {
    watcher: InterfaceWatcher,
    runtime: tokio::runtime::Runtime,
    present: BTreeMap<u32, Interface>,
    log: Vec<Change>,
}

impl Told {
    fn new(namespace: &Namespace, options: WatcherOptions) -> Self {
        let watcher = namespace.inside(move || InterfaceWatcher::with_options(&options).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let mut told = Self {
            watcher,
            runtime,
            present: BTreeMap::new(),
            log: Vec::new(),
        };
        told.until("loopback", |present| present.contains_key(&1));
        told
    }

    /// One batch; whether one came in time.
    fn batch(&mut self, wait: Duration) -> bool {
        let Self { watcher, runtime, .. } = self;
        let Ok(batch) = runtime.block_on(async { timeout(wait, watcher.next()).await }) else {
            return false;
        };
        for change in batch.unwrap() {
            match change.clone() {
                Change::Added(interface) => {
                    assert_eq!(self.present.insert(interface.ifindex, interface), None);
                }
                Change::Changed { before, after } => {
                    let known = self.present.insert(after.ifindex, after);
                    assert_eq!(known.map(|known| known.name), Some(before.name));
                }
                Change::Removed(interface) => {
                    assert!(self.present.remove(&interface.ifindex).is_some());
                }
            }
            self.log.push(change);
        }
        true
    }

    fn until(&mut self, what: &str, done: impl Fn(&BTreeMap<u32, Interface>) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done(&self.present) {
            let wait = deadline.saturating_duration_since(Instant::now());
            assert!(self.batch(wait), "waited for {what}, have {:#?}", self.present);
        }
    }

    fn named(&mut self, name: &str) -> Interface {
        self.until(name, |present| present.values().any(|it| it.name == name));
        self.present.values().find(|it| it.name == name).unwrap().clone()
    }

    fn role(&mut self, ifindex: u32, role: Role) {
        self.until("a role", |present| present[&ifindex].role == role);
    }

    /// Takes what comes until nothing came for a while.
    fn settle(&mut self) {
        while self.batch(Duration::from_millis(300)) {}
    }
}

#[test]
fn roles_follow_namespaces_and_routes() {
    if !can_run() {
        return;
    }
    let (node, pod) = (Namespace::new("node"), Namespace::new("pod"));
    let mut told = Told::new(&node, WatcherOptions::default());
    let loopback = told.present[&1].clone();
    assert!(loopback.loopback && loopback.role == Role::Uplink && loopback.link == LinkLayer::Ethernet);

    node.ip("link add host0 type veth peer name eth0");
    let host = told.named("host0");
    assert_eq!(
        (host.role, host.peer_netnsid),
        (Role::Uplink, None),
        "both ends are here"
    );
    assert_eq!(told.named("eth0").ifindex, host.peer_ifindex.unwrap());
    // As Docker does: one end moves away, and only its going is notified.
    node.ip(&format!("link set eth0 netns {}", pod.0));
    told.role(host.ifindex, Role::Workload);
    let host = told.named("host0");
    assert!(host.peer_netnsid.is_some_and(|nsid| nsid >= 0));
    assert_eq!(host.kind, "veth");
    assert!(!host.up);

    told.settle();
    node.ip("link set host0 name renamed0");
    let renamed = told.named("renamed0");
    assert_eq!(renamed.ifindex, host.ifindex);
    assert!(matches!(told.log.last(), Some(Change::Changed { .. })));
    node.ip("link set renamed0 up");
    told.until("up", |present| present[&host.ifindex].up);

    // Inside of a container the pair's end is the way out.
    pod.ip("link set eth0 up");
    node.ip("addr add 10.99.0.2/24 dev renamed0");
    for (family, gateway) in [("-4", "10.99.0.1"), ("-6", "fe80::1")] {
        node.ip(&format!("{family} route add default via {gateway} dev renamed0"));
        told.role(host.ifindex, Role::Uplink);
        node.ip(&format!("{family} route del default"));
        told.role(host.ifindex, Role::Workload);
    }
    // The kernel drops IPv4 routes of an interface that goes down, and does not tell.
    node.ip("route add default via 10.99.0.1 dev renamed0");
    told.role(host.ifindex, Role::Uplink);
    node.ip("link set renamed0 down");
    told.role(host.ifindex, Role::Workload);

    // As CNI plugins do: made inside, and one end moved out.
    pod.ip("link add eth1 type veth peer name host1");
    pod.ip(&format!("link set host1 netns {}", node.0));
    assert_eq!(told.named("host1").role, Role::Workload);

    // Leaving a bridge looks much like being removed.
    node.ip("link add br0 type bridge");
    node.ip("link set host1 master br0");
    node.ip("link set host1 nomaster");
    told.named("host1");
    assert_eq!(told.named("br0").kind, "bridge");

    node.ip("link del renamed0");
    told.until("the removal", |present| !present.contains_key(&host.ifindex));
    drop(pod);
    told.until("the pod's end", |present| {
        present.values().all(|it| it.name != "host1")
    });
}

#[test]
fn the_same_number_again_is_another_interface() {
    if !can_run() {
        return;
    }
    let node = Namespace::new("same");
    for receive_buffer in [4 << 20, 1] {
        // With the small buffer many notifications are lost, and listings have to find out.
        let mut told = Told::new(
            &node,
            WatcherOptions {
                receive_buffer,
                batches: 1,
            },
        );
        for round in 0..5 {
            node.batch("link add name pair0 index 700 type veth peer name pair1 index 701\n");
            let interface = told.named("pair0");
            assert_eq!((interface.ifindex, interface.peer_ifindex), (700, Some(701)));
            told.settle();
            told.log.clear();
            node.batch("link del pair0\nlink add name pair0 index 700 type veth peer name pair1 index 701\n");
            told.settle();
            let mut outline: Vec<_> = told
                .log
                .iter()
                .filter_map(|change| match change {
                    Change::Removed(interface) if interface.ifindex == 700 => Some('-'),
                    Change::Added(interface) if interface.ifindex == 700 => Some('+'),
                    _ => None,
                })
                .collect();
            if receive_buffer == 1 {
                // What was listed can be told again by notifications that waited.
                outline.truncate(2);
            }
            assert_eq!(outline, ['-', '+'], "round {round}, buffer {receive_buffer}");
            node.ip("link del pair0");
            told.until("no a", |present| !present.contains_key(&700));
        }
    }
}

#[test]
fn churn_ends_in_the_truth() {
    if !can_run() {
        return;
    }
    const PAIRS: usize = 100;
    let (node, pods) = (Namespace::new("churn"), Namespace::new("pods"));
    for receive_buffer in [4 << 20, 1] {
        let mut told = Told::new(
            &node,
            WatcherOptions {
                receive_buffer,
                batches: 1,
            },
        );
        let add: String = (0..PAIRS)
            .map(|n| format!("link add h{n} type veth peer name p{n} netns {}\n", pods.0))
            .collect();
        let delete: String = (0..PAIRS).map(|n| format!("link del h{n}\n")).collect();
        node.batch(&add);
        told.until("all", |present| present.len() > PAIRS);
        let mut all = told.present.values();
        assert!(all.all(|it| it.loopback || it.role == Role::Workload));
        node.batch(&delete);
        node.batch(&add);
        node.batch(&delete);
        told.until("none", |present| present.len() == 1);
        told.settle();
        assert_eq!(told.present.len(), 1);
    }
}

#[test]
fn new_interfaces_are_told_at_once() {
    if !can_run() {
        return;
    }
    let (node, pod) = (Namespace::new("quick"), Namespace::new("qpod"));
    let mut told = Told::new(&node, WatcherOptions::default());
    let (sender, receiver) = mpsc::channel();
    let worker = thread::spawn({
        let (node, pod) = (node.0.clone(), pod.0.clone());
        move || {
            for n in 0..10 {
                thread::sleep(Duration::from_millis(30));
                run(&format!(
                    "ip -n {node} link add h{n} type veth peer name p{n} netns {pod}"
                ));
                sender.send(Instant::now()).unwrap();
            }
        }
    });
    let mut late = Vec::new();
    for n in 0..10 {
        told.named(&format!("h{n}"));
        let now = Instant::now();
        late.push(now.saturating_duration_since(receiver.recv().unwrap()));
    }
    worker.join().unwrap();
    println!("told after the command ended by: {late:?}");
    late.sort_unstable();
    // Not a measurement: it would be seconds if changes were found by listing every so often.
    assert!(late[5] < Duration::from_millis(100), "{late:?}");
}

#[test]
fn counters_are_the_interfaces_own() {
    if !can_run() {
        return;
    }
    let node = Namespace::new("count");
    node.ip("link set lo up");
    let (before, after) = node.inside(|| {
        let before = read_counters().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..7 {
            socket.send_to(&[0; 100], socket.local_addr().unwrap()).unwrap();
        }
        (before, read_counters().unwrap())
    });
    let (before, after) = (before[&1], after[&1]);
    assert_eq!(after.tx_packets - before.tx_packets, 7);
    assert_eq!(after.rx_bytes - before.rx_bytes, 7 * (20 + 8 + 100));
    let told = Told::new(&node, WatcherOptions::default());
    assert_eq!(told.present[&1].counters, after);
}

#[test]
fn a_dropped_watcher_ends_its_thread() {
    if !can_run() {
        return;
    }
    let node = Namespace::new("drop");
    // Other tests have such threads too: look at the sockets of this one's namespace instead.
    let sockets = || {
        let list = node.inside(|| fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
        list.lines().count()
    };
    let before = sockets();
    let told = Told::new(&node, WatcherOptions::default());
    assert!(sockets() > before);
    drop(told);
    let deadline = Instant::now() + Duration::from_secs(5);
    while sockets() > before {
        assert!(Instant::now() < deadline, "the thread keeps its sockets");
        thread::sleep(Duration::from_millis(10));
    }
}
