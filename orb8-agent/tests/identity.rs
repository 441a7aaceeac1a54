//! Owners of real cgroups, sockets, interfaces and addresses, which the tests make.

use std::{
    fs::{self, File},
    net::{IpAddr, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use orb8_agent::{
    identity::{
        Identity, IdentityError, IdentityOptions,
        cgroups::{CgroupLimits, Cgroups, mount_point},
        owner::{Attribution, Kind, Owner},
    },
    interfaces::{Change, Interface, InterfaceWatcher, Role},
};

/// Whether the test can run; says why not.
fn can_run() -> bool {
    let why = if !nix::unistd::geteuid().is_root() {
        "needs root to make cgroups and network namespaces".to_owned()
    } else if let Err(error) = mount_point(Path::new("/proc")) {
        error.to_string()
    } else {
        return true;
    };
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

/// Repeats `attempt` until it gives something.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A cgroup, removed at the end together with its parents as far as they are empty.
struct Cgroup {
    root: PathBuf,
    path: String,
}

impl Cgroup {
    fn new(path: &str) -> Self {
        let path = path.replace("PID", &std::process::id().to_string());
        let root = mount_point(Path::new("/proc")).unwrap();
        fs::create_dir_all(root.join(&path[1..])).unwrap();
        Self { root, path }
    }

    fn directory(&self) -> PathBuf {
        self.root.join(&self.path[1..])
    }

    fn id(&self) -> u64 {
        fs::metadata(self.directory()).unwrap().ino()
    }

    fn take(&self, pid: u32) {
        fs::write(self.directory().join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in self.directory().ancestors() {
            if directory == self.root || fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }
}

/// A process, killed at the end.
struct Process(Child);

impl Process {
    fn new(command: &str) -> Self {
        let words: Vec<&str> = command.split(' ').collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

    /// Runs `work` on a thread inside.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        let thread = thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    fn process(&self) -> Process {
        let process = Process::new(&format!("nsenter --net=/run/netns/{} sleep 1000", self.0));
        let comm = format!("/proc/{}/comm", process.id());
        eventually("sleep", || {
            (fs::read_to_string(&comm).ok()? == "sleep\n").then_some(())
        });
        process
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn limits() -> CgroupLimits {
    CgroupLimits {
        cgroups: 10_000,
        watches: 10_000,
        retention: Duration::from_secs(60),
    }
}

#[test]
fn cgroups_are_named_also_when_gone() {
    if !can_run() {
        return;
    }
    let before = Cgroup::new("/system.slice/orb8-test-PID-before.service");
    let mut identity = Identity::new(IdentityOptions::default()).unwrap();
    assert!(identity.degraded().is_empty());
    let root = identity.cgroups().unwrap().root_id();
    let owner = identity.socket_owner(root, 0, None, None);
    assert_eq!((owner.cgroup.as_str(), owner.kind), ("", Kind::Host));

    let owner = identity.socket_owner(before.id(), 1, None, None);
    assert_eq!(owner.unit, before.path.rsplit('/').next().unwrap());
    assert_eq!(owner.cgroup, before.path);
    assert_eq!(owner.attribution, Attribution::Cgroup);
    assert_eq!(
        (owner.process.as_str(), owner.pid),
        ("", 0),
        "one owner, not one a process"
    );

    // Asked for at once, and only when gone.
    let id = "1234567890abcdef".repeat(4);
    let now = Cgroup::new(&format!("/orb8-test-PID-now.slice/docker-{id}.scope"));
    assert_eq!(identity.socket_owner(now.id(), 0, None, None).container, id);
    let brief = Cgroup::new(&format!(
        "/orb8-test-PID-brief/kubepods/burstable/pod{}/{id}",
        &id[..32]
    ));
    let brief_id = brief.id();
    thread::sleep(Duration::from_millis(100));
    drop(brief);
    thread::sleep(Duration::from_millis(100));
    let owner = identity.socket_owner(brief_id, 0, None, None);
    assert_eq!((owner.container, owner.attribution), (id, Attribution::Cgroup));

    let unknown = identity.socket_owner(u64::MAX - 7, 0, None, None);
    assert_eq!(
        (unknown.kind, unknown.attribution),
        (Kind::Process, Attribution::Unknown)
    );
    for limit in identity.limits() {
        assert!(limit.used <= limit.max && limit.turned_away == 0, "{limit:?}");
    }
}

#[test]
fn cgroups_are_bounded() {
    if !can_run() {
        return;
    }
    let root = mount_point(Path::new("/proc")).unwrap();
    let few = CgroupLimits {
        cgroups: 2,
        watches: 2,
        ..limits()
    };
    let made: Vec<_> = (0..5)
        .map(|n| Cgroup::new(&format!("/orb8-test-PID-bound/{n}.service")))
        .collect();
    let cgroups = Cgroups::open(&root, few).unwrap();
    eventually("a full table", || {
        let [names, watches] = cgroups.limits();
        assert!(names.used <= 2 && watches.used <= 2);
        (names.turned_away > 0 && watches.turned_away > 0).then_some(())
    });
    if cgroups.by_handle() {
        for cgroup in &made {
            assert_eq!(cgroups.path(cgroup.id()).as_deref(), Some(cgroup.path.as_str()));
        }
    }
}

#[test]
fn a_storm_of_cgroups_leaves_the_truth() {
    if !can_run() {
        return;
    }
    let root = mount_point(Path::new("/proc")).unwrap();
    let cgroups = Cgroups::open(&root, limits()).unwrap();
    let mut ids = Vec::new();
    for n in 0..300 {
        let cgroup = Cgroup::new(&format!("/orb8-test-PID-storm/{n}.scope/inner"));
        ids.push((cgroup.id(), cgroup.path.clone()));
        thread::sleep(Duration::from_millis(2));
    }
    thread::sleep(Duration::from_millis(100));
    let named = ids
        .iter()
        .filter(|(id, path)| cgroups.path(*id).as_deref() == Some(path))
        .count();
    println!("{named} of 300 cgroups that lived 2 ms are named");
    assert!(named > 200, "{named}");
    let last = Cgroup::new("/orb8-test-PID-last.service");
    let found = eventually("the last", || cgroups.path(last.id()));
    assert_eq!(&*found, last.path);
}

#[test]
fn says_what_is_not_cgroup2() {
    let directory = tempfile::tempdir().unwrap();
    let error = Cgroups::open(directory.path(), limits()).unwrap_err();
    assert!(matches!(&error, IdentityError::NotCgroup2 { path } if path == directory.path()));
    fs::create_dir(directory.path().join("self")).unwrap();
    fs::write(
        directory.path().join("self/mountinfo"),
        "1 1 0:1 / / rw - ext4 a rw\n",
    )
    .unwrap();
    let error = mount_point(directory.path()).unwrap_err();
    assert!(error.to_string().contains("mount -t cgroup2"), "{error}");
}

#[test]
fn processes_are_named_where_cgroups_name_nothing() {
    if !can_run() {
        return;
    }
    let mut identity = Identity::new(IdentityOptions::default()).unwrap();
    let root = identity.cgroups().unwrap().root_id();
    let me = std::process::id();
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    let told = identity.socket_owner(root, me, Some(*b"thread\0\0\0\0\0\0\0\0\0\0"), None);
    assert_eq!((told.process.as_str(), told.pid), (comm.trim(), me));
    assert_eq!(told.attribution, Attribution::Socket);
    assert_eq!(told.cgroup, "/");
    let gone = identity.socket_owner(root, u32::MAX, Some(*b"gone\0\0\0\0\0\0\0\0\0\0\0\0"), None);
    assert_eq!(gone.process, "gone");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    let mapped = IpAddr::V6(
        "127.0.0.1"
            .parse::<std::net::Ipv4Addr>()
            .unwrap()
            .to_ipv6_mapped(),
    );
    let found = identity.socket_owner(
        root,
        0,
        None,
        Some((libc::IPPROTO_TCP as u8, mapped, local.port())),
    );
    assert_eq!((found.pid, found.attribution), (me, Attribution::Socket));

    let socket = UdpSocket::bind("[::1]:0").unwrap();
    let existing = identity.existing_sockets().unwrap();
    let mut cookie = 0u64;
    let mut length = 8;
    // SAFETY: SO_COOKIE writes 8 bytes.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    let mine = existing.iter().find(|socket| socket.cookie == cookie).unwrap();
    assert_eq!(mine.tgid, me);
}

/// Interfaces of a namespace as the watcher first tells them.
fn interfaces(node: &Namespace) -> Vec<Interface> {
    let mut watcher = node.inside(|| InterfaceWatcher::new().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let changes = runtime.block_on(watcher.next()).unwrap();
    changes
        .into_iter()
        .map(|change| match change {
            Change::Added(interface) => interface,
            change => panic!("{change:?}"),
        })
        .collect()
}

fn host() -> Owner {
    Owner {
        kind: Kind::Host,
        attribution: Attribution::HostIp,
        ..Owner::default()
    }
}

#[test]
fn interfaces_and_addresses_belong_to_who_lives_there() {
    if !can_run() {
        return;
    }
    let (node, pod) = (Namespace::new("inode"), Namespace::new("ipod"));
    node.ip(&format!(
        "link add host0 type veth peer name eth0 netns {}",
        pod.0
    ));
    node.ip("addr add 10.98.0.1/24 dev host0");
    node.ip("addr add fd98::1/64 dev host0 nodad");
    node.ip("link set host0 up");
    pod.ip("link set eth0 up");
    pod.ip("addr add 10.98.0.2/24 dev eth0");
    pod.ip("addr add fd98::2/64 dev eth0 nodad");
    let all = interfaces(&node);
    let veth = all.iter().find(|interface| interface.name == "host0").unwrap();
    assert_eq!(veth.role, Role::Workload);

    let mut identity = node.inside(|| Identity::new(IdentityOptions::default()).unwrap());
    // The namespace has a name, and no process yet.
    let empty = identity.interface_owner(veth);
    assert_eq!(
        (empty.netns.as_str(), empty.process.as_str()),
        (pod.0.as_str(), "")
    );
    assert_eq!(
        (empty.kind, empty.attribution),
        (Kind::Process, Attribution::Veth)
    );
    for address in ["10.98.0.2", "fd98::2", "::ffff:10.98.0.2"] {
        let owner = identity.address_owner(address.parse().unwrap());
        assert_eq!(
            owner,
            Owner {
                attribution: Attribution::NetnsIp,
                ..empty.clone()
            },
            "{address}"
        );
    }
    for address in ["10.98.0.1", "fd98::1", "127.0.0.1", "127.9.9.9", "::1"] {
        assert_eq!(
            identity.address_owner(address.parse().unwrap()),
            host(),
            "{address}"
        );
    }
    for address in [
        "8.8.8.8",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1",
        "2001:db8::1",
    ] {
        assert_eq!(
            identity.address_owner(address.parse().unwrap()),
            Owner::default(),
            "{address}"
        );
    }
    let loopback = all.iter().find(|interface| interface.loopback).unwrap();
    assert_eq!(identity.interface_owner(loopback), host());

    // A container moves in, and then somebody who only looks around there: the container is what the namespace is for.
    let id = "fedcba0987654321".repeat(4);
    let cgroup = Cgroup::new(&format!("/orb8-test-PID-net.slice/cri-containerd-{id}.scope"));
    let app = pod.process();
    cgroup.take(app.id());
    let resident = pod.process();
    let owner = eventually("a container", || {
        identity.refresh().unwrap();
        let owner = identity.interface_owner(veth);
        (owner.container == id).then_some(owner)
    });
    assert_eq!((owner.process.as_str(), owner.pid), ("", 0));
    assert_eq!(owner.cgroup, cgroup.path);
    assert_eq!(identity.address_owner("10.98.0.2".parse().unwrap()).container, id);

    // Addresses change on both sides.
    pod.ip("addr add 10.98.0.3/24 dev eth0");
    node.ip("addr add 10.98.0.4/24 dev host0");
    eventually("new addresses", || {
        identity.refresh().unwrap();
        let (three, four) = ("10.98.0.3".parse().unwrap(), "10.98.0.4".parse().unwrap());
        (identity.address_owner(three).container == id && identity.address_owner(four) == host())
            .then_some(())
    });

    // Another namespace with the same address: nobody knows which is meant.
    let twin = Namespace::new("itwin");
    node.ip(&format!(
        "link add host1 type veth peer name eth0 netns {}",
        twin.0
    ));
    twin.ip("addr add 10.98.0.2/24 dev eth0");
    let owner = eventually("a doubt", || {
        identity.refresh().unwrap();
        let all = interfaces(&node);
        let other = all.iter().find(|interface| interface.name == "host1").unwrap();
        assert_eq!(other.role, Role::Workload);
        identity.interface_owner(other);
        let owner = identity.address_owner("10.98.0.2".parse().unwrap());
        owner.container.is_empty().then_some(owner)
    });
    assert_eq!(
        (owner.kind, owner.attribution),
        (Kind::Process, Attribution::Unknown)
    );

    // Late questions about a namespace which is gone.
    let (gone, gone_name) = (twin, veth.clone());
    drop(gone);
    drop((app, resident, cgroup));
    drop(pod);
    thread::sleep(Duration::from_millis(1500));
    identity.refresh().unwrap();
    assert_eq!(identity.interface_owner(&gone_name).container, id);
    // The kernel takes namespaces down in the background; ours must not keep it.
    eventually("the veth goes with its namespace", || {
        interfaces(&node)
            .iter()
            .all(|it| it.name != "host0")
            .then_some(())
    });
}

#[test]
fn a_namespace_without_an_id_has_its_addresses_by_proc() {
    if !can_run() {
        return;
    }
    // macvlan pods and nested containers: no pair ties them to us, so they have no id here.
    let (node, apart) = (Namespace::new("pnode"), Namespace::new("apart"));
    apart.ip("link set lo up");
    apart.ip("addr add 10.97.0.9/32 dev lo");
    apart.ip("addr add fd97::9/128 dev lo nodad");
    let _process = apart.process();
    let mut identity = node.inside(|| Identity::new(IdentityOptions::default()).unwrap());
    for address in ["10.97.0.9", "fd97::9"] {
        let owner = identity.address_owner(address.parse().unwrap());
        assert_eq!(owner.attribution, Attribution::NetnsIp, "{address}");
        assert_eq!(owner.netns, apart.0);
    }
}
