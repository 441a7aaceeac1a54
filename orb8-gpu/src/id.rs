//! What a device goes by.

use std::{convert::Infallible, fmt, str::FromStr};

/// A device's UUID as its driver tells it (`GPU-…` or `MIG-…`). Case does not matter: it is kept as the source wrote it, and
/// compared, ordered and hashed without regard to it.
#[derive(Clone, Debug)]
pub struct Uuid(String);

impl Uuid {
    /// Of this text, whatever it holds.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As the source wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn folded(&self) -> impl Iterator<Item = u8> {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

impl PartialEq for Uuid {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Uuid {}

impl PartialOrd for Uuid {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Uuid {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.folded().cmp(other.folded())
    }
}

impl std::hash::Hash for Uuid {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        for byte in self.folded() {
            state.write_u8(byte);
        }
        state.write_u8(0xff);
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole GPU, or an instance that Multi-Instance GPU cut of one: what readings are of, and what is counted once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey {
    /// Of the whole GPU.
    pub uuid: Uuid,
    /// GPU instance id of the slice; none: the whole GPU.
    pub instance: Option<u32>,
}

/// A device id as the kubelet passes it on: the device plugin or the driver of dynamic resource allocation chose its form.
/// Case does not matter, neither in reading nor in comparing.
///
/// Several containers that share a device hold *replicas* of it: ids that differ only in [`DeviceId::replica`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceId {
    /// `GPU-…`, `GPU-…::3`: a whole GPU by its UUID.
    Gpu {
        /// `GPU-…`.
        uuid: Uuid,
        /// Of time-slicing or MPS.
        replica: Option<u32>,
    },
    /// `MIG-…`, `MIG-…::3`: an instance by its own UUID, which does not tell its GPU.
    Mig {
        /// `MIG-…`.
        uuid: Uuid,
        /// Of time-slicing or MPS.
        replica: Option<u32>,
    },
    /// `MIG-GPU-…/7/0`: an instance as drivers before R470 called it.
    MigOf {
        /// Of the whole GPU.
        parent: Uuid,
        /// GPU instance id.
        instance: u32,
        /// Compute instance id within it.
        compute: u32,
        /// Of time-slicing or MPS.
        replica: Option<u32>,
    },
    /// `0`, `0::3`, `0:1`: the driver's index of the GPU, and perhaps the place of one of its MIG devices.
    Index {
        /// Of the whole GPU.
        index: u32,
        /// Place among the GPU's MIG devices: not its GPU instance id.
        mig: Option<u32>,
        /// Of time-slicing or MPS.
        replica: Option<u32>,
    },
    /// `nvidia0`, `nvidia0/gi3`, `nvidia0/vgpu2`, `nvidia0/gi3/vgpu1` of GKE's device plugin, and `gpu-0` of NVIDIA's
    /// driver for dynamic resource allocation: the number of the device node, which mostly, but not always, is the index.
    Minor {
        /// Of `/dev/nvidiaN`.
        minor: u32,
        /// GPU instance id.
        instance: Option<u32>,
        /// Of GKE's sharing.
        replica: Option<u32>,
    },
    /// `gpu-0-mig-1g5gb-19-4`, and before its release 25.12 `gpu-0-mig-19-4-1`: an instance by where it lies, as NVIDIA's
    /// driver for dynamic resource allocation calls it. It tells neither a UUID nor the GPU instance id.
    Slice {
        /// Of the whole GPU's `/dev/nvidiaN`.
        minor: u32,
        /// Profile without its dot, such as `1g5gb`; of the older form not told.
        profile: Option<String>,
        /// Number of the profile.
        profile_id: u32,
        /// First memory slice.
        start: u32,
        /// Memory slices, of the older form.
        size: Option<u32>,
    },
    /// Any other, as it is.
    Other(String),
}

impl DeviceId {
    /// Reads an id; what is in no known form is [`DeviceId::Other`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        uuid_or_index(text)
            .or_else(|| device_node(text))
            .or_else(|| claimed(text))
            .unwrap_or_else(|| Self::Other(text.to_owned()))
    }

    /// Which of the shares of a device it is; none: it is not shared by replicas.
    #[must_use]
    pub const fn replica(&self) -> Option<u32> {
        match self {
            Self::Gpu { replica, .. }
            | Self::Mig { replica, .. }
            | Self::MigOf { replica, .. }
            | Self::Index { replica, .. }
            | Self::Minor { replica, .. } => *replica,
            Self::Slice { .. } | Self::Other(_) => None,
        }
    }

