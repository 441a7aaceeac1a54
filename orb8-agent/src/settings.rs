//! The agent's settings: each is defined once, in [`Settings`], and can be given as a flag (`--grpc-port`), in
//! the environment (`ORB8_GRPC_PORT`) or as a key of a TOML file (`grpc_port`). A flag goes before the
//! environment, that before the file, that before the default; where a value came from is remembered.
//!
//! A wrong value stops the start. An unknown key of the file does so too, for it is most likely a misspelt
//! setting that would be ignored; an unknown `ORB8_…` variable only warns, for the environment has other
//! authors (Kubernetes writes `ORB8_AGENT_SERVICE_HOST` for a Service named `orb8-agent`).
//! A variable that is set but empty counts as not set.

mod environment;
mod error;
mod file;
mod flags;
mod gpu;
mod value;

use std::{
    ffi::OsString,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use orb8_proto::v1;
use orb8_tls::TlsFiles;

pub use environment::{Environment, ProcessEnvironment};
pub use error::{Names, SettingsError};
pub use flags::{Flags, command};
pub use gpu::{ExporterUrl, NvmlLibrary, PodResourcesSocket};
pub use value::{
    AttachMode, ByteSize, DirectoryPath, FilePath, LogFilter, NodeName, SettingValue, SyscallMode,
    SyscallNames, WatchPods,
};

use crate::interfaces::InterfacePattern;

/// The file that is read if it exists and no other is named.
pub const DEFAULT_FILE: &str = "/etc/orb8/agent.toml";
/// The variable that names another file.
pub const FILE_VARIABLE: &str = "ORB8_CONFIG";

/// Where a value came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Source {
    /// Nobody set it.
    #[default]
    Default,
    /// The TOML file.
    File,
    /// An `ORB8_…` variable.
    Environment,
    /// A command-line flag.
    Flag,
}

impl Source {
    /// As the protocol's `Setting.source` has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        }
    }
}

/// What is known about one setting; made by [`settings!`] from its one definition.
struct Definition {
    /// Key in the file; the other names are made of it.
    key: &'static str,
    /// The field's documentation.
    help: &'static str,
    placeholder: &'static str,
    /// The field is a list: the flag may be given several times, and the key may be an array.
    list: bool,
    /// The range in words.
    allowed: fn() -> String,
    /// Reads a value and sets it, or says what is wrong with it.
    set: fn(&mut Settings, &str) -> Result<(), String>,
    show: fn(&Settings) -> String,
}

impl Definition {
    const fn names(&self) -> Names {
        Names { key: self.key }
    }
}

/// Whether a value is in a setting's range, and the range in words.
macro_rules! range {
    (check $value:ident, any) => {
        true
    };
    (check $value:ident, between($low:expr, $high:expr)) => {
        ($low..=$high).contains($value)
    };
    (check $value:ident, power_of_two($low:expr, $high:expr)) => {
        ($low..=$high).contains($value) && $value.0.is_power_of_two()
    };
    (words $type:ty, any) => {
        <$type>::FORM.to_owned()
    };
    (words $type:ty, between($low:expr, $high:expr)) => {
        format!("{} to {}", $low.show(), $high.show())
    };
    (words $type:ty, power_of_two($low:expr, $high:expr)) => {
        format!("a power of two, {} to {}", $low.show(), $high.show())
    };
}

