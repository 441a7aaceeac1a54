//! What orb8 asks of a cluster, in full: a change that asks for more has to change this file too, and say why in
//! `deploy/README.md`.

use serde_json::{Value, json};

use super::objects::{Name, Objects, compare};

/// Fields of the agents' pods. What is not here can be a privilege: `hostIPC`, `initContainers`, `shareProcessNamespace`.
const POD_FIELDS: &[&str] = &[
    "affinity",
    "containers",
    "dnsPolicy",
    "hostNetwork",
    "hostPID",
    "imagePullSecrets",
    "nodeSelector",
    "priorityClassName",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "volumes",
];
/// Fields of their one container: no `command`, no `lifecycle`, no `envFrom`.
const CONTAINER_FIELDS: &[&str] = &[
    "env",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "volumeMounts",
];
/// The same of the other pods, which have no privileges at all.
const UNPRIVILEGED_POD_FIELDS: &[&str] = &[
    "affinity",
    "containers",
    "imagePullSecrets",
    "nodeSelector",
    "restartPolicy",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "volumes",
];
/// The same of the exporter's pods.
const EXPORTER_POD_FIELDS: &[&str] = &[
    "automountServiceAccountToken",
    "containers",
    "dnsPolicy",
    "hostNetwork",
    "imagePullSecrets",
    "nodeSelector",
    "priorityClassName",
    "runtimeClassName",
    "securityContext",
    "tolerations",
];
const CAPABILITIES: &[&str] = &["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"];
/// For kernels before 5.11.
const LOCKED_MEMORY: &str = "SYS_RESOURCE";

/// What was asked for beyond the least.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meant<'a> {
    /// The limit of locked memory may be passed.
    pub(super) locked_memory: bool,
    /// A directory of the node may be written to.
    pub(super) state_dir: Option<&'a str>,
    /// The kubelet's directory of the node that it tells of devices in.
    pub(super) pod_resources: Option<&'a str>,
    /// A dcgm-exporter runs on nodes with GPUs.
    pub(super) gpu_exporter: bool,
    /// It may read the driver's profiling counters.
    pub(super) gpu_profiling: bool,
}

/// The pods of a DaemonSet, and their one container.
const POD: &str = "/spec/template/spec";
const CONTAINER: &str = "/spec/template/spec/containers/0";

fn pod(field: &str) -> String {
    format!("{POD}/{field}")
}

fn container(field: &str) -> String {
    format!("{CONTAINER}/{field}")
}

/// The DaemonSet of the exporter.
const GPU_EXPORTER: &str = "orb8-gpu-exporter";

/// What the objects ask for beyond (or short of) what is meant.
pub(super) fn unexpected(objects: &Objects, meant: Meant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, object) in objects.iter() {
        let mut check = Check {
            name,
            object,
            found: &mut found,
        };
        match name.kind.as_str() {
            "DaemonSet" if name.name == GPU_EXPORTER => check.gpu_exporter(meant),
            "DaemonSet" => check.daemon_set(meant),
            "Deployment" => {
                check.unprivileged("/spec/template/spec", &["/orb8-server"], Some("orb8-server-tls"));
            }
            "Job" => check.unprivileged("/spec/template/spec", CERTGEN, None),
            "CronJob" => check.unprivileged("/spec/jobTemplate/spec/template/spec", CERTGEN, None),
            "ClusterRole" | "Role" => match rules(&name.kind, &name.name) {
                Some(rules) => check.is("/rules", &rules),
                None => check.problem("nobody needs this role"),
            },
            "ClusterRoleBinding" | "RoleBinding" => check.binding(objects),
            "Service" => {
                match name.name.as_str() {
                    // Headless: no address of its own.
                    "orb8-agents" => {
                        check.is("/spec/clusterIP", &json!("None"));
                        check.absent("/spec/type");
                    }
                    _ => check.is("/spec/type", &json!("ClusterIP")),
                }
                // No port of the nodes.
                check.absent("/spec/externalIPs");
            }
            "Namespace" | "NetworkPolicy" | "PodDisruptionBudget" | "ServiceAccount" => {}
            _ => check.problem("no object of this kind is needed"),
        }
    }
    found
}

/// What makes certificates.
const CERTGEN: &[&str] = &["/orb8-server", "certgen"];