    /// The same device without regard to who has which share of it.
    #[must_use]
    pub fn device(&self) -> Self {
        let mut device = self.clone();
        match &mut device {
            Self::Gpu { replica, .. }
            | Self::Mig { replica, .. }
            | Self::MigOf { replica, .. }
            | Self::Index { replica, .. }
            | Self::Minor { replica, .. } => *replica = None,
            Self::Slice { .. } | Self::Other(_) => {}
        }
        device
    }
}

impl FromStr for DeviceId {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::parse(text))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpu { uuid, .. } | Self::Mig { uuid, .. } => uuid.fmt(f)?,
            Self::MigOf {
                parent,
                instance,
                compute,
                ..
            } => write!(f, "MIG-{parent}/{instance}/{compute}")?,
            Self::Index { index, mig: None, .. } => index.fmt(f)?,
            Self::Index {
                index,
                mig: Some(mig),
                ..
            } => write!(f, "{index}:{mig}")?,
            Self::Minor {
                minor,
                instance,
                replica,
            } => {
                write!(f, "nvidia{minor}")?;
                if let Some(instance) = instance {
                    write!(f, "/gi{instance}")?;
                }
                return replica.map_or(Ok(()), |replica| write!(f, "/vgpu{replica}"));
            }
            Self::Slice {
                minor,
                profile,
                profile_id,
                start,
                size,
            } => {
                write!(f, "gpu-{minor}-mig-")?;
                if let Some(profile) = profile {
                    write!(f, "{profile}-")?;
                }
                write!(f, "{profile_id}-{start}")?;
                return size.map_or(Ok(()), |size| write!(f, "-{size}"));
            }
            Self::Other(text) => return f.write_str(text),
        }
        self.replica().map_or(Ok(()), |replica| write!(f, "::{replica}"))
    }
}

/// Forms of NVIDIA's device plugin.
fn uuid_or_index(text: &str) -> Option<DeviceId> {
    let (device, replica) = match text.rsplit_once("::") {
        Some((device, replica)) => (device, Some(number(replica)?)),
        None => (text, None),
    };
    if let Some(rest) = strip(device, "MIG-") {
        if strip(rest, "GPU-").is_none() {
            return uuid(device).map(|uuid| DeviceId::Mig { uuid, replica });
        }
        let mut parts = rest.split('/');
        let parent = uuid(parts.next()?)?;
        let (instance, compute) = (number(parts.next()?)?, number(parts.next()?)?);
        return parts.next().is_none().then_some(DeviceId::MigOf {
            parent,
            instance,
            compute,
            replica,
        });
    }
    if strip(device, "GPU-").is_some_and(|rest| !of_claim(rest)) {
        return uuid(device).map(|uuid| DeviceId::Gpu { uuid, replica });
    }
    let (index, mig) = match device.split_once(':') {
        Some((index, mig)) => (index, Some(number(mig)?)),
        None => (device, None),
    };
    Some(DeviceId::Index {
        index: number(index)?,
        mig,
        replica,
    })
}

/// Forms of GKE's device plugin.
fn device_node(text: &str) -> Option<DeviceId> {
    let mut parts = strip(text, "nvidia")?.split('/').peekable();
    let minor = number(parts.next()?)?;
    let mut tagged = |tag: &str| match parts.peek().and_then(|part| strip(part, tag)) {
        Some(part) => {
            parts.next();
            number(part).map(Some)
        }
        None => Some(None),
    };
    let (instance, replica) = (tagged("gi")?, tagged("vgpu")?);
    parts.next().is_none().then_some(DeviceId::Minor {
        minor,
        instance,
        replica,
    })
}

/// Forms of NVIDIA's driver for dynamic resource allocation.
fn claimed(text: &str) -> Option<DeviceId> {
    let rest = strip(text, "gpu-")?;
    if let Some(minor) = number(rest) {
        return Some(DeviceId::Minor {
            minor,
            instance: None,
            replica: None,
        });
    }
    strip_slice(rest)
}