/// Makes of each definition a field of [`Settings`] and an entry of [`DEFINITIONS`].
macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $key:ident: $type:ty = $default:expr, $range:ident $(($($bound:expr),+))? $(, $list:literal)?;
    )+) => {
        /// The agent's settings. [`Settings::default`] is what an agent without flags, environment and file has.
        #[derive(Clone, Debug)]
        pub struct Settings {
            $(
                $(#[doc = $doc])+
                pub $key: $type,
            )+
            /// By place in [`DEFINITIONS`].
            sources: [Source; DEFINITIONS.len()],
            file: Option<PathBuf>,
            warnings: Vec<String>,
        }

        impl Default for Settings {
            fn default() -> Self {
                Self {
                    $($key: $default,)+
                    sources: [Source::Default; DEFINITIONS.len()],
                    file: None,
                    warnings: Vec::new(),
                }
            }
        }

        const DEFINITIONS: &[Definition] = &[$(
            Definition {
                key: stringify!($key),
                help: concat!($($doc, "\n"),+),
                placeholder: <$type>::PLACEHOLDER,
                list: false $(|| $list)?,
                allowed: || range!(words $type, $range $(($($bound),+))?),
                set: |settings, text| {
                    let value = <$type as SettingValue>::parse(text)?;
                    let in_range = |value: &$type| {
                        let _ = value;
                        range!(check value, $range $(($($bound),+))?)
                    };
                    if !in_range(&value) {
                        return Err("out of range".to_owned());
                    }
                    settings.$key = value;
                    Ok(())
                },
                show: |settings| settings.$key.show(),
            },
        )+];
    };
}

