//! What the path of a cgroup says about who lives in it.

/// Container runtimes that a cgroup's name gives away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// containerd through its CRI plugin (Kubernetes).
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
    /// LXC or LXD.
    Lxc,
}

/// The names in the path of a cgroup.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct CgroupName {
    /// Id of the innermost container (of an LXC container: its name).
    pub container: Option<String>,
    /// What runs the container, where the name tells.
    pub runtime: Option<Runtime>,
    /// Uid of the innermost Kubernetes pod, with dashes.
    pub pod_uid: Option<String>,
    /// The deepest systemd unit that is not a slice, below the innermost container if there is one. As systemd
    /// writes it, escapes (`\x2d`) included, so that `systemctl status` takes it.
    pub unit: Option<String>,
}

impl CgroupName {
    /// Reads a path as in `/proc/PID/cgroup`, below the mount. Never fails: what it does not recognise names nothing.
    ///
    /// Known shapes: systemd units; containers of Docker, containerd, CRI-O, podman and LXC with the systemd and
    /// the cgroupfs driver; Kubernetes pods of all `QoS` classes under any prefix; all of these nested, as in kind.
    #[must_use]
    pub fn parse(path: &str) -> Self {
        let mut name = Self::default();
        let mut parent = "";
        for component in path.split('/') {
            if component.is_empty() || component == "." || component == ".." {
                continue;
            }
            // With a systemd-style path and the cgroupfs driver, runc makes one directory `slice:prefix:id`.
            match component.split_once(':') {
                Some((slice, rest)) if slice.ends_with(".slice") => {
                    name.component(slice, parent);
                    let (prefix, id) = rest.rsplit_once(':').unwrap_or(("", rest));
                    if is_id(id) {
                        name.inside(id, runtime(prefix));
                    }
                }
                _ => name.component(component, parent),
            }
            parent = component;
        }
        name
    }

    /// Whether a text is a container's id, as runtimes write it in full, and so no container's name.
    #[must_use]
    pub fn is_container_id(text: &str) -> bool {
        text.len() == 64 && is_hex(text)
    }

    /// Whether the path names a container or a unit.
    #[must_use]
    pub const fn names_someone(&self) -> bool {
        self.container.is_some() || self.unit.is_some()
    }

    fn component(&mut self, component: &str, parent: &str) {
        if let Some(uid) = pod_uid(component) {
            // A pod inside of a container (kind): from here on, names are those of the inner world.
            *self = Self {
                pod_uid: Some(uid),
                ..Self::default()
            };
        } else if let Some((id, runtime)) = container(component, parent) {
            self.inside(id, runtime);
        } else if let Some(unit) = unit(component) {
            // The manager of a user's units sits in an init.scope of its own; the user's service says whose it is.
            let of_user = unit == "init.scope" && parent.starts_with("user@");
            if !of_user {
                self.unit = Some(unit.to_owned());
            }
        }
    }