/// What each role may, in full.
fn rules(kind: &str, name: &str) -> Option<Value> {
    Some(match (kind, name) {
        ("ClusterRole", "orb8-agent") => json!([
            {"apiGroups": [""], "resources": ["nodes", "pods", "services"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
        ]),
        ("ClusterRole", "orb8-server") => json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
            {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        ]),
        ("Role", "orb8-server") => json!([
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
        ]),
        ("Role", "orb8-certgen") => json!([
            {"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["create"]},
            {
                "apiGroups": [""],
                "resources": ["secrets"],
                "resourceNames": ["orb8-ca", "orb8-agent-tls", "orb8-server-tls", "orb8-operator-tls"],
                "verbs": ["get", "patch"],
            },
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["orb8-ca"], "verbs": ["get", "patch"]},
        ]),
        _ => return None,
    })
}

struct Check<'a> {
    name: &'a Name,
    object: &'a Value,
    found: &'a mut Vec<String>,
}

impl Check<'_> {
    fn problem(&mut self, what: impl std::fmt::Display) {
        self.found.push(format!("{}: {what}", self.name));
    }

    /// The value has to be exactly this.
    fn is(&mut self, pointer: &str, expected: &Value) {
        let path = pointer.trim_start_matches('/').replace('/', ".");
        let (name, found) = (self.name, &mut *self.found);
        compare(
            &path,
            Some(expected),
            self.object.pointer(pointer),
            &mut |path, expected, actual| {
                let show = |value: Option<&Value>| value.map_or("(nothing)".to_owned(), Value::to_string);
                found.push(format!(
                    "{name}: {path} is {}, not {}",
                    show(actual),
                    show(expected)
                ));
            },
        );
    }

    fn absent(&mut self, pointer: &str) {
        if let Some(value) = self.object.pointer(pointer) {
            let path = pointer.trim_start_matches('/').replace('/', ".");
            self.problem(format_args!("{path} is {value}, and should not be there"));
        }
    }

    fn only_fields(&mut self, pointer: &str, known: &[&str]) {
        let fields = self.object.pointer(pointer).and_then(Value::as_object);
        let unknown: Vec<&String> = fields
            .into_iter()
            .flat_map(|fields| fields.keys())
            .filter(|field| !known.contains(&field.as_str()))
            .collect();
        for field in unknown {
            self.problem(format_args!(
                "{field} in {pointer} is not known here: is it a privilege?"
            ));
        }
    }

    fn daemon_set(&mut self, meant: Meant<'_>) {
        self.only_fields(POD, POD_FIELDS);
        self.is(&pod("hostNetwork"), &json!(true));
        self.is(&pod("hostPID"), &json!(true));
        self.is(
            &pod("securityContext"),
            &json!({"seccompProfile": {"type": "RuntimeDefault"}}),
        );
        let mut volumes = vec![
            json!({"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}}),
            json!({"name": "tls", "secret": {"secretName": "orb8-agent-tls", "defaultMode": 0o400}}),
        ];
        let mut mounts = vec![
            json!({"name": "cgroup", "mountPath": "/host/sys/fs/cgroup", "readOnly": true}),
            json!({"name": "tls", "mountPath": "/tls", "readOnly": true}),
        ];
        if let Some(path) = meant.state_dir {
            volumes.push(json!({"name": "state", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}));
            mounts.push(json!({"name": "state", "mountPath": path}));
        }
        if let Some(path) = meant.pod_resources.filter(|path| !path.is_empty()) {
            volumes.push(json!({"name": "pod-resources", "hostPath": {"path": path, "type": "Directory"}}));
            mounts.push(json!({
                "name": "pod-resources",
                "mountPath": "/var/lib/kubelet/pod-resources",
                "readOnly": true,
            }));
        }
        self.is(&pod("volumes"), &json!(volumes));
        self.absent(&pod("containers/1"));
        self.only_fields(CONTAINER, CONTAINER_FIELDS);
        let mut capabilities = CAPABILITIES.to_vec();
        if meant.locked_memory {
            capabilities.push(LOCKED_MEMORY);
        }
        self.is(
            &container("securityContext"),
            &json!({
                "privileged": false,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "runAsUser": 0,
                "capabilities": {"drop": ["ALL"], "add": capabilities},
            }),
        );
        self.is(&container("volumeMounts"), &json!(mounts));
        self.absent(&container("ports/2"));
        self.is(&container("ports/0/name"), &json!("grpc"));
        self.is(&container("ports/1/name"), &json!("metrics"));
        self.grpc_is_over_tls(&container("env"), "ORB8_");
    }

    /// It is on the node's network and root, and nothing else.
    fn gpu_exporter(&mut self, meant: Meant<'_>) {
        if !meant.gpu_exporter {
            self.problem("nobody asked for an exporter");
        }
        self.only_fields(POD, EXPORTER_POD_FIELDS);
        self.is(&pod("hostNetwork"), &json!(true));
        self.is(&pod("automountServiceAccountToken"), &json!(false));
        self.is(
            &pod("securityContext"),
            &json!({"seccompProfile": {"type": "RuntimeDefault"}}),
        );
        self.absent(&pod("containers/1"));
        self.only_fields(CONTAINER, CONTAINER_FIELDS);
        self.absent(&container("volumeMounts"));
        // Nobody from outside is answered.
        self.is(
            &container("env/0"),
            &json!({"name": "DCGM_EXPORTER_LISTEN", "value": "127.0.0.1:9400"}),
        );
        let mut capabilities = json!({"drop": ["ALL"]});
        if meant.gpu_profiling {
            capabilities["add"] = json!(["SYS_ADMIN"]);
        }
        self.is(
            &container("securityContext"),
            &json!({"privileged": false, "runAsUser": 0, "capabilities": capabilities}),
        );
    }

    /// Pods without any privilege, which run `command`, with the certificates of a Secret if it is named.
    fn unprivileged(&mut self, pod: &str, command: &[&str], secret: Option<&str>) {
        let container = |field: &str| format!("{pod}/containers/0/{field}");
        let of_pod = |field: &str| format!("{pod}/{field}");
        self.only_fields(pod, UNPRIVILEGED_POD_FIELDS);
        self.absent(&of_pod("containers/1"));
        self.only_fields(
            &of_pod("containers/0"),
            &[CONTAINER_FIELDS, &["command"]].concat(),
        );
        self.is(&container("command"), &json!(command));
        let mut context = json!({
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        if let Some(secret) = secret {
            context["fsGroup"] = json!(65532);
            self.is(
                &of_pod("volumes"),
                &json!([{"name": "tls", "secret": {"secretName": secret, "defaultMode": 0o440}}]),
            );
            self.is(
                &container("volumeMounts"),
                &json!([{"name": "tls", "mountPath": "/tls", "readOnly": true}]),
            );
            self.grpc_is_over_tls(&container("env"), "ORB8_SERVER_");
        } else {
            self.absent(&of_pod("volumes"));
        }
        self.is(&of_pod("securityContext"), &context);
        self.is(
            &container("securityContext"),
            &json!({
                "privileged": false,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            }),
        );
    }

    /// Without certificates it would answer everybody.
    fn grpc_is_over_tls(&mut self, pointer: &str, prefix: &str) {
        let variables = self.object.pointer(pointer).and_then(Value::as_array);
        let value = |name: &str| {
            let mut variables = variables.into_iter().flatten();
            variables.find(|variable| variable["name"] == format!("{prefix}{name}").as_str())
        };
        let mut problems = Vec::new();
        for (name, file) in [
            ("TLS_CA", "ca.crt"),
            ("TLS_CERT", "tls.crt"),
            ("TLS_KEY", "tls.key"),
        ] {
            let expected = format!("/tls/{file}");
            if value(name).is_none_or(|variable| variable["value"] != expected.as_str()) {
                problems.push(format!(
                    "{prefix}{name} is not {expected}: gRPC would be in plain text"
                ));
            }
        }
        if let Some(insecure) = value("INSECURE") {
            problems.push(format!("{insecure} offers gRPC in plain text"));
        }
        for problem in problems {
            self.problem(problem);
        }
    }

    /// Each part's account has that part's role, and nobody has another.
    fn binding(&mut self, objects: &Objects) {
        let role = match self.name.kind.as_str() {
            "ClusterRoleBinding" => "ClusterRole",
            _ => "Role",
        };
        let own = self.name.name.clone();
        self.is(
            "/roleRef",
            &json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": own}),
        );
        let runs = objects.iter().find(|(name, object)| {
            name.name == own && object.pointer("/spec/template/spec/serviceAccountName").is_some()
        });
        let Some((_, runs)) = runs else {
            return self.problem("there are no pods whose account it could be for");
        };
        self.is(
            "/subjects",
            &json!([{
                "kind": "ServiceAccount",
                "name": runs["spec"]["template"]["spec"]["serviceAccountName"],
                "namespace": runs["metadata"]["namespace"],
            }]),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(verbs: &str) -> Objects {
        Objects::parse(&format!(
            "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: orb8-agent}}
rules:
- {{apiGroups: [''], resources: [nodes, pods, services], verbs: [get, list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [{verbs}]}}"
        ))
        .unwrap()
    }

    #[test]
    fn a_further_verb_is_found() {
        assert_eq!(unexpected(&role("get, list, watch"), Meant::default()), [""; 0]);
        assert_eq!(
            unexpected(&role("get, list, watch, delete"), Meant::default()),
            ["ClusterRole orb8-agent: rules[1].verbs[3] is \"delete\", not (nothing)"]
        );
    }

    /// As small as the checks let it be.
    fn agents() -> Value {
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "a", "namespace": "n"},
            "spec": {"template": {"spec": {
                "hostNetwork": true,
                "hostPID": true,
                "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [
                    {"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}},
                    {"name": "tls", "secret": {"secretName": "orb8-agent-tls", "defaultMode": 0o400}},
                ],
                "containers": [{
                    "env": [
                        {"name": "ORB8_TLS_CA", "value": "/tls/ca.crt"},
                        {"name": "ORB8_TLS_CERT", "value": "/tls/tls.crt"},
                        {"name": "ORB8_TLS_KEY", "value": "/tls/tls.key"},
                    ],
                    "ports": [{"name": "grpc"}, {"name": "metrics"}],
                    "volumeMounts": [
                        {"name": "cgroup", "mountPath": "/host/sys/fs/cgroup", "readOnly": true},
                        {"name": "tls", "mountPath": "/tls", "readOnly": true},
                    ],
                    "securityContext": {
                        "privileged": false,
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "runAsUser": 0,
                        "capabilities": {"drop": ["ALL"], "add": CAPABILITIES},
                    },
                }],
            }}},
        })
    }

    fn of(object: &Value) -> Vec<String> {
        unexpected(&Objects::parse(&object.to_string()).unwrap(), Meant::default())
    }

    #[test]
    fn each_further_privilege_is_found() {
        assert_eq!(of(&agents()), [""; 0]);
        for (parent, key, value) in [
            ("", "hostIPC", json!(true)),
            ("", "initContainers", json!([{"name": "x"}])),
            ("/securityContext/seccompProfile", "type", json!("Unconfined")),
            ("/volumes/0/hostPath", "path", json!("/")),
            ("/containers/0/volumeMounts/0", "readOnly", json!(false)),
            ("/containers/0", "command", json!(["sh"])),
            ("/containers/0/securityContext", "privileged", json!(true)),
            ("/containers/0/securityContext", "procMount", json!("Unmasked")),
            (
                "/containers/0/securityContext",
                "readOnlyRootFilesystem",
                json!(false),
            ),
            (
                "/containers/0/securityContext/capabilities",
                "add",
                json!(["SYS_ADMIN"]),
            ),
            (
                "/containers/0",
                "env",
                json!([{"name": "ORB8_INSECURE", "value": "on"}]),
            ),
        ] {
            let mut changed = agents();
            let path = format!("/spec/template/spec{parent}");
            changed.pointer_mut(&path).unwrap()[key] = value;
            assert_ne!(of(&changed), [""; 0], "{parent}/{key}");
        }
        let mut two = agents();
        let containers = &mut two["spec"]["template"]["spec"]["containers"];
        containers
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "another"}));
        assert_eq!(of(&two).len(), 1);
    }

    #[test]
    fn the_exporter_has_no_privilege_that_was_not_asked_for() {
        let exporter = |context: Value| {
            json!({
                "apiVersion": "apps/v1",
                "kind": "DaemonSet",
                "metadata": {"name": GPU_EXPORTER, "namespace": "n"},
                "spec": {"template": {"spec": {
                    "automountServiceAccountToken": false,
                    "hostNetwork": true,
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [{
                        "env": [{"name": "DCGM_EXPORTER_LISTEN", "value": "127.0.0.1:9400"}],
                        "securityContext": context,
                    }],
                }}},
            })
        };
        let least = json!({"privileged": false, "runAsUser": 0, "capabilities": {"drop": ["ALL"]}});
        let mut more = least.clone();
        more["capabilities"]["add"] = json!(["SYS_ADMIN"]);
        let found = |object: &Value, gpu_exporter, gpu_profiling| {
            let meant = Meant {
                gpu_exporter,
                gpu_profiling,
                ..Meant::default()
            };
            unexpected(&Objects::parse(&object.to_string()).unwrap(), meant).len()
        };
        assert_eq!(found(&exporter(least.clone()), true, false), 0);
        assert_eq!(found(&exporter(more.clone()), true, true), 0);
        assert_eq!(found(&exporter(least.clone()), false, false), 1);
        assert_eq!(found(&exporter(more), true, false), 1);
        let mut reachable = exporter(least.clone());
        reachable["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = json!(":9400");
        assert_eq!(found(&reachable, true, false), 1);
        let mut all = exporter(least);
        all["spec"]["template"]["spec"]["hostPID"] = json!(true);
        assert_eq!(found(&all, true, false), 1);
    }

    #[test]
    fn locked_memory_is_one_capability() {
        let objects = Objects::parse(&agents().to_string()).unwrap();
        let meant = Meant {
            locked_memory: true,
            ..Meant::default()
        };
        let found = unexpected(&objects, meant);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("SYS_RESOURCE"), "{found:?}");
    }

    #[test]
    fn the_state_directory_is_one_directory() {
        let mut objects = agents();
        let pod = &mut objects["spec"]["template"]["spec"];
        let add = |list: &mut Value, one| list.as_array_mut().unwrap().push(one);
        add(
            &mut pod["volumes"],
            json!({"name": "state", "hostPath": {"path": "/var/lib/x", "type": "DirectoryOrCreate"}}),
        );
        let mounts = &mut pod["containers"][0]["volumeMounts"];
        add(mounts, json!({"name": "state", "mountPath": "/var/lib/x"}));
        let found = |state_dir| {
            let objects = Objects::parse(&objects.to_string()).unwrap();
            let meant = Meant {
                state_dir,
                ..Meant::default()
            };
            unexpected(&objects, meant).len()
        };
        assert_eq!(found(Some("/var/lib/x")), 0);
        assert_ne!(found(Some("/var/lib/y")), 0);
        assert_ne!(found(None), 0);
    }

    #[test]
    fn the_kubelets_directory_is_one_directory_and_read_only() {
        const KUBELET: &str = "/var/lib/kubelet/pod-resources";
        let with = |host_path: &str, mount: Value| {
            let mut objects = agents();
            let pod = &mut objects["spec"]["template"]["spec"];
            let add = |list: &mut Value, one| list.as_array_mut().unwrap().push(one);
            add(
                &mut pod["volumes"],
                json!({"name": "pod-resources", "hostPath": {"path": host_path, "type": "Directory"}}),
            );
            add(&mut pod["containers"][0]["volumeMounts"], mount);
            objects
        };
        let found = |object: &Value, pod_resources| {
            let objects = Objects::parse(&object.to_string()).unwrap();
            let meant = Meant {
                pod_resources,
                ..Meant::default()
            };
            unexpected(&objects, meant).len()
        };
        let read_only = json!({"name": "pod-resources", "mountPath": KUBELET, "readOnly": true});

        // Where a kubelet has it elsewhere on the node, the agent still finds it in the same place.
        for path in [KUBELET, "/data/kubelet/pod-resources"] {
            let mounted = with(path, read_only.clone());
            assert_eq!(found(&mounted, Some(path)), 0, "{path}");
            assert_ne!(found(&mounted, Some("/var/lib/other")), 0, "{path}");
            // The chart's default is the empty text.
            assert_ne!(found(&mounted, Some("")), 0, "{path}");
            assert_ne!(found(&mounted, None), 0, "{path}");
        }
        for mount in [
            json!({"name": "pod-resources", "mountPath": KUBELET}),
            json!({"name": "pod-resources", "mountPath": KUBELET, "readOnly": false}),
            json!({"name": "pod-resources", "mountPath": "/etc", "readOnly": true}),
        ] {
            assert_ne!(found(&with(KUBELET, mount.clone()), Some(KUBELET)), 0, "{mount}");
        }
        assert_eq!(found(&agents(), Some("")), 0);
        assert_ne!(found(&agents(), Some(KUBELET)), 0);
    }
}