settings! {
    /// Address that the gRPC service listens on. Others than loopback need certificates (tls_cert, tls_key, tls_ca).
    grpc_address: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST), any;
    /// Port of the gRPC service; 0 takes any free port and logs which.
    grpc_port: u16 = 9090, between(0u16, 65535u16);
    /// gRPC connections at once; more are closed.
    grpc_connections: u32 = 256, between(1u32, 65_536u32);
    /// This agent's certificate, in PEM, for the DNS name agent.orb8: with it, tls_key and tls_ca, gRPC is served over TLS,
    /// and only to server.orb8 and operator.orb8. The files are looked at for changes every 10 s.
    tls_cert: FilePath = FilePath::default(), any;
    /// The certificate's private key, in PEM.
    tls_key: FilePath = FilePath::default(), any;
    /// Certificate authorities, in PEM, that clients' certificates must come from.
    tls_ca: FilePath = FilePath::default(), any;
    /// Whether gRPC may be served in plain text on other addresses than loopback: anybody who reaches the port may ask.
    insecure: bool = false, any;
    /// Whether Prometheus metrics, /healthz and /readyz are served.
    metrics: bool = true, any;
    /// Address that metrics, /healthz and /readyz are served on.
    metrics_address: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST), any;
    /// Port of metrics, /healthz and /readyz; 0 takes any free port and logs which.
    metrics_port: u16 = 9091, between(0u16, 65535u16);
    /// Bound on the owners that have metrics of their own, as time series; the rest is summed under `other`.
    metrics_series: u32 = 2000, between(16u32, 1_000_000u32);
    /// How often counters are taken out of the kernel.
    interval: Duration = Duration::from_secs(1), between(Duration::from_millis(100), Duration::from_secs(60));
    /// Entries of each flow map in the kernel (there are two, which take turns): the flows that one interval
    /// can tell apart. What has no room is counted without detail.
    flow_entries: u32 = 131_072, between(1024u32, 4_194_304u32);
    /// Bytes of the ring buffer for live events. A full ring costs liveness, never counts.
    ring_buffer_size: ByteSize = ByteSize::mib(1), power_of_two(page_size(), ByteSize::mib(32));
    /// Events that a subscriber of the live stream may lag behind before it misses some (and is told).
    stream_buffer: u32 = 4096, between(64u32, 1_048_576u32);
    /// How far back queries can look.
    history: Duration = Duration::from_secs(300), between(Duration::from_secs(10), Duration::from_secs(3600));
    /// Memory for that history. The oldest goes first, and is counted.
    history_bytes: ByteSize = ByteSize::mib(40), between(ByteSize::mib(1), ByteSize::mib(1024));
    /// Flows in that history. The oldest goes first, and is counted.
    history_flows: u32 = 1_000_000, between(1024u32, 67_108_864u32);
    /// Interfaces to observe besides those of containers: names or patterns (`*`, `?`). May be repeated.
    interface: Vec<InterfacePattern> = Vec::new(), any, true;
    /// How programs get onto interfaces: tcx needs Linux 6.6, auto takes clsact before that.
    attach: AttachMode = AttachMode::Auto, any;
    /// Whether traffic of the host's own sockets is counted (needs cgroup2).
    sockets: bool = true, any;
    /// Whether round-trip times, retransmits and failed connects are taken from sockets (needs cgroup2).
    tcp_health: bool = true, any;
    /// Whether the cluster's API server is asked for the names of pods, Services and nodes, if there is one: in a pod by
    /// its service account, elsewhere by `kubeconfig` or KUBECONFIG, and then only if this machine is one of its nodes.
    kubernetes: bool = true, any;
    /// Kubeconfig file; goes before a service account and KUBECONFIG.
    kubeconfig: FilePath = FilePath::default(), any;
    /// Whose pods are watched: of the whole cluster, so that peers on other nodes have names, or, in very large clusters,
    /// of this node.
    watch_pods: WatchPods = WatchPods::Cluster, any;
    /// Whether connection tracking is read, to tell Services and their backends.
    conntrack: bool = true, any;
    /// Whether DNS answers that workloads get are read, to name external addresses.
    dns: bool = true, any;
    /// What the syscall programs do: nothing (off), count calls as they are entered (counts), or also tell how each ended and
    /// how long it took (latency). It can be switched while the agent runs, by SetSyscallMode.
    syscall_mode: SyscallMode = SyscallMode::Counts, any;
    /// Pairs of cgroup and ABI whose calls are told apart by number, 7 KiB each in the kernel. The calls of those without
    /// room are counted by cgroup.
    syscall_callers: u32 = 1024, between(16u32, 65536u32);
    /// Latency histograms (of a cgroup, ABI and call) in latency mode, 344 bytes each; as many errors (of a cgroup, ABI,
    /// call and errno) are told apart.
    syscall_latencies: u32 = 16384, between(256u32, 1048576u32);
    /// Calls whose errors and times latency mode measures, separated by commas; none named: all. The others are only
    /// counted, and cost little more than in mode counts.
    syscall_measured: SyscallNames = SyscallNames::none(), any;
    /// Bytes of the ring buffer for calls that are told one by one. A full ring costs liveness, never counts.
    syscall_ring_size: ByteSize = ByteSize::kib(512), power_of_two(page_size(), ByteSize::mib(32));
    /// Memory for the history of calls, which goes back as far as `history`. The oldest goes first, and is counted.
    syscall_history_bytes: ByteSize = ByteSize::mib(8), between(ByteSize::kib(256), ByteSize::mib(1024));
    /// Calls that are told one by one to those who follow events, separated by commas.
    syscall_events: SyscallNames = SyscallNames::default(), any;
    /// Bound on the time series of calls. An owner has 39 at most: its 20 most frequent calls, its 8 most frequent errors,
    /// and the rest of each.
    syscall_series: u32 = 10_000, between(64u32, 1_000_000u32);
    /// So long a workload's calls are watched before anything about them is new or unusual.
    syscall_warmup: Duration = Duration::from_secs(600), between(Duration::from_secs(1), Duration::from_secs(604_800));
    /// Whether GPUs are looked for: by dcgm-exporter, by NVIDIA's library, and in the kubelet's allocations.
    gpu: bool = true, any;
    /// Page of the dcgm-exporter on this node; none unless it answers.
    gpu_dcgm_url: ExporterUrl = ExporterUrl::default(), any;
    /// Which NVML (libnvidia-ml.so.1, NVIDIA's management library) is read: the one that the loader finds, or none, or one by
    /// its path.
    gpu_nvml: NvmlLibrary = NvmlLibrary::default(), any;
    /// How often GPUs are sampled, and the kubelet is asked who holds them.
    gpu_interval: Duration = Duration::from_secs(5), between(Duration::from_secs(1), Duration::from_secs(10));
    /// The kubelet's socket that tells which container holds which device.
    gpu_pod_resources: PodResourcesSocket = PodResourcesSocket::default(), any;
    /// What uprobes on the CUDA libraries of processes do: nothing (off), count calls and allocations (counts), or also tell
    /// how each call ended and how long it took (latency). A traced call costs its process
    /// microseconds (docs/PERFORMANCE.md).
    gpu_cuda: SyscallMode = SyscallMode::Off, any;
    /// Directory where the agent keeps what it has learned about workloads' calls, over its own end; none unless given.
    state_dir: DirectoryPath = DirectoryPath::default(), any;
    /// Name of this node in answers, and in the cluster; the host name unless given.
    node: NodeName = NodeName::of_host(), any;
    /// What is logged: a level (error, warn, info, debug, trace) or a list such as `info,orb8_agent=debug`.
    log: LogFilter = LogFilter::default(), any;
}