    fn inside(&mut self, id: &str, runtime: Option<Runtime>) {
        self.container = Some(id.to_owned());
        self.runtime = runtime;
        self.unit = None;
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// An id behind a runtime's prefix. Shorter ones than 64 digits exist (`ctr`, tests of runtimes).
fn is_id(text: &str) -> bool {
    (12..=64).contains(&text.len()) && is_hex(text)
}

fn runtime(prefix: &str) -> Option<Runtime> {
    Some(match prefix {
        "docker" => Runtime::Docker,
        "cri-containerd" | "containerd" => Runtime::Containerd,
        "crio" => Runtime::Crio,
        "libpod" | "libpod-payload" | "libpod_parent" => Runtime::Podman,
        "lxc" | "lxc.payload" => Runtime::Lxc,
        _ => return None,
    })
}

fn container<'a>(component: &'a str, parent: &str) -> Option<(&'a str, Option<Runtime>)> {
    if component.len() == 64 && is_hex(component) {
        return Some((component, runtime(parent)));
    }
    if let Some(name) = component.strip_prefix("lxc.payload.")
        && !name.is_empty()
    {
        return Some((name, Some(Runtime::Lxc)));
    }
    // conmon's own cgroup (`crio-conmon-ID.scope`, `libpod-conmon-ID.scope`) holds the container's monitor, not the
    // container: it stays a unit.
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let (prefix, id) = name.rsplit_once('-')?;
    let runtime = runtime(prefix)?;
    is_id(id).then_some((id, Some(runtime)))
}

/// `podUID` or `…-podUID_WITH_UNDERSCORES.slice`; also the 32 digits of a static pod's hash.
fn pod_uid(component: &str) -> Option<String> {
    let uid = match component.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1,
        None => component.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(|&byte| byte != b'-').count();
    let well_formed = digits == 32 && uid.split('-').all(|group| !group.is_empty() && is_hex(group));
    well_formed.then_some(uid)
}

/// Units that have a cgroup and are not slices. systemd prefixes `_` to what would clash with the kernel's files.
fn unit(component: &str) -> Option<&str> {
    let unit = component.strip_prefix('_').unwrap_or(component);
    let (name, suffix) = unit.rsplit_once('.')?;
    let is_unit = !name.is_empty() && matches!(suffix, "service" | "scope" | "socket" | "mount" | "swap");
    is_unit.then_some(unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "3e35be1c4b2a0d9f8c7e6d5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c";
    const OUTER: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const UID: &str = "2f6e1a9c-0b1d-4c3e-9f8a-7b6c5d4e3f2a";

    fn check(path: &str, container: bool, runtime: Option<Runtime>, pod: bool, unit: Option<&str>) {
        let path = path
            .replace("OUTER", OUTER)
            .replace("UID_", &UID.replace('-', "_"))
            .replace("UID", UID)
            .replace("ID", ID);
        let expected = CgroupName {
            container: container.then(|| ID.to_owned()),
            runtime,
            pod_uid: pod.then(|| UID.to_owned()),
            unit: unit.map(|unit| unit.replace("ID", ID)),
        };
        assert_eq!(CgroupName::parse(&path), expected, "{path}");
    }

    #[test]
    fn units() {
        for (path, unit) in [
            ("/", None),
            ("", None),
            ("/system.slice", None),
            ("/system.slice/nginx.service", Some("nginx.service")),
            ("/system.slice/nginx.service/worker", Some("nginx.service")),
            ("/init.scope", Some("init.scope")),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                Some("session-3.scope"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service",
                Some("foo.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                Some("user@1000.service"),
            ),
            ("/system.slice/foo\\x2dbar.service", Some("foo\\x2dbar.service")),
            ("/system.slice/_cpu.service", Some("cpu.service")),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                Some("getty@tty1.service"),
            ),
            ("/system.slice/sshd.socket", Some("sshd.socket")),
            ("/system.slice/var-lib.mount", Some("var-lib.mount")),
            ("/system.slice/.service", None),
            ("/../../system.slice/a.service", Some("a.service")),
            (
                "/machine.slice/crio-conmon-ID.scope",
                Some("crio-conmon-ID.scope"),
            ),
            (
                "/machine.slice/libpod-conmon-ID.scope",
                Some("libpod-conmon-ID.scope"),
            ),
        ] {
            check(path, false, None, false, unit);
        }
    }

    #[test]
    fn containers() {
        use Runtime::{Containerd, Crio, Docker, Podman};
        for (path, runtime) in [
            ("/system.slice/docker-ID.scope", Some(Docker)),
            ("/docker/ID", Some(Docker)),
            ("/docker/ID/init", Some(Docker)),
            ("/machine.slice/libpod-ID.scope/container", Some(Podman)),
            ("/system.slice/web.service/libpod-payload-ID", Some(Podman)),
            ("/libpod_parent/libpod-ID", Some(Podman)),
            ("/libpod_parent/ID", Some(Podman)),
            ("/default/ID", None),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
                Some(Podman),
            ),
        ] {
            check(path, true, runtime, false, None);
        }
        for (path, runtime) in [
            ("/kubepods/podUID/ID", None),
            ("/kubepods/burstable/podUID/ID", None),
            ("/kubepods/besteffort/podUID/crio-ID", Some(Crio)),
            ("/kube-test/kubepods/burstable/podUID/ID", None),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
                Some(Containerd),
            ),
            (
                "/kubepods.slice/kubepods-podUID_.slice/docker-ID.scope",
                Some(Docker),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-ID.scope",
                Some(Crio),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-ID.scope/container",
                Some(Crio),
            ),
            (
                "/kubepods-besteffort-podUID_.slice:cri-containerd:ID",
                Some(Containerd),
            ),
            (
                "/system.slice/containerd.service/kubepods-podUID_.slice:cri-containerd:ID",
                Some(Containerd),
            ),
            ("/docker/OUTER/kubelet/kubepods/besteffort/podUID/ID", None),
            (
                "/system.slice/docker-OUTER.scope/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
                Some(Containerd),
            ),
        ] {
            check(path, true, runtime, true, None);
        }
        check("/docker/OUTER/kubelet/kubepods/podUID", false, None, true, None);
        check(
            "/system.slice/docker-ID.scope/system.slice/kubelet.service",
            true,
            Some(Docker),
            false,
            Some("kubelet.service"),
        );
        let hash = "0123456789abcdef0123456789abcdef";
        let name = CgroupName::parse(&format!("/kubepods/burstable/pod{hash}/{ID}"));
        assert_eq!(name.pod_uid.as_deref(), Some(hash));
        assert_eq!(name.container.as_deref(), Some(ID));
        let name = CgroupName::parse("/lxc.payload.web/system.slice/a.service");
        assert_eq!(name.container.as_deref(), Some("web"));
        assert_eq!(name.unit.as_deref(), Some("a.service"));
    }