/// `0-mig-1g5gb-19-4`, or `0-mig-19-4-1`. A profile can have hyphens of its own (`1g10gb-me`), and is no number.
fn strip_slice(rest: &str) -> Option<DeviceId> {
    let (minor, rest) = rest.split_once('-')?;
    let minor = number(minor)?;
    let mut parts = strip(rest, "mig-")?.rsplitn(3, '-');
    let (last, middle, first) = (parts.next()?, parts.next()?, parts.next()?);
    let (last, middle) = (number(last)?, number(middle)?);
    if let Some(profile_id) = number(first) {
        return Some(DeviceId::Slice {
            minor,
            profile: None,
            profile_id,
            start: middle,
            size: Some(last),
        });
    }
    let is_profile = first.bytes().any(|byte| !byte.is_ascii_digit());
    is_profile.then(|| DeviceId::Slice {
        minor,
        profile: Some(first.to_ascii_lowercase()),
        profile_id: middle,
        start: last,
        size: None,
    })
}

/// Whether what follows `gpu-` is a name that NVIDIA's driver for dynamic resource allocation gives, not a UUID: `0`,
/// `0-mig-…`, `vfio-0` (which is passed through to a virtual machine, and the driver sees nothing of it).
fn of_claim(rest: &str) -> bool {
    number(rest).is_some()
        || strip(rest, "vfio").is_some()
        || rest
            .split_once('-')
            .is_some_and(|(minor, rest)| number(minor).is_some() && strip(rest, "mig").is_some())
}

/// A UUID with its `GPU-` or `MIG-`. What follows is not held to be hexadecimal: a driver may change its mind, and only
/// equality matters.
fn uuid(text: &str) -> Option<Uuid> {
    let rest = text.get(4..)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (!rest.is_empty() && rest.len() <= MAX_UUID && rest.bytes().all(plain)).then(|| Uuid::new(text))
}

/// Longer than any UUID, in bytes.
const MAX_UUID: usize = 128;

/// Without a beginning in whatever case.
fn strip<'a>(text: &'a str, beginning: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(beginning.len())?;
    start.eq_ignore_ascii_case(beginning).then_some(rest)
}