/// The kernel takes ring buffers of whole pages.
fn page_size() -> ByteSize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    ByteSize(
        size.ok()
            .flatten()
            .and_then(|size| u64::try_from(size).ok())
            .unwrap_or(4096),
    )
}

impl Settings {
    /// Reads the settings of a program started with `args` (the first is its name): flags, environment, file.
    ///
    /// # Errors
    /// [`SettingsError`] for a wrong flag, value, file or key. [`SettingsError::Arguments`] also stands for
    /// `--help` and `--version`; print it with `clap::Error::exit`.
    pub fn load<A>(
        args: impl IntoIterator<Item = A>,
        environment: &impl Environment,
    ) -> Result<Self, SettingsError>
    where
        A: Into<OsString> + Clone,
    {
        let matches = command().try_get_matches_from(args)?;
        let flags = <Flags as clap::FromArgMatches>::from_arg_matches(&matches)?;
        Self::from_flags(&flags, environment)
    }

    /// As [`Settings::load`], with flags that the caller's own command line took (`#[command(flatten)]`).
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_flags(flags: &Flags, environment: &impl Environment) -> Result<Self, SettingsError> {
        Self::from_layers(flags, environment, Path::new(DEFAULT_FILE))
    }

    /// Defaults, and what the environment says of GPUs: for a program that looks at them itself.
    ///
    /// # Errors
    /// [`SettingsError`] for a wrong value.
    pub fn of_gpus(environment: &impl Environment) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        for (index, text) in environment::values(environment)? {
            let key = DEFINITIONS[index].names().key();
            if key == "gpu" || key.starts_with("gpu_") {
                settings.apply(index, Source::Environment, None, &text)?;
            }
        }
        Ok(settings)
    }

    fn from_layers(
        flags: &Flags,
        environment: &impl Environment,
        default_file: &Path,
    ) -> Result<Self, SettingsError> {
        let named = match &flags.config {
            Some(path) => Some(path.clone()),
            None => environment
                .get(FILE_VARIABLE)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
        };
        let mut settings = Self::default();
        // Lowest precedence first: what comes later replaces.
        if let Some((path, values)) = file::read(named.as_deref(), default_file)? {
            for (index, text) in values {
                settings.apply(index, Source::File, Some(&path), &text)?;
            }
            settings.file = Some(path);
        }
        for (index, text) in environment::values(environment)? {
            settings.apply(index, Source::Environment, None, &text)?;
        }
        for (index, text) in &flags.values {
            settings.apply(*index, Source::Flag, None, text)?;
        }
        settings.check_together()?;
        settings.warnings = environment::warnings(environment);
        Ok(settings)
    }

    fn apply(
        &mut self,
        index: usize,
        source: Source,
        file: Option<&Path>,
        text: &str,
    ) -> Result<(), SettingsError> {
        let definition = &DEFINITIONS[index];
        (definition.set)(self, text).map_err(|reason| SettingsError::Value {
            names: definition.names(),
            source_kind: source,
            file: file.map(Path::to_owned),
            value: text.to_owned(),
            reason,
            allowed: (definition.allowed)(),
        })?;
        self.sources[index] = source;
        Ok(())
    }

    /// What each value alone does not show.
    fn check_together(&self) -> Result<(), SettingsError> {
        if self.history < self.interval {
            return Err(SettingsError::Conflict(format!(
                "history ({}) is shorter than interval ({}), so that no query would find anything: \
                 lengthen `--history` or shorten `--interval`",
                self.history.show(),
                self.interval.show(),
            )));
        }
        let tls = [
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("tls_ca", &self.tls_ca),
        ];
        let (given, missing): (Vec<_>, Vec<_>) = tls.into_iter().partition(|(_, path)| path.get().is_some());
        if let (Some((given, _)), Some((missing, _))) = (given.first(), missing.first()) {
            return Err(SettingsError::Conflict(format!(
                "{given} is given and {missing} is not: TLS takes tls_cert, tls_key and tls_ca"
            )));
        }
        if given.is_empty() && !self.insecure && !self.grpc_address.is_loopback() {
            return Err(SettingsError::Conflict(format!(
                "grpc_address is {}, which is not loopback, and there are no certificates: give tls_cert, tls_key and tls_ca \
                 (`--tls-cert`, ORB8_TLS_CERT, …), or `--insecure=on` if anybody who reaches the port may ask",
                self.grpc_address
            )));
        }
        let same_address = self.grpc_address == self.metrics_address
            || self.grpc_address.is_unspecified()
            || self.metrics_address.is_unspecified();
        if self.metrics && self.grpc_port != 0 && self.grpc_port == self.metrics_port && same_address {
            return Err(SettingsError::Conflict(format!(
                "gRPC and metrics cannot both listen on port {}: change `--grpc-port` (ORB8_GRPC_PORT) or \
                 `--metrics-port` (ORB8_METRICS_PORT)",
                self.grpc_port
            )));
        }
        Ok(())
    }

    /// The certificates' files, if there are any.
    #[must_use]
    pub fn tls(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            ca: self.tls_ca.get()?.to_owned(),
            cert: self.tls_cert.get().map(Path::to_owned),
            key: self.tls_key.get().map(Path::to_owned),
        })
    }

    /// How gRPC is served, for `status`.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        if self.tls_ca.get().is_some() {
            "TLS 1.3, clients by certificate"
        } else if self.grpc_address.is_loopback() {
            "plain text on loopback"
        } else {
            "plain text to the network (insecure)"
        }
    }

    /// Where the value of a setting came from; `None` if there is no setting of this key.
    #[must_use]
    pub fn source(&self, key: &str) -> Option<Source> {
        Some(self.sources[position(key)?])
    }

    /// The file that was read, if any.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What the person who started the agent should look at, one sentence each: variables that look like
    /// settings and are none.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Each setting with its value and source, in the order of `--help`. The value reads back as given.
    #[must_use]
    pub fn describe(&self) -> Vec<v1::Setting> {
        DEFINITIONS
            .iter()
            .zip(self.sources)
            .map(|(definition, source)| v1::Setting {
                name: definition.key.to_owned(),
                value: (definition.show)(self),
                source: source.as_str().to_owned(),
            })
            .collect()
    }
}

/// All settings in columns, one a line, as `orb8-agent config` prints them: key, value, source.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.describe();
        let width = |text: fn(&v1::Setting) -> &str| {
            settings
                .iter()
                .map(|setting| text(setting).chars().count())
                .max()
                .unwrap_or(0)
        };
        let (names, values) = (width(|setting| &setting.name), width(|setting| &setting.value));
        for v1::Setting { name, value, source } in &settings {
            write!(f, "{name:names$}  {value:values$}  {source}")?;
            match &self.file {
                Some(file) if source == Source::File.as_str() => writeln!(f, " {}", file.display())?,
                _ => writeln!(f)?,
            }
        }
        Ok(())
    }
}

fn position(key: &str) -> Option<usize> {
    DEFINITIONS.iter().position(|definition| definition.key == key)
}

/// The setting whose key is most like `key`, if any is close enough to be a slip.
fn nearest(key: &str) -> Option<&'static str> {
    let (distance, nearest) = DEFINITIONS
        .iter()
        .map(|definition| (strsim::damerau_levenshtein(key, definition.key), definition.key))
        .min()?;
    (distance <= 3 && distance < nearest.len()).then_some(nearest)
}

#[cfg(test)]
mod tests;