    #[test]
    fn look_alikes_name_nothing() {
        for path in [
            "/podman",
            "/podcast/feed",
            "/docker/not-an-id",
            "/docker-.scope2",
            "/kubepods/podXYZ",
            "/kubepods-pod.slice",
            "/system.slice:docker",
            "/x.slice::",
            "/docker/3e35be1c4b2a0d9f8c7e6d5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5", // 63 digits
        ] {
            assert_eq!(CgroupName::parse(path), CgroupName::default(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_text(path in ".{0,300}") {
            let name = CgroupName::parse(&path);
            for part in [name.container, name.unit].into_iter().flatten() {
                prop_assert!(path.contains(&part));
            }
        }

        #[test]
        fn any_mixture(parts in proptest::collection::vec(proptest::sample::select(vec![
            "system.slice", "docker", OUTER, "kubepods", "pod2f6e1a9c-0b1d-4c3e-9f8a-7b6c5d4e3f2a", "a.service",
            "crio-0123456789ab.scope", ":", "x.slice:cri-containerd:0123456789ab", "..", "é.scope", "-", "_.", "lxc.payload.",
        ]), 0..12)) {
            let name = CgroupName::parse(&parts.join("/"));
            if let Some(id) = &name.container {
                prop_assert!(is_id(id));
            }
        }

        /// What kubelets and runtimes make of any pod and container: both cgroup drivers, every QoS class, roots of all kinds.
        #[test]
        fn any_pod_of_any_kubelet(
            uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}",
            id in "[0-9a-f]{64}",
            qos in proptest::sample::select(vec!["", "burstable", "besteffort"]),
            (named, runtime) in proptest::sample::select(vec![
                ("cri-containerd-", Runtime::Containerd), ("crio-", Runtime::Crio), ("docker-", Runtime::Docker),
            ]),
            root in proptest::sample::select(vec!["", "kubelet", "kube-test/node2", "docker/OUTER/kubelet"]),
            inside in proptest::sample::select(vec!["", "/container", "/init", "/init.scope", "/a/b"]),
        ) {
            let at = if root.is_empty() { String::new() } else { format!("/{}", root.replace("OUTER", OUTER)) };
            let class = if qos.is_empty() { String::new() } else { format!("/{qos}") };
            let cgroupfs = format!("{at}/kubepods{class}/pod{uid}/");
            let (slice, dashed) = (
                if qos.is_empty() { "kubepods".to_owned() } else { format!("kubepods-{qos}") },
                uid.replace('-', "_"),
            );
            let above = if qos.is_empty() { String::new() } else { format!("/{slice}.slice") };
            let systemd = format!("{at}/kubepods.slice{above}/{slice}-pod{dashed}.slice/");
            for (path, expected) in [
                // Where the driver is cgroupfs, CRI-O alone puts its name before the id.
                (format!("{cgroupfs}{id}{inside}"), None),
                (format!("{cgroupfs}crio-{id}{inside}"), Some(Runtime::Crio)),
                (format!("{systemd}{named}{id}.scope{inside}"), Some(runtime)),
                (format!("{at}/system.slice/containerd.service/{slice}-pod{dashed}.slice:cri-containerd:{id}"),
                    Some(Runtime::Containerd)),
            ] {
                let name = CgroupName::parse(&path);
                prop_assert_eq!(name.container.as_deref(), Some(id.as_str()), "{}", &path);
                prop_assert_eq!(name.pod_uid.as_deref(), Some(uid.as_str()), "{}", &path);
                prop_assert_eq!(name.runtime, expected, "{}", &path);
                // A systemd inside is the container's own.
                let unit = path.ends_with(".scope").then_some("init.scope").filter(|unit| path.ends_with(unit));
                prop_assert_eq!(name.unit.as_deref(), unit, "{}", &path);
            }
        }

        #[test]
        fn nothing_after_the_container_changes_it(tail in "(/[a-z]{1,8}){0,4}") {
            let name = CgroupName::parse(&format!("/system.slice/docker-{ID}.scope{tail}"));
            prop_assert_eq!(name.container.as_deref(), Some(ID));
            prop_assert_eq!(name.unit, None);
        }
    }
}
