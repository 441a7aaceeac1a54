//! What the labels of a row say: which device it is of, and whose.

use super::text::Sample;
use crate::{
    id::{DeviceId, DeviceKey, Uuid},
    sample::Claim,
};

/// Longest text that is taken of a label, in bytes: longer than any name that Kubernetes or a driver gives.
const MAX_TEXT: usize = 256;

/// What a row is of.
#[derive(Debug, PartialEq)]
pub(super) enum Subject {
    /// A GPU or an instance.
    Device(DeviceKey),
    /// An NVSwitch, a link of one, a CPU or its core: dcgm-exporter tells of these, too.
    NoGpu,
}

/// Why a row cannot be told to be of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SubjectError {
    // An index would do within one page, but names another GPU once one of them is lost.
    #[error("has no UUID")]
    NoUuid,
    #[error("has a UUID that is none")]
    Uuid,
    #[error("names an instance's UUID instead of its GPU's")]
    Instance,
    #[error("has a GPU instance id that is no number")]
    InstanceId,
}

/// Which device a row is of. Names: `UUID`, and `uuid` of old; `gpu_uuid` of rows of links. An instance's row has its GPU's
/// UUID, and `GPU_I_ID`.
pub(super) fn subject(sample: &Sample<'_>) -> Result<Subject, SubjectError> {
    let Some(uuid) = first(sample, &["UUID", "uuid", "gpu_uuid"]) else {
        let other = ["nvswitch", "cpu", "cpucore"];
        return if first(sample, &other).is_some() && sample.label("gpu").is_none() {
            Ok(Subject::NoGpu)
        } else {
            Err(SubjectError::NoUuid)
        };
    };
    if uuid.len() > MAX_TEXT || !uuid.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(SubjectError::Uuid);
    }
    if uuid
        .get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case("MIG-"))
    {
        return Err(SubjectError::Instance);
    }
    let instance = sample
        .label("GPU_I_ID")
        .map(|id| id.parse().map_err(|_| SubjectError::InstanceId))
        .transpose()?;
    Ok(Subject::Device(DeviceKey {
        uuid: Uuid::new(uuid),
        instance,
    }))
}

/// Whose a row is.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Owner {
    /// The row is of one pod's share, or a copy of the device's row for it; otherwise the device's own.
    pub(super) of_pod: bool,
    /// The row has the pod's UID, as rows of values measured per process do; others only on request.
    pub(super) uid: bool,
    /// Who, where it is told in full.
    pub(super) claim: Option<Claim>,
}

/// Who holds the device, as the row claims.
///
/// A Prometheus that scrapes the exporter renames the exporter's `pod` to `exported_pod`, and its own `pod` is the exporter's.
/// So with `job` and `instance`, which only a Prometheus adds, a plain `pod` may be the exporter itself, and is no claim.
pub(super) fn owner(sample: &Sample<'_>) -> Owner {
    let relabelled = sample.label("job").is_some() && sample.label("instance").is_some();
    let exported = ["exported_pod", "exported_namespace", "exported_container"];
    let new = ["pod", "namespace", "container"];
    let old = ["pod_name", "pod_namespace", "container_name"];
    let styles: &[[&str; 3]] = if relabelled {
        &[exported, old]
    } else {
        &[exported, new, old]
    };
    let style = styles.iter().find(|[pod, ..]| sample.label(pod).is_some());
    let uid = first(sample, &["exported_pod_uid", "pod_uid"]).is_some();
    // Where devices are allocated dynamically, the exporter repeats the whole GPU's row for those who hold instances of it,
    // and names the instance beside: these do not hold the GPU.
    let of_instance = sample.label("dra_mig_device_uuid").is_some() && sample.label("GPU_I_ID").is_none();
    let claim = style
        .filter(|_| !of_instance)
        .and_then(|[pod, namespace, container]| {
            Some(Claim {
                namespace: text(sample.label(namespace)?)?,
                pod: text(sample.label(pod)?)?,
                container: sample
                    .label(container)
                    .map_or_else(|| Some(String::new()), text)?,
            })
        });
    Owner {
        of_pod: style.is_some() || uid,
        uid,
        claim,
    }
}

/// What is known of a device besides its values.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) index: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) model: Option<String>,
    pub(super) driver: Option<String>,
    pub(super) pci: Option<String>,
    pub(super) host: Option<String>,
    pub(super) profile: Option<String>,
}

/// Facts of the row; what is no name is left out.
pub(super) fn facts(sample: &Sample<'_>) -> Facts {
    let fact = |names: &[&str]| first(sample, names).and_then(text);
    let index = first(sample, &["gpu", "GPU"]).or_else(|| sample.label("device")?.strip_prefix("nvidia"));
    // Where devices are allocated dynamically, their names hold the number of the device node; `device` holds the index.
    let minor = match sample.label("dra_device_name").map(DeviceId::parse) {
        Some(DeviceId::Minor { minor, .. } | DeviceId::Slice { minor, .. }) => Some(minor),
        _ => None,
    };
    Facts {
        index: index.and_then(|index| index.parse().ok()),
        minor,
        model: fact(&["modelName", "model_name"]),
        driver: fact(&["DCGM_FI_DRIVER_VERSION"]),
        pci: fact(&["pci_bus_id"]),
        host: fact(&["Hostname", "hostname"]),
        profile: fact(&["GPU_I_PROFILE"]),
    }
}

fn first<'a>(sample: &'a Sample<'_>, names: &[&str]) -> Option<&'a str> {
    names
        .iter()
        .find_map(|name| sample.label(name).filter(|text| !is_blank(text)))
}

