//! Types of setting values: how each is read from text and written back.
use std::{collections::BTreeSet, fmt, net::IpAddr, path::Path, str::FromStr, time::Duration};

use tracing_subscriber::EnvFilter;

use super::gpu::{ExporterUrl, NvmlLibrary, PodResourcesSocket};
use crate::{
    interfaces::{InterfacePattern, PatternError},
    syscalls::call::Call,
};

/// A value that a setting can have. `parse(&value.show())` gives the same value.
pub trait SettingValue: Sized {
    /// What the text must look like, for help and errors: "a duration such as 500ms, 1s or 5m".
    const FORM: &'static str;
    /// Placeholder of the value in `--help`.
    const PLACEHOLDER: &'static str;

    /// Reads the value.
    ///
    /// # Errors
    /// A phrase that says what is wrong with `text`.
    fn parse(text: &str) -> Result<Self, String>;

    /// Writes the value as [`SettingValue::parse`] reads it.
    fn show(&self) -> String;
}

macro_rules! from_str_value {
    ($type:ty, $placeholder:literal, $form:literal) => {
        impl SettingValue for $type {
            const FORM: &'static str = $form;
            const PLACEHOLDER: &'static str = $placeholder;

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error| format!("{error}"))
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    };
}

from_str_value!(IpAddr, "ADDRESS", "an IPv4 or IPv6 address");
from_str_value!(u16, "PORT", "a port number");
from_str_value!(u32, "COUNT", "a whole number");
from_str_value!(AttachMode, "MODE", "auto, tcx or clsact");
from_str_value!(
    LogFilter,
    "FILTER",
    "a level or a list of target=level, as in tracing's EnvFilter"
);
from_str_value!(WatchPods, "SCOPE", "cluster or node");
from_str_value!(FilePath, "FILE", "the path of a file; empty for none");
from_str_value!(
    DirectoryPath,
    "DIRECTORY",
    "the absolute path of a directory; empty for none"
);
from_str_value!(SyscallMode, "MODE", "off, counts or latency");
from_str_value!(
    SyscallNames,
    "CALLS",
    "up to 256 names of system calls (also with their ABI, such as i386:execve, or by number), separated by commas; empty \
     for none"
);
from_str_value!(
    ExporterUrl,
    "URL",
    "an http:// address such as http://localhost:9400/metrics; empty for none"
);
from_str_value!(
    NvmlLibrary,
    "LIBRARY",
    "auto, off, or the absolute path of libnvidia-ml.so.1"
);
from_str_value!(
    PodResourcesSocket,
    "SOCKET",
    "the absolute path of a socket; empty for none"
);
from_str_value!(NodeName, "NAME", "1 to 253 printable characters without spaces");

impl SettingValue for Duration {
    const FORM: &'static str = "a duration with its unit, such as 500ms, 1s or 5m";
    const PLACEHOLDER: &'static str = "DURATION";

    fn parse(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map_err(|error| error.to_string())
    }

    fn show(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

impl SettingValue for bool {
    const FORM: &'static str = "on or off";
    const PLACEHOLDER: &'static str = "on|off";

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Ok(true),
            "off" | "false" | "no" | "0" => Ok(false),
            _ => Err("neither on nor off".to_owned()),
        }
    }

    fn show(&self) -> String {
        if *self { "on" } else { "off" }.to_owned()
    }
}

/// A number of bytes, written as `1MiB`, `512KiB`, `4096`, `24 MB` (binary and decimal prefixes differ).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ByteSize(
    /// Bytes.
    pub u64,
);

impl ByteSize {
    /// `n` KiB.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Exact: the largest binary unit that leaves no remainder.
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl SettingValue for ByteSize {
    const FORM: &'static str = "a size such as 1MiB, 512KiB or a number of bytes";
    const PLACEHOLDER: &'static str = "SIZE";

    fn parse(text: &str) -> Result<Self, String> {
        parse_size::parse_size(text)
            .map(Self)
            .map_err(|error| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// How programs get onto an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AttachMode {
    /// tcx where the kernel has it (6.6 and later), otherwise clsact.
    #[default]
    Auto,
    /// tcx links only: an interface fails where the kernel has none.
    Tcx,
    /// A clsact qdisc and filters, even where tcx exists.
    Clsact,
}

impl FromStr for AttachMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            _ => Err("no such attach mode"),
        }
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Whose pods are watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WatchPods {
    /// The whole cluster's.
    #[default]
    Cluster,
    /// This node's.
    Node,
}

impl FromStr for WatchPods {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cluster" => Ok(Self::Cluster),
            "node" => Ok(Self::Node),
            _ => Err("no such scope"),
        }
    }
}

