//! Network namespaces, and the small network that every test makes for itself.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Whether kernel tests can run here; says why not. With `ORB8_REQUIRE_KERNEL=1` it panics instead.
pub(crate) fn can_run() -> bool {
    let why = if !nix::unistd::geteuid().is_root() {
        "needs root, to load eBPF programs and make network namespaces"
    } else if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "needs ip, of iproute2"
    } else {
        return true;
    };
    let required = std::env::var_os("ORB8_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    assert!(!required, "{why}");
    // Not println: the test harness would keep it to itself.
    let _ = writeln!(io::stderr(), "skipped: {why}");
    false
}

/// Runs a command that must succeed; words are separated by single spaces.
pub(crate) fn run(command: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {message}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An interface's own counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) rx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
}

impl std::ops::Sub for Counters {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            rx_packets: self.rx_packets - before.rx_packets,
            rx_bytes: self.rx_bytes - before.rx_bytes,
            tx_packets: self.tx_packets - before.tx_packets,
            tx_bytes: self.tx_bytes - before.tx_bytes,
        }
    }
}

/// A named network namespace, removed at the end.
#[derive(Debug)]
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "orb8-{name}-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        run(&format!("ip netns add {name}"));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    pub(crate) fn open(&self) -> File {
        File::open(format!("/run/netns/{}", self.0)).unwrap()
    }

    pub(crate) fn ip(&self, command: &str) {
        run(&format!("ip -n {} {command}", self.0));
    }

    /// Runs many `ip` commands at once.
    pub(crate) fn batch(&self, commands: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), commands).unwrap();
        self.ip(&format!("-batch {}", file.path().display()));
    }

    /// Runs a command inside that must succeed.
    pub(crate) fn run(&self, command: &str) -> String {
        run(&format!("nsenter --net=/run/netns/{} {command}", self.0))
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = self.open();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The counters of an interface in `/proc/net/dev` (net/core/net-procfs.c).
fn counters_of(table: &str, interface: &str) -> Counters {
    let numbers = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no interface {interface} in\n{table}"));
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    Counters {
        rx_bytes: numbers[0],
        rx_packets: numbers[1],
        tx_bytes: numbers[8],
        tx_packets: numbers[9],
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Hardware addresses of the two containers.
pub(crate) const MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x0a], [2, 0, 0, 0, 0, 0x0b]];
/// IPv4 addresses of the two containers.
pub(crate) const V4: [&str; 2] = ["10.8.0.1", "10.8.0.2"];
/// IPv6 addresses of the two containers.
pub(crate) const V6: [&str; 2] = ["fd08::1", "fd08::2"];

/// A machine with two containers: `eth0` of each is joined to the machine's bridge by `va` and `vb`.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) host: Namespace,
    pub(crate) containers: [Namespace; 2],
}

impl Network {
    pub(crate) fn new(name: &str) -> Self {
        let host = Namespace::new(&format!("{name}-host"));
        let containers = [
            Namespace::new(&format!("{name}-a")),
            Namespace::new(&format!("{name}-b")),
        ];
        host.batch(
            "link add br0 type bridge mcast_snooping 0\n\
             addr add 10.8.0.254/24 dev br0\n\
             addr add fd08::fe/64 dev br0 nodad\n\
             link set br0 up\n",
        );
        for (i, container) in containers.iter().enumerate() {
            let letter = ["a", "b"][i];
            let (mac, other) = ([MAC[i], MAC[1 - i]], 1 - i);
            let mac = mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
            host.batch(&format!(
                "link add v{letter} type veth peer name eth0 netns {}\n\
                 link set v{letter} master br0 addrgenmode none up\n",
                container.name()
            ));
            container.batch(&format!(
                "link set eth0 address {} addrgenmode none up\n\
                 addr add {}/24 dev eth0\n\
                 addr add {}/64 dev eth0 nodad\n\
                 neigh replace {} lladdr {} dev eth0 nud permanent\n\
                 neigh replace {} lladdr {} dev eth0 nud permanent\n",
                mac[0], V4[i], V6[i], V4[other], mac[1], V6[other], mac[1],
            ));
        }
        Self { host, containers }
    }

    /// The counters of the machine's ends: `va`, `vb`.
    pub(crate) fn counters(&self) -> [Counters; 2] {
        let table = self
            .host
            .inside(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        [counters_of(&table, "va"), counters_of(&table, "vb")]
    }
}
