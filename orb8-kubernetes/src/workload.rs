//! What made a pod: its owner references, resolved without asking for more objects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The label that a Deployment puts on its ReplicaSets and their pods.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// `Kind/name` of what made the pod.
///
/// A Deployment's pods belong to a ReplicaSet named `DEPLOYMENT-HASH`, whose hash is on the pod as a label; a CronJob's to
/// a Job named `CRONJOB-MINUTES`, minutes since 1970 (kubernetes/pkg/controller: deployment/sync.go, cronjob/utils.go). So
/// neither has to be watched.
#[must_use]
pub fn workload(metadata: &ObjectMeta) -> Option<String> {
    let owner = metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))?;
    let (kind, name) = (owner.kind.as_str(), owner.name.as_str());
    let of = |kind: &str, name: &str| Some(format!("{kind}/{name}"));
    match kind {
        "ReplicaSet" => {
            let deployment = metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(TEMPLATE_HASH))
                .and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'))
                .filter(|name| !name.is_empty());
            match deployment {
                Some(deployment) => of("Deployment", deployment),
                None => of(kind, name),
            }
        }
        "Job" => match name.rsplit_once('-') {
            Some((cron_job, minutes)) if is_schedule(minutes) && !cron_job.is_empty() => {
                of("CronJob", cron_job)
            }
            _ => of(kind, name),
        },
        _ => of(kind, name),
    }
}

/// Minutes since 1970, from 2017 to 2112: eight digits.
fn is_schedule(text: &str) -> bool {
    text.len() == 8
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (25_000_000..75_000_000).contains(&text.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    fn of(kind: &str, name: &str, hash: Option<&str>) -> Option<String> {
        workload(&ObjectMeta {
            owner_references: Some(vec![
                OwnerReference {
                    kind: "Other".into(),
                    name: "x".into(),
                    ..OwnerReference::default()
                },
                OwnerReference {
                    kind: kind.into(),
                    name: name.into(),
                    controller: Some(true),
                    ..OwnerReference::default()
                },
            ]),
            labels: hash.map(|hash| [(TEMPLATE_HASH.to_owned(), hash.to_owned())].into()),
            ..ObjectMeta::default()
        })
    }

    #[test]
    fn workloads_are_what_people_made() {
        let check = |kind, name, hash, expected: &str| {
            assert_eq!(of(kind, name, hash).as_deref(), Some(expected));
        };
        check("ReplicaSet", "cart-7d9f4", Some("7d9f4"), "Deployment/cart");
        check("ReplicaSet", "cart-7d9f4", None, "ReplicaSet/cart-7d9f4");
        check("ReplicaSet", "other", Some("7d9f4"), "ReplicaSet/other");
        check("Job", "backup-29384756", None, "CronJob/backup");
        check("Job", "backup-1", None, "Job/backup-1");
        check("Job", "backup-99999999", None, "Job/backup-99999999");
        check("DaemonSet", "agent", None, "DaemonSet/agent");
        check("StatefulSet", "db", None, "StatefulSet/db");
        check("Node", "n1", None, "Node/n1");
        assert_eq!(workload(&ObjectMeta::default()), None);
    }
}