/// DCGM's blanks of text, such as `<<<NOT_SUPPORTED>>>`.
fn is_blank(text: &str) -> bool {
    text.starts_with("<<<") && text.ends_with(">>>")
}

fn text(label: &str) -> Option<String> {
    (label.len() <= MAX_TEXT && !label.contains(char::is_control)).then(|| label.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{super::text::sample, *};

    fn with<T>(labels: &str, read: impl Fn(&Sample<'_>) -> T) -> T {
        let line = format!("DCGM_FI_DEV_GPU_UTIL{{{labels}}} 1");
        read(&sample(line.as_bytes()).unwrap().unwrap())
    }

    fn claim(labels: &str) -> Option<(String, String, String)> {
        with(labels, owner)
            .claim
            .map(|claim| (claim.namespace, claim.pod, claim.container))
    }

    #[test]
    fn both_styles_of_labels_name_the_device() {
        let key = |instance| {
            Ok(Subject::Device(DeviceKey {
                uuid: Uuid::new("GPU-a"),
                instance,
            }))
        };
        assert_eq!(with(r#"gpu="0",UUID="GPU-a""#, subject), key(None));
        assert_eq!(with(r#"gpu="0",uuid="gpu-A""#, subject), key(None));
        assert_eq!(with(r#"nvlink="3",gpu_uuid="GPU-a""#, subject), key(None));
        assert_eq!(
            with(r#"UUID="GPU-a",GPU_I_PROFILE="1g.5gb",GPU_I_ID="7""#, subject),
            key(Some(7))
        );
        for (labels, error) in [
            (r#"gpu="0""#, SubjectError::NoUuid),
            ("", SubjectError::NoUuid),
            (r#"UUID="""#, SubjectError::NoUuid),
            (r#"UUID="GPU a""#, SubjectError::Uuid),
            (r#"UUID="MIG-a""#, SubjectError::Instance),
            (r#"UUID="GPU-a",GPU_I_ID="x""#, SubjectError::InstanceId),
        ] {
            assert_eq!(with(labels, subject), Err(error), "{labels}");
        }
        for labels in [
            r#"nvswitch="nvswitch0""#,
            r#"nvlink="1",nvswitch="nvswitch0""#,
            r#"cpu="0""#,
            r#"cpucore="1",cpu="0""#,
        ] {
            assert_eq!(with(labels, subject), Ok(Subject::NoGpu), "{labels}");
        }
    }

    #[test]
    fn both_styles_of_labels_name_the_pod() {
        let who = |pod: &str| Some(("ml".to_owned(), pod.to_owned(), "main".to_owned()));
        assert_eq!(claim(r#"pod="a",namespace="ml",container="main""#), who("a"));
        assert_eq!(
            claim(r#"pod_name="a",pod_namespace="ml",container_name="main""#),
            who("a")
        );
        assert_eq!(claim(""), None);
        assert_eq!(claim(r#"pod="",namespace="",container="""#), None);
        assert_eq!(claim(r#"pod="a""#), None, "of which namespace?");
        let long = "x".repeat(MAX_TEXT + 1);
        assert_eq!(claim(&format!(r#"pod="{long}",namespace="ml""#)), None);
        assert_eq!(claim(r#"pod="a\nb",namespace="ml""#), None);
    }

    #[test]
    fn a_prometheus_in_between_does_not_make_the_exporter_the_holder() {
        let exporter = r#"job="dcgm",instance="10.0.0.1:9400",pod="dcgm-exporter-x",namespace="gpu",container="exporter""#;
        assert_eq!(claim(exporter), None);
        assert!(!with(exporter, owner).of_pod);
        let relabelled =
            format!(r#"{exporter},exported_pod="a",exported_namespace="ml",exported_container="main""#);
        assert_eq!(
            claim(&relabelled),
            Some(("ml".to_owned(), "a".to_owned(), "main".to_owned()))
        );
        let old = format!(r#"{exporter},pod_name="a",pod_namespace="ml",container_name="main""#);
        assert_eq!(
            claim(&old),
            Some(("ml".to_owned(), "a".to_owned(), "main".to_owned()))
        );
    }

    #[test]
    fn both_styles_of_labels_name_the_host() {
        for labels in [r#"Hostname="n1""#, r#"hostname="n1""#] {
            assert_eq!(with(labels, facts).host.as_deref(), Some("n1"), "{labels}");
        }
        assert_eq!(with(r#"gpu="0""#, facts).host, None);
    }

    #[test]
    fn names_of_dynamic_allocation_tell_the_device_node() {
        let minor = |labels: &str| with(labels, facts).minor;
        assert_eq!(
            minor(r#"gpu="0",device="nvidia0",dra_device_name="gpu-3""#),
            Some(3)
        );
        assert_eq!(
            minor(r#"gpu="0",dra_device_name="gpu-3-mig-1g5gb-19-4""#),
            Some(3)
        );
        // DCGM's own number, whatever it is called.
        assert_eq!(minor(r#"gpu="0",device="nvidia0""#), None);
        assert_eq!(minor(r#"gpu="0",dra_device_name="gpu-vfio-3""#), None);
    }

    #[test]
    fn who_holds_an_instance_does_not_hold_its_gpu() {
        let owner = with(
            r#"UUID="GPU-a",pod="a",namespace="ml",container="main",dra_mig_device_uuid="MIG-b""#,
            owner,
        );
        assert_eq!(
            owner,
            Owner {
                of_pod: true,
                uid: false,
                claim: None
            }
        );
    }
}