/// Digits alone: no sign, no blank, and no zero before others, so that each number is written in one way.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (digits && (text.len() == 1 || !text.starts_with('0')))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "8f3a2b1c-0d4e-4f5a-9b6c-7d8e9f0a1b2c";

    fn gpu(replica: Option<u32>) -> DeviceId {
        DeviceId::Gpu {
            uuid: Uuid::new(format!("GPU-{UUID}")),
            replica,
        }
    }

    #[test]
    fn each_form_is_read() {
        let mig = |replica| DeviceId::Mig {
            uuid: Uuid::new(format!("MIG-{UUID}")),
            replica,
        };
        let old = |replica| DeviceId::MigOf {
            parent: Uuid::new(format!("GPU-{UUID}")),
            instance: 7,
            compute: 0,
            replica,
        };
        let index = |index, mig, replica| DeviceId::Index { index, mig, replica };
        let minor = |minor, instance, replica| DeviceId::Minor {
            minor,
            instance,
            replica,
        };
        let slice = |profile: &str| DeviceId::Slice {
            minor: 0,
            profile: Some(profile.to_owned()),
            profile_id: 19,
            start: 4,
            size: None,
        };
        let older = DeviceId::Slice {
            minor: 0,
            profile: None,
            profile_id: 19,
            start: 4,
            size: Some(1),
        };
        for (text, expected) in [
            (format!("GPU-{UUID}"), gpu(None)),
            (format!("GPU-{UUID}::3"), gpu(Some(3))),
            (format!("MIG-{UUID}"), mig(None)),
            (format!("MIG-{UUID}::0"), mig(Some(0))),
            (format!("MIG-GPU-{UUID}/7/0"), old(None)),
            (format!("MIG-GPU-{UUID}/7/0::2"), old(Some(2))),
            ("0".to_owned(), index(0, None, None)),
            ("12::3".to_owned(), index(12, None, Some(3))),
            ("0:1".to_owned(), index(0, Some(1), None)),
            ("0:1::2".to_owned(), index(0, Some(1), Some(2))),
            ("nvidia0".to_owned(), minor(0, None, None)),
            ("nvidia0/gi3".to_owned(), minor(0, Some(3), None)),
            ("nvidia1/vgpu2".to_owned(), minor(1, None, Some(2))),
            ("nvidia0/gi3/vgpu1".to_owned(), minor(0, Some(3), Some(1))),
            ("gpu-0".to_owned(), minor(0, None, None)),
            ("gpu-0-mig-1g5gb-19-4".to_owned(), slice("1g5gb")),
            ("gpu-0-mig-1g10gb-me-19-4".to_owned(), slice("1g10gb-me")),
            ("gpu-0-mig-19-4-1".to_owned(), older),
        ] {
            assert_eq!(DeviceId::parse(&text), expected, "{text}");
            let written = expected.to_string();
            assert_eq!(DeviceId::parse(&written), expected, "{text} is written {written}");
            let lower = DeviceId::parse(&text.to_lowercase());
            assert_eq!(lower, expected, "{text} in lower case");
            assert_eq!(
                DeviceId::parse(&text.to_uppercase()),
                expected,
                "{text} in upper case"
            );
            assert_eq!(expected.device().replica(), None);
        }
        assert_eq!(gpu(Some(3)).device(), gpu(None));
    }

    #[test]
    fn what_is_in_no_known_form_stays_as_it_is() {
        for text in [
            "",
            "GPU-",
            "MIG-",
            "::",
            "::1",
            "0::",
            "0::x",
            "00",
            "+1",
            " 0",
            "4294967296",
            "0:",
            "0:1:2",
            "nvidia",
            "nvidia0/",
            "nvidia0/gi",
            "nvidia0/vgpu1/gi3",
            "nvidia0/gi3/vgpu1/x",
            "nvidiactl",
            "MIG-GPU-a/1",
            "MIG-GPU-a/1/2/3",
            "gpu-vfio-0",
            "gpu-0-mig-",
            "gpu-0-mig--1-2",
            "gpu-0-mig-019-4-1",
            "gpu-0-mig-19-4",
            "GPU-a b",
            "GPU-é",
            "é",
            "channel-0",
            "0000:3b:00.0",
        ] {
            let expected = DeviceId::Other(text.to_owned());
            assert_eq!(DeviceId::parse(text), expected, "{text}");
        }
    }

    fn any_id() -> impl Strategy<Value = DeviceId> {
        let replica = || proptest::option::of(any::<u32>());
        prop_oneof![
            ("GPU-[0-9a-f]{8}-[0-9a-f]{4}", replica()).prop_map(|(uuid, replica)| DeviceId::Gpu {
                uuid: Uuid::new(uuid),
                replica
            }),
            ("MIG-[0-9a-f]{8}-[0-9a-f]{4}", replica()).prop_map(|(uuid, replica)| DeviceId::Mig {
                uuid: Uuid::new(uuid),
                replica
            }),
            (
                "GPU-[0-9a-f]{8}-[0-9a-f]{4}",
                any::<u32>(),
                any::<u32>(),
                replica()
            )
                .prop_map(|(parent, instance, compute, replica)| DeviceId::MigOf {
                    parent: Uuid::new(parent),
                    instance,
                    compute,
                    replica
                }),
            (any::<u32>(), replica(), replica()).prop_map(|(index, mig, replica)| DeviceId::Index {
                index,
                mig,
                replica
            }),
            (any::<u32>(), replica(), replica()).prop_map(|(minor, instance, replica)| DeviceId::Minor {
                minor,
                instance,
                replica
            }),
            (
                any::<u32>(),
                "[1-7]g[0-9]{1,2}gb(-me)?",
                any::<u32>(),
                any::<u32>()
            )
                .prop_map(|(minor, profile, profile_id, start)| DeviceId::Slice {
                    minor,
                    profile: Some(profile),
                    profile_id,
                    start,
                    size: None
                }),
            (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
                |(minor, profile_id, start, size)| DeviceId::Slice {
                    minor,
                    profile: None,
                    profile_id,
                    start,
                    size: Some(size)
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(id in any_id()) {
            prop_assert_eq!(DeviceId::parse(&id.to_string()), id);
        }

        #[test]
        fn case_does_not_matter(id in any_id()) {
            prop_assert_eq!(DeviceId::parse(&id.to_string().to_uppercase()), id);
        }

        #[test]
        fn any_text_is_read(text in ".*") {
            let id = DeviceId::parse(&text);
            prop_assert_eq!(DeviceId::parse(&id.to_string()), id);
        }

        #[test]
        fn text_of_the_right_alphabet_is_read(text in "(GPU-|gpu-|MIG-|mig-|nvidia|gi|vgpu|::|[:/0-9a-f-]){0,8}") {
            let id = DeviceId::parse(&text);
            prop_assert_eq!(DeviceId::parse(&id.to_string()), id.clone());
            prop_assert_eq!(id.device().replica(), None);
        }
    }
}
