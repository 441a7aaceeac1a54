//! Which instance a container holds, where no source tells the instances' own UUIDs.
//!
//! NVIDIA's device plugin calls an instance by its own UUID (`MIG-…`), an exporter by its GPU and its id, and NVML alone tells
//! both. Where there is none, as in a container without the driver's libraries, the exporter's labels still name the
//! container that an instance is handed to: the kubelet says that it holds one, the labels say which.
//!
//! Labels may be of the past. They are believed if the kubelet has said for longer than a page is old that this container
//! holds one such device and no other that is not known, and the newest page names the container for one instance alone, of
//! the profile that the resource is named by.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::{
    id::{DeviceKey, Uuid},
    owners::Owner,
    sample::Claim,
    span::{Nanos, length},
};

/// How old an exporter's page may be: it collects every 30 s, unless it is set otherwise.
const PAGE_AGE: Duration = Duration::from_secs(30);

/// An instance by its own UUID, of a container, as the kubelet says.
#[derive(Clone, Debug)]
pub(crate) struct Listed<'a> {
    pub(crate) uuid: &'a Uuid,
    pub(crate) owner: &'a Owner,
    pub(crate) resource: &'a str,
}

/// An instance whose UUID is not known, as an exporter's newest page tells it.
#[derive(Clone, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) key: &'a DeviceKey,
    pub(crate) profile: Option<String>,
    pub(crate) claims: &'a [Claim],
}

/// Namespace, pod and container.
type Container = (String, String, String);

/// What was found out so far.
#[derive(Debug, Default)]
pub(crate) struct Labelled {
    /// Since when the kubelet says that a container holds it.
    since: HashMap<(Uuid, Container), Nanos>,
    found: HashMap<Uuid, DeviceKey>,
}

impl Labelled {
    /// Takes in what is told now: what the kubelet said at `listed_at`, and a page that came at `told_at`.
    pub(crate) fn learn(
        &mut self,
        listed: &[Listed<'_>],
        listed_at: Nanos,
        told: &[Told<'_>],
        told_at: Nanos,
    ) {
        let mut since = HashMap::new();
        let mut of_containers: BTreeMap<Container, Vec<&Listed<'_>>> = BTreeMap::new();
        for one in listed {
            let owner = one.owner;
            let container = (
                owner.namespace.clone(),
                owner.pod.clone(),
                owner.container.clone(),
            );
            let key = (one.uuid.clone(), container.clone());
            let before = self.since.get(&key).copied().unwrap_or(listed_at);
            since.insert(key, before.min(listed_at));
            let held = of_containers.entry(container).or_default();
            if !held.iter().any(|known| known.uuid == one.uuid) {
                held.push(one);
            }
        }
        self.since = since;
        self.found
            .retain(|uuid, _| listed.iter().any(|one| one.uuid == uuid));
        for (container, held) in of_containers {
            let [one] = held.as_slice() else { continue };
            let mut named = told.iter().filter(|told| {
                let is_its = |claim: &Claim| {
                    (&claim.namespace, &claim.pod, &claim.container)
                        == (&container.0, &container.1, &container.2)
                };
                told.claims.iter().any(is_its)
            });
            let (Some(instance), None) = (named.next(), named.next()) else {
                continue;
            };
            let since = self.since.get(&(one.uuid.clone(), container)).copied();
            let is_old = since.is_some_and(|since| told_at.saturating_sub(since) >= length(PAGE_AGE));
            if is_old && is_of_profile(one.resource, instance.profile.as_deref()) {
                self.found.insert(one.uuid.clone(), instance.key.clone());
            }
        }
    }

    /// UUIDs of an instance.
    pub(crate) fn of<'a>(&'a self, key: &'a DeviceKey) -> impl Iterator<Item = &'a Uuid> {
        self.found
            .iter()
            .filter(move |(_, found)| *found == key)
            .map(|(uuid, _)| uuid)
    }
}

/// Whether an instance can be of a resource, such as `nvidia.com/mig-1g.10gb.me` of the profile `1g.10gb+me`.
fn is_of_profile(resource: &str, profile: Option<&str>) -> bool {
    let named = resource
        .rsplit_once('/')
        .and_then(|(_, name)| name.strip_prefix("mig-"));
    match (named, profile) {
        (Some(named), Some(profile)) => {
            let named = named.strip_suffix(".shared").unwrap_or(named);
            named.eq_ignore_ascii_case(&profile.replace('+', "."))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_by_profiles() {
        for (resource, profile) in [
            ("nvidia.com/mig-1g.5gb", Some("1g.5gb")),
            ("nvidia.com/mig-1g.5gb.shared", Some("1g.5gb")),
            ("nvidia.com/mig-1g.10gb.me", Some("1g.10gb+me")),
            ("nvidia.com/mig-1g.5gb", None),
            ("nvidia.com/gpu", Some("1g.5gb")),
        ] {
            assert!(is_of_profile(resource, profile), "{resource} {profile:?}");
        }
        assert!(!is_of_profile("nvidia.com/mig-1g.5gb", Some("2g.10gb")));
    }
}