impl fmt::Display for WatchPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
        })
    }
}

/// The path of a directory, if one is given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DirectoryPath(String);

impl DirectoryPath {
    /// The path.
    #[must_use]
    pub fn get(&self) -> Option<&Path> {
        (!self.0.is_empty()).then(|| Path::new(&self.0))
    }
}

impl FromStr for DirectoryPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.chars().any(char::is_control) {
            return Err("it has control characters");
        }
        if !text.is_empty() && !text.starts_with('/') {
            return Err("it is not absolute");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DirectoryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the syscall programs do from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SyscallMode {
    /// Nothing is attached.
    Off,
    /// Calls are counted as they are entered.
    #[default]
    Counts,
    /// Also how each ended, and how long it took.
    Latency,
}

impl FromStr for SyscallMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "counts" => Ok(Self::Counts),
            "latency" => Ok(Self::Latency),
            _ => Err("no such mode"),
        }
    }
}

impl fmt::Display for SyscallMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Counts => "counts",
            Self::Latency => "latency",
        })
    }
}

/// Calls, by their names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyscallNames {
    text: String,
    calls: BTreeSet<Call>,
}

/// More would make the list no list of calls that matter one by one.
const SYSCALL_NAMES_MAX: usize = 256;

impl SyscallNames {
    /// The calls, of each ABI that has the name.
    #[must_use]
    pub const fn calls(&self) -> &BTreeSet<Call> {
        &self.calls
    }

    /// No call.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            text: String::new(),
            calls: BTreeSet::new(),
        }
    }

    /// Of these names, those that this machine has.
    fn known(names: &str) -> Self {
        let known: Vec<_> = names
            .split_whitespace()
            .filter(|name| Call::parse(name).is_ok())
            .collect();
        known.join(",").parse().unwrap_or_else(|_| Self::none())
    }
}

impl Default for SyscallNames {
    fn default() -> Self {
        // The numbers are x32's execve and execveat.
        Self::known(
            "execve execveat x32:520 x32:545 ptrace process_vm_readv process_vm_writev mount umount2 umount pivot_root \
             move_mount setns unshare clone clone3 bpf perf_event_open init_module finit_module delete_module kexec_load \
             kexec_file_load setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups setuid32 \
             setgid32 setreuid32 setregid32 setresuid32 setresgid32 setfsuid32 setfsgid32 setgroups32 capset keyctl \
             io_uring_setup memfd_create userfaultfd chroot personality seccomp reboot",
        )
    }
}

impl FromStr for SyscallNames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut names = Vec::new();
        let mut calls = BTreeSet::new();
        for name in text.split(',').map(str::trim) {
            if text.trim().is_empty() {
                break;
            }
            calls.extend(Call::parse(name).map_err(|error| error.to_string())?);
            names.push(name);
        }
        if names.len() > SYSCALL_NAMES_MAX {
            return Err(format!("{} names are too many", names.len()));
        }
        Ok(Self {
            text: names.join(","),
            calls,
        })
    }
}

impl fmt::Display for SyscallNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The path of a file, if one is given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FilePath(String);

impl FilePath {
    /// The path.
    #[must_use]
    pub fn get(&self) -> Option<&Path> {
        (!self.0.is_empty()).then(|| Path::new(&self.0))
    }
}

impl FromStr for FilePath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.chars().any(char::is_control) {
            return Err("it has control characters");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// More would make each new interface slow to judge.
const INTERFACE_PATTERNS_MAX: usize = 64;

impl SettingValue for Vec<InterfacePattern> {
    const FORM: &'static str = "up to 64 interface names or patterns (* and ?), separated by commas";
    const PLACEHOLDER: &'static str = "NAME|PATTERN";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let patterns = text
            .split(',')
            .map(|part| part.trim().parse())
            .collect::<Result<Self, _>>()
            .map_err(|error: PatternError| error.to_string())?;
        if patterns.len() > INTERFACE_PATTERNS_MAX {
            return Err(format!("{} patterns are too many", patterns.len()));
        }
        Ok(patterns)
    }

