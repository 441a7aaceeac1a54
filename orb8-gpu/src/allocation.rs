//! Who holds which device, as the kubelet says.

use std::time::SystemTime;

/// All containers that hold devices, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocations {
    /// When the kubelet said so.
    pub time: SystemTime,
    /// One for each container and resource or claim.
    pub held: Vec<Held>,
    /// Ids that were not taken: empty, too long, or too many.
    pub refused: u64,
}

/// Devices of one kind that a container holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// Resource name such as `nvidia.com/gpu`; of a claim, its driver's name.
    pub resource: String,
    /// Of dynamic resource allocation: the claim's `namespace/name`.
    pub claim: Option<String>,
    /// Device ids, as the device plugin or the driver calls them.
    pub devices: Vec<String>,
}
