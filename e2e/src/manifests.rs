//! What the scenarios run on.

use serde_json::{Value, json};

use crate::cluster::NAMESPACE;

fn container(name: &str, image: &str, arguments: &[&str]) -> Value {
    json!({
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/orb8-traffic"],
        "args": arguments,
    })
}

fn pod(name: &str, node: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"e2e": "pod", "name": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            "containers": containers,
        },
    })
}

/// A pod that does nothing until it is told to.
pub(crate) fn idle_pod(name: &str, node: &str, image: &str) -> String {
    pod(name, node, &[container("main", image, &["sleep", "3600"])]).to_string()
}

/// A pod that does nothing, with a GPU.
pub(crate) fn gpu_pod(name: &str, node: &str, image: &str) -> String {
    let mut pod = pod(name, node, &[container("main", image, &["sleep", "3600"])]);
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": 1}});
    pod.to_string()
}

/// A server, in what a seccomp profile of the node allows.
pub(crate) fn serving_pod(name: &str, node: &str, image: &str, profile: Option<&str>) -> String {
    let mut pod = pod(name, node, &[container("main", image, &["serve", "7000"])]);
    if let Some(file) = profile {
        pod["spec"]["securityContext"] =
            json!({"seccompProfile": {"type": "Localhost", "localhostProfile": file}});
    }
    pod.to_string()
}

/// A pod that does nothing until it is told to, with a directory of its node.
pub(crate) fn pod_with_directory(name: &str, node: &str, image: &str, host: &str, path: &str) -> String {
    let mut pod = pod(name, node, &[container("main", image, &["sleep", "3600"])]);
    mount(&mut pod, host, "DirectoryOrCreate", path);
    pod.to_string()
}

/// Gives a pod's first container a directory of its node.
fn mount(pod: &mut Value, host: &str, kind: &str, path: &str) {
    pod["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": host, "type": kind}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "host", "mountPath": path}]);
}

/// A pod of orb8's own image that says once what GPUs it sees, with a directory of the node where a container runtime puts
/// the driver's libraries.
pub(crate) fn looking_pod(name: &str, node: &str, image: &str, libraries: &str) -> String {
    let mut pod = pod(name, node, &[container("main", image, &["gpu", "-o", "json"])]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["command"] = json!(["/orb8"]);
    mount(&mut pod, libraries, "Directory", "/usr/lib/x86_64-linux-gnu");
    pod.to_string()
}

/// A pod that sends by itself, and has said what in its log when it ends.
pub(crate) fn sending_pod(name: &str, node: &str, image: &str, arguments: &[&str]) -> String {
    let mut pod = pod(name, node, &[container("main", image, arguments)]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod.to_string()
}

fn service(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    })
}

fn workload(kind: &str, name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": if kind == "Deployment" { 2 } else { 1 },
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": {"matchLabels": {"app": name}},
                    }],
                    "containers": [container("main", image, &["serve", "7000"])],
                },
            },
        },
    })
}

/// Everything that is there from the beginning.
pub(crate) fn all(image: &str, nodes: &[String]) -> String {
    let here = nodes.first().map_or("", String::as_str);
    let there = nodes.get(1).map_or(here, String::as_str);
    let serve = || container("main", image, &["serve", "7000"]);

    let mut guaranteed = pod("guaranteed", here, &[serve()]);
    guaranteed["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "100m", "memory": "32Mi"}});
    let mut burstable = pod("burstable", here, &[serve()]);
    burstable["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
    let on_host = |name: &str, port: &str| {
        let at = format!("$(HOST_IP):{port}");
        let mut pod = pod(name, here, &[container("main", image, &["serve", &at])]);
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["containers"][0]["env"] =
            json!([{"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]);
        pod
    };
    let mut several = pod(
        "several",
        here,
        &[serve(), container("other", image, &["sleep", "3600"])],
    );
    several["spec"]["initContainers"] = json!([
        container("init", image, &["sleep", "0"]),
        {
            "name": "sidecar", "image": image, "imagePullPolicy": "IfNotPresent", "restartPolicy": "Always",
            "command": ["/orb8-traffic"], "args": ["sleep", "3600"],
        },
    ]);
    let ports = json!([
        {"name": "udp", "port": 80, "targetPort": 7000, "protocol": "UDP"},
        {"name": "tcp", "port": 80, "targetPort": 7000, "protocol": "TCP"},
    ]);
    let cron_job = json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "short", "namespace": NAMESPACE},
        "spec": {
            "schedule": "* * * * *",
            "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "nodeSelector": {"kubernetes.io/hostname": here},
                // Some packets at once, and two seconds of life.
                "initContainers": [container("first", image, &["udp", "cluster-ip.orb8-e2e.svc.cluster.local:80", "7", "70"])],
                "containers": [container("main", image, &["sleep", "2"])],
            }}}},
        },
    });
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        pod("client", here, &[container("main", image, &["sleep", "3600"])]),
        guaranteed,
        burstable,
        pod("far", there, &[serve()]),
        on_host("on-host-1", "7101"),
        on_host("on-host-2", "7102"),
        several,
        pod(
            "dns",
            here,
            &[container(
                "main",
                image,
                &["dns", "53", "api.example.com", "192.0.2.7"],
            )],
        ),
        workload("Deployment", "web", image),
        workload("StatefulSet", "db", image),
        service(
            "cluster-ip",
            &json!({"selector": {"app": "web"}, "ports": ports, "ipFamilyPolicy": "PreferDualStack"}),
        ),
        service(
            "node-port",
            &json!({"type": "NodePort", "selector": {"app": "web"}, "ports": ports}),
        ),
        service(
            "headless",
            &json!({"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 7000, "protocol": "UDP"}]}),
        ),
        service(
            "balanced",
            &json!({"type": "LoadBalancer", "selector": {"app": "web"}, "ports": ports}),
        ),
        cron_job,
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}
