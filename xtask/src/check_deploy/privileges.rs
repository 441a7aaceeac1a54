//! What orb8 asks of a cluster, in full: a change that asks for more has to change this file too, and say why in
//! `deploy/README.md`.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::objects::{Name, Objects, compare};

/// Fields of the pods. What is not here can be a privilege: `hostIPC`, `initContainers`, `shareProcessNamespace`.
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
}

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
            "DaemonSet" => check.daemon_set(meant),
            "ClusterRole" => check.is(
                "/rules",
                &json!([
                    {"apiGroups": [""], "resources": ["nodes", "pods", "services"], "verbs": ["get", "list", "watch"]},
                    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
                ]),
            ),
            "ClusterRoleBinding" => check.binding(objects),
            "Service" => {
                // Headless: no address of its own, no port of the nodes.
                check.is("/spec/clusterIP", &json!("None"));
                check.absent("/spec/type");
                check.absent("/spec/externalIPs");
            }
            "Namespace" | "NetworkPolicy" | "ServiceAccount" => {}
            _ => check.problem("no object of this kind is needed"),
        }
    }
    found
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
        const POD: &str = "/spec/template/spec";
        const CONTAINER: &str = "/spec/template/spec/containers/0";
        let pod = |field: &str| format!("{POD}/{field}");
        let container = |field: &str| format!("{CONTAINER}/{field}");

        self.only_fields(POD, POD_FIELDS);
        self.is(&pod("hostNetwork"), &json!(true));
        self.is(&pod("hostPID"), &json!(true));
        self.is(
            &pod("securityContext"),
            &json!({"seccompProfile": {"type": "RuntimeDefault"}}),
        );
        let mut volumes =
            vec![json!({"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}})];
        let mut mounts =
            vec![json!({"name": "cgroup", "mountPath": "/host/sys/fs/cgroup", "readOnly": true})];
        if let Some(path) = meant.state_dir {
            volumes.push(json!({"name": "state", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}));
            mounts.push(json!({"name": "state", "mountPath": path}));
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
        self.absent(&container("ports/1"));
        self.is(&container("ports/0/name"), &json!("metrics"));
        self.grpc_stays_on_loopback(&container("env"));
    }

    /// It has no authentication.
    fn grpc_stays_on_loopback(&mut self, pointer: &str) {
        let variables = self.object.pointer(pointer).and_then(Value::as_array);
        let address = variables
            .into_iter()
            .flatten()
            .find(|variable| variable["name"] == "ORB8_GRPC_ADDRESS");
        let Some(address) = address else { return };
        let loopback = address["value"]
            .as_str()
            .and_then(|value| value.parse::<IpAddr>().ok())
            .is_some_and(|address| address.is_loopback());
        if !loopback {
            self.problem(format_args!("{address} offers gRPC to others than the node"));
        }
    }

    /// The agents' account has the agents' role, and nobody has another.
    fn binding(&mut self, objects: &Objects) {
        self.is(
            "/roleRef",
            &json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "orb8-agent"}),
        );
        let agents = objects.iter().find(|(name, _)| name.kind == "DaemonSet");
        let Some((_, agents)) = agents else {
            return self.problem("there is no DaemonSet whose account it could be for");
        };
        self.is(
            "/subjects",
            &json!([{
                "kind": "ServiceAccount",
                "name": agents["spec"]["template"]["spec"]["serviceAccountName"],
                "namespace": agents["metadata"]["namespace"],
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
                "volumes": [{"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}}],
                "containers": [{
                    "env": [],
                    "ports": [{"name": "metrics"}],
                    "volumeMounts": [{"name": "cgroup", "mountPath": "/host/sys/fs/cgroup", "readOnly": true}],
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
                json!([{"name": "ORB8_GRPC_ADDRESS", "value": "0.0.0.0"}]),
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
}
