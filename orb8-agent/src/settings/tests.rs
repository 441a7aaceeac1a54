use std::{collections::BTreeMap, ffi::OsString, fs, os::unix::ffi::OsStringExt as _, path::PathBuf};

use clap::FromArgMatches as _;
use proptest::prelude::*;

use super::*;

struct Case {
    _folder: tempfile::TempDir,
    default_file: PathBuf,
    environment: BTreeMap<OsString, OsString>,
    args: Vec<String>,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            default_file: folder.path().join("agent.toml"),
            _folder: folder,
            environment: BTreeMap::new(),
            args: vec!["orb8-agent".to_owned()],
        }
    }

    fn file(self, text: &str) -> Self {
        fs::write(&self.default_file, text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    fn flags(mut self, flags: &[&str]) -> Self {
        self.args.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    fn load(&self) -> Result<Settings, SettingsError> {
        let matches = command().try_get_matches_from(&self.args)?;
        let flags = Flags::from_arg_matches(&matches)?;
        Settings::from_layers(&flags, &self.environment, &self.default_file)
    }

    fn error(&self) -> String {
        self.load()
            .map(|settings| settings.describe())
            .unwrap_err()
            .to_string()
    }
}

#[test]
fn the_command_line_is_well_formed() {
    command().debug_assert();
}

#[test]
fn without_anything_all_are_defaults() {
    let settings = Case::new().load().unwrap();
    assert_eq!(settings.grpc_port, 9090);
    assert_eq!(settings.metrics_port, 9091);
    assert_eq!(settings.interval, Duration::from_secs(1));
    assert_eq!(settings.flow_entries, 131_072);
    assert_eq!(settings.history, Duration::from_secs(300));
    assert!(settings.grpc_address.is_loopback() && settings.metrics_address.is_loopback());
    assert!(
        settings
            .describe()
            .iter()
            .all(|setting| setting.source == "default")
    );
    assert_eq!(settings.file(), None);
}

#[test]
fn every_setting_can_be_given_in_each_place_and_is_shown_so() {
    // Another valid value than the default for each: a new setting fails here until it has one.
    let other = |key: &str| match key {
        "grpc_address" | "metrics_address" => "::1",
        "grpc_port" => "0",
        "metrics_port" => "1",
        "metrics" | "sockets" | "tcp_health" | "kubernetes" | "conntrack" | "dns" | "gpu" => "off",
        "gpu_dcgm_url" => "http://dcgm:9400/metrics",
        "gpu_nvml" => "/opt/nvidia/libnvidia-ml.so.1",
        "gpu_interval" => "10s",
        "gpu_cuda" => "latency",
        "gpu_pod_resources" => "/run/kubelet.sock",
        "kubeconfig" => "/tmp/kubeconfig",
        "insecure" => "on",
        "watch_pods" => "node",
        "metrics_series" | "flow_entries" | "stream_buffer" | "history_flows" | "grpc_connections" => "5000",
        "syscall_callers" | "syscall_latencies" | "syscall_series" => "5000",
        "syscall_mode" => "latency",
        "syscall_ring_size" | "syscall_history_bytes" => "32MiB",
        "syscall_events" | "syscall_measured" => "execve,i386:mount",
        "syscall_warmup" => "1h",
        "state_dir" => "/var/lib/orb8",
        "interval" => "100ms",
        "history" => "1h",
        "ring_buffer_size" | "history_bytes" => "32MiB",
        "interface" => "eth*,bond0",
        "attach" => "clsact",
        "node" => "another-node",
        "log" => "info,orb8_agent=debug",
        _ => panic!("no value for {key}"),
    };
    // Each of these alone is refused: see `certificates_are_given_together`.
    let alone = |key: &str| !key.starts_with("tls_");
    for definition in DEFINITIONS.iter().filter(|definition| alone(definition.key)) {
        let (key, value) = (definition.key, other(definition.key));
        let names = definition.names();
        let cases = [
            (Case::new().file(&format!("{key} = {value:?}")), "file"),
            (Case::new().variable(&names.variable(), value), "environment"),
            (
                Case::new().flags(&[&format!("--{}", names.flag()), value]),
                "flag",
            ),
        ];
        for (case, source) in cases {
            let settings = case.load().unwrap();
            for shown in settings.describe() {
                if shown.name == key {
                    assert_eq!(
                        (shown.value.as_str(), shown.source.as_str()),
                        (value, source),
                        "{key}"
                    );
                } else {
                    assert_eq!(shown.source, "default", "{key} changed {}", shown.name);
                }
            }
        }
    }
}

#[test]
fn flags_go_before_environment_before_file() {
    let case = Case::new()
        .file("grpc_port = 1\nmetrics_port = 2\nflow_entries = 3000\n")
        .variable("ORB8_GRPC_PORT", "11")
        .variable("ORB8_METRICS_PORT", "12")
        .flags(&["--grpc-port", "21"]);
    let settings = case.load().unwrap();
    assert_eq!(
        (settings.grpc_port, settings.source("grpc_port")),
        (21, Some(Source::Flag))
    );
    assert_eq!(
        (settings.metrics_port, settings.source("metrics_port")),
        (12, Some(Source::Environment))
    );
    assert_eq!(
        (settings.flow_entries, settings.source("flow_entries")),
        (3000, Some(Source::File))
    );
    assert_eq!(settings.source("interval"), Some(Source::Default));
    assert_eq!(settings.source("no_such"), None);
    assert_eq!(settings.file(), Some(case.default_file.as_path()));
}

#[test]
fn the_listing_has_a_line_a_setting_with_its_source() {
    let case = Case::new()
        .file("flow_entries = 3000")
        .flags(&["--grpc-port", "1"]);
    let listing = case.load().unwrap().to_string();
    assert_eq!(listing.lines().count(), DEFINITIONS.len());
    let words = |key: &str| {
        let line = listing.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(words("grpc_port"), ["grpc_port", "1", "flag"]);
    assert_eq!(
        words("flow_entries"),
        [
            "flow_entries",
            "3000",
            "file",
            case.default_file.to_str().unwrap()
        ]
    );
    assert_eq!(words("interface"), ["interface", "default"]);
}

#[test]
fn a_wrong_value_is_named_as_it_was_given_with_its_range() {
    let flag = Case::new().flags(&["--interval", "10ms"]).error();
    assert_eq!(
        flag,
        "--interval is \"10ms\": out of range; allowed: 100ms to 1m \
         (also settable as ORB8_INTERVAL, `interval` in a file)"
    );
    let variable = Case::new().variable("ORB8_RING_BUFFER_SIZE", "100000").error();
    assert!(
        variable.starts_with("ORB8_RING_BUFFER_SIZE is \"100000\": out of range; "),
        "{variable}"
    );
    assert!(variable.contains("a power of two, 4KiB to 32MiB"), "{variable}");
    assert!(variable.contains("--ring-buffer-size"), "{variable}");
    let file = Case::new().file("flow_entries = 12");
    let message = file.error();
    assert!(message.starts_with(&format!(
        "{}: flow_entries is \"12\"",
        file.default_file.display()
    )));
    assert!(message.contains("1024 to 4194304"), "{message}");
    // A wrong value of a lower layer is an error even where a higher one replaces it.
    assert!(
        file.flags(&["--flow-entries", "5000"])
            .error()
            .contains("flow_entries is \"12\"")
    );
}

#[test]
fn ranges_end_where_they_say() {
    for (flag, inside, outside) in [
        ("--interval", ["100ms", "60s"], ["99ms", "60001ms"]),
        ("--flow-entries", ["1024", "4194304"], ["1023", "4194305"]),
        ("--ring-buffer-size", ["4096", "32MiB"], ["2048", "64MiB"]),
        ("--ring-buffer-size", ["8KiB", "1MiB"], ["12KiB", "1MB"]),
        ("--history", ["10s", "1h"], ["9s", "3601s"]),
        ("--history-bytes", ["1MiB", "1GiB"], ["1048575", "1073741825"]),
        ("--grpc-port", ["0", "65535"], ["-1", "65536"]),
        ("--syscall-mode", ["off", "latency"], ["on", "Counts"]),
        ("--syscall-callers", ["16", "65536"], ["15", "65537"]),
        ("--syscall-ring-size", ["4096", "32MiB"], ["12KiB", "64MiB"]),
        ("--syscall-events", ["", "execve, mount"], ["execv", "execve,"]),
        ("--syscall-warmup", ["1s", "7days"], ["0s", "8days"]),
        ("--state-dir", ["", "/var/lib/orb8"], ["state", "/a\nb"]),
    ] {
        for value in inside {
            let settings = Case::new().flags(&[flag, value]).load();
            assert!(settings.is_ok(), "{flag} {value}: {}", settings.unwrap_err());
        }
        for value in outside {
            let message = Case::new().flags(&[flag, value]).error();
            assert!(
                message.contains(flag) && message.contains("allowed: "),
                "{flag} {value}: {message}"
            );
        }
    }
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    assert!(
        Case::new()
            .flags(&["--grpc-port", "9091"])
            .error()
            .contains("both listen on port 9091")
    );
    assert!(
        Case::new()
            .flags(&["--grpc-port", "9091", "--metrics", "off"])
            .load()
            .is_ok()
    );
    assert!(
        Case::new()
            .flags(&["--grpc-port", "0", "--metrics-port", "0"])
            .load()
            .is_ok()
    );
    assert!(
        Case::new()
            .flags(&["--grpc-port", "9091", "--grpc-address", "::1"])
            .load()
            .is_ok()
    );
    assert!(
        Case::new()
            .flags(&["--grpc-port", "9091", "--grpc-address", "::"])
            .load()
            .is_err()
    );
    assert!(
        Case::new()
            .flags(&["--history", "10s", "--interval", "11s"])
            .error()
            .contains("shorter")
    );
}

#[test]
fn interfaces_are_a_list_in_every_place() {
    let names = |settings: Settings| {
        settings
            .interface
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let expected = ["eth0", "veth*"];
    let flags = Case::new().flags(&["--interface", "eth0", "--interface", "veth*"]);
    assert_eq!(names(flags.load().unwrap()), expected);
    assert_eq!(
        names(
            Case::new()
                .variable("ORB8_INTERFACE", "eth0, veth*")
                .load()
                .unwrap()
        ),
        expected
    );
    assert_eq!(
        names(Case::new().file("interface = ['eth0', 'veth*']").load().unwrap()),
        expected
    );
    assert_eq!(
        names(Case::new().file("interface = 'eth0,veth*'").load().unwrap()),
        expected
    );
    assert!(Case::new().file("interface = [1]").error().contains("TOML array"));
    assert!(
        Case::new()
            .flags(&["--interface", "eth0,"])
            .error()
            .contains("empty")
    );
}

#[test]
fn unknown_keys_are_errors_and_unknown_variables_warnings() {
    let message = Case::new().file("grpc-port = 1").error();
    assert!(
        message.contains("no setting `grpc-port` (did you mean `grpc_port`?)"),
        "{message}"
    );
    let message = Case::new().file("[network]\ninterval = '1s'").error();
    assert!(message.contains("no setting `network`;"), "{message}");
    let case = Case::new()
        .variable("ORB8_GRPC_PROT", "1")
        .variable("ORB8_COLOUR", "blue")
        .variable("ORB8_AGENT", "localhost:9090")
        .variable("ORB8_AGENT_SERVICE_HOST", "10.0.0.1")
        .variable("ORB8_AGENT_SERVICE_PORT_GRPC", "9090")
        .variable("ORB8_AGENT_PORT", "tcp://10.0.0.1:9090")
        .variable("ORB8_AGENT_PORT_9090_TCP_ADDR", "10.0.0.1")
        .variable("PATH", "/bin");
    assert_eq!(
        case.load().unwrap().warnings(),
        [
            "ORB8_COLOUR is no setting and is ignored",
            "ORB8_GRPC_PROT is no setting and is ignored (did you mean ORB8_GRPC_PORT?)",
        ]
    );
    assert!(Case::new().flags(&["--no-such"]).load().is_err());
    // The next flag is not taken for a value that was forgotten.
    assert!(
        Case::new()
            .flags(&["--interface", "--sockets", "off"])
            .load()
            .is_err()
    );
}

#[test]
fn a_kubernetes_service_link_is_recognized() {
    let message = Case::new()
        .variable("ORB8_GRPC_PORT", "tcp://10.96.0.7:9090")
        .error();
    assert!(message.contains("enableServiceLinks"), "{message}");
}

#[test]
fn an_empty_variable_is_not_set() {
    let settings = Case::new()
        .variable("ORB8_GRPC_PORT", "")
        .variable("ORB8_CONFIG", "")
        .load()
        .unwrap();
    assert_eq!(settings.source("grpc_port"), Some(Source::Default));
}

#[test]
fn a_variable_has_to_be_text() {
    let mut case = Case::new();
    case.environment
        .insert("ORB8_NODE".into(), OsString::from_vec(vec![0xff, 0xfe]));
    assert!(case.error().starts_with("ORB8_NODE is not valid UTF-8"));
}

#[test]
fn a_named_file_has_to_be_there_and_a_file() {
    let message = Case::new()
        .flags(&["--config", "/nonexistent/agent.toml"])
        .error();
    assert!(
        message.contains("/nonexistent/agent.toml") && message.contains("--config"),
        "{message}"
    );
    assert!(
        Case::new()
            .variable("ORB8_CONFIG", "/dev/zero")
            .error()
            .contains("not a regular file")
    );
    assert!(
        Case::new()
            .file("grpc_port = [")
            .error()
            .contains("not valid TOML")
    );
    let named = Case::new().file("grpc_port = 7");
    let path = named.default_file.to_str().unwrap();
    let settings = Case::new().variable("ORB8_CONFIG", path).load().unwrap();
    assert_eq!(settings.grpc_port, 7);
    let flag_wins = Case::new()
        .variable("ORB8_CONFIG", "/nonexistent")
        .flags(&["--config", path]);
    assert_eq!(flag_wins.load().unwrap().grpc_port, 7);
    let huge = format!("# {}\n", "x".repeat(1 << 20));
    assert!(Case::new().file(&huge).error().contains("larger than 1 MiB"));
}

#[test]
fn help_names_variable_default_and_range() {
    let help = command()
        .render_long_help()
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    for definition in DEFINITIONS {
        let names = definition.names();
        assert!(
            help.contains(&format!("--{}", names.flag())),
            "{}",
            definition.key
        );
        assert!(
            help.contains(&format!("[env: {}]", names.variable())),
            "{}",
            definition.key
        );
    }
    assert!(
        help.contains("[default: 131072] [allowed: 1024 to 4194304]"),
        "{help}"
    );
    assert!(help.contains("[env: ORB8_CONFIG]"));
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "([a-z_]{1,12} ?= ?[a-z0-9'\"\\[\\]]{0,12}\n?){0,4}|.{0,60}") {
        let _ = Case::new().file(&text).load();
    }

    #[test]
    fn what_is_described_loads_again_to_the_same(
        port: u16,
        entries in 1024u32..=4_194_304,
        millis in 100u64..=60_000,
        power in 12u32..=25,
        health: bool,
    ) {
        let settings = Case::new()
            .flags(&["--grpc-port", &port.to_string(), "--metrics", "off"])
            .flags(&["--flow-entries", &entries.to_string(), "--interval", &format!("{millis}ms")])
            .flags(&["--ring-buffer-size", &(1u64 << power).to_string(), "--history", "2m"])
            .flags(&["--tcp-health", if health { "on" } else { "off" }])
            .load()
            .unwrap();
        let described = settings.describe();
        let mut again = Case::new();
        for setting in &described {
            let index = position(&setting.name).unwrap();
            again = again.variable(&DEFINITIONS[index].names().variable(), &setting.value);
        }
        let again = again.load().unwrap();
        prop_assert_eq!(again.flow_entries, entries);
        prop_assert_eq!(again.interval, Duration::from_millis(millis));
        prop_assert_eq!(again.ring_buffer_size, ByteSize(1 << power));
        let values = |all: Vec<v1::Setting>| all.into_iter().map(|one| one.value).collect::<Vec<_>>();
        prop_assert_eq!(values(again.describe()), values(described));
    }
}

#[test]
fn certificates_are_given_together() {
    let all = ["--tls-ca", "/ca", "--tls-cert", "/cert", "--tls-key", "/key"];
    let settings = Case::new().flags(&all).load().unwrap();
    let files = settings.tls().unwrap();
    assert_eq!(files.ca, Path::new("/ca"));
    assert_eq!(files.key.as_deref(), Some(Path::new("/key")));
    assert_eq!(settings.source("tls_key"), Some(Source::Flag));
    for left_out in 0..3 {
        let mut some = all.to_vec();
        some.drain(2 * left_out..2 * left_out + 2);
        let error = Case::new().flags(&some).load().unwrap_err().to_string();
        assert!(error.contains("tls_") && error.contains("is not"), "{error}");
    }
    assert_eq!(Case::new().load().unwrap().tls(), None);
}

#[test]
fn plain_text_stays_on_loopback_unless_it_may_not() {
    let open = ["--grpc-address", "0.0.0.0"];
    let error = Case::new().flags(&open).load().unwrap_err().to_string();
    for told in ["grpc_address", "0.0.0.0", "tls_cert", "--insecure"] {
        assert!(error.contains(told), "{error}");
    }
    let insecure = Case::new()
        .flags(&[&open[..], &["--insecure", "on"]].concat())
        .load()
        .unwrap();
    assert_eq!(insecure.transport(), "plain text to the network (insecure)");
    assert_eq!(Case::new().load().unwrap().transport(), "plain text on loopback");
}

#[test]
fn who_looks_at_gpus_itself_takes_what_the_environment_says_of_them() {
    let environment = |pairs: &[(&str, &str)]| -> BTreeMap<OsString, OsString> {
        pairs
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .collect()
    };
    let settings = Settings::of_gpus(&environment(&[
        ("ORB8_GPU_INTERVAL", "2s"),
        ("ORB8_GPU_DCGM_URL", "http://dcgm:9400/metrics"),
        ("ORB8_GRPC_PORT", "of another program"),
    ]))
    .unwrap();
    assert_eq!(settings.gpu_interval, std::time::Duration::from_secs(2));
    assert_eq!(settings.gpu_dcgm_url.get(), Some("http://dcgm:9400/metrics"));
    let error = Settings::of_gpus(&environment(&[("ORB8_GPU_INTERVAL", "1m")])).unwrap_err();
    assert!(
        error.to_string().contains("ORB8_GPU_INTERVAL is \"1m\""),
        "{error}"
    );
}