    fn show(&self) -> String {
        self.iter()
            .map(InterfacePattern::as_str)
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// What is logged: directives of `tracing_subscriber::EnvFilter`, checked to be well-formed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter itself.
    #[must_use]
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Err("empty".to_owned());
        }
        // The parser of filters cuts other text in the middle of a character, and panics.
        if !text.is_ascii() {
            return Err("it has characters outside of ASCII".to_owned());
        }
        EnvFilter::builder()
            .parse(text)
            .map_err(|error| error.to_string())?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name under which a node answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeName(String);

impl NodeName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The machine's host name; `localhost` where it has none that could be a node's.
    #[must_use]
    pub fn of_host() -> Self {
        nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.to_str()?.parse().ok())
            .unwrap_or_else(|| Self("localhost".to_owned()))
    }
}

impl FromStr for NodeName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // 253 is the longest DNS name, and Kubernetes' limit for a node's.
        if text.is_empty() || text.len() > 253 {
            return Err("empty or too long");
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("it has spaces or control characters");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal() {
        assert_eq!(ByteSize::parse("1MiB"), Ok(ByteSize(1 << 20)));
        assert_eq!(ByteSize::parse("512KiB"), Ok(ByteSize(512 << 10)));
        assert_eq!(ByteSize::parse("24 MB"), Ok(ByteSize(24_000_000)));
        assert_eq!(ByteSize::parse("4096"), Ok(ByteSize(4096)));
        for wrong in ["", "MiB", "-1", "1 parsec", "99999999999999999999", "999999EiB"] {
            assert!(ByteSize::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(Duration::parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(Duration::parse("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["5", "", "-1s", "1 fortnight", "99999999999999999999s"] {
            assert!(Duration::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        let matches = |pattern: &str, name| pattern.parse::<InterfacePattern>().unwrap().matches(name);
        assert!(matches("eth0", "eth0"));
        assert!(!matches("eth0", "eth01"));
        assert!(!matches("eth01", "eth0"));
        assert!(matches("veth*", "veth"));
        assert!(matches("veth*", "veth12ab"));
        assert!(matches("*b*c", "abxbc"));
        assert!(!matches("*b*c", "abxbcd"));
        assert!(matches("e?p?s0", "enp3s0"));
        assert!(!matches("e?p?s0", "enps0"));
        assert!(matches("*", "anything"));
        for wrong in ["", "a/b", "with space", "tab\t", "0123456789abcdef"] {
            assert!(wrong.parse::<InterfacePattern>().is_err(), "{wrong}");
        }
    }

    /// The same matching by the definition, exponential in the stars.
    fn matches_by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                matches_by_definition(rest, name)
                    || (!name.is_empty() && matches_by_definition(pattern, &name[1..]))
            }
            ([b'?', rest @ ..], [_, name @ ..]) => matches_by_definition(rest, name),
            ([c, rest @ ..], [d, name @ ..]) => c == d && matches_by_definition(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_its_definition(pattern in "[ab*?]{1,8}", name in "[ab]{0,10}") {
            let parsed: InterfacePattern = pattern.parse().unwrap();
            prop_assert_eq!(
                parsed.matches(&name),
                matches_by_definition(pattern.as_bytes(), name.as_bytes())
            );
        }

        #[test]
        fn what_is_shown_reads_back(bytes: u64, millis in 0u64..1 << 40) {
            prop_assert_eq!(ByteSize::parse(&ByteSize(bytes).show()), Ok(ByteSize(bytes)));
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(Duration::parse(&duration.show()), Ok(duration));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = ByteSize::parse(&text);
            let _ = Duration::parse(&text);
            let _ = Vec::<InterfacePattern>::parse(&text);
            let _ = LogFilter::parse(&text);
            let _ = NodeName::parse(&text);
            let _ = AttachMode::parse(&text);
            let _ = SyscallNames::parse(&text);
            let _ = SyscallMode::parse(&text);
            let _ = DirectoryPath::parse(&text);
        }
    }
}
