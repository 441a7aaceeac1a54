//! Values of settings about GPUs.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use orb8_gpu::dcgm::Scraper;

/// Where dcgm-exporter serves its page; empty: nowhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExporterUrl(String);

impl ExporterUrl {
    /// The address, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<&str> {
        (!self.0.is_empty()).then_some(self.0.as_str())
    }
}

impl Default for ExporterUrl {
    /// Where dcgm-exporter listens unless told otherwise.
    fn default() -> Self {
        Self("http://localhost:9400/metrics".to_owned())
    }
}

impl FromStr for ExporterUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.is_empty() {
            Scraper::new(text, Duration::from_secs(1), 1).map_err(|error| error.to_string())?;
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ExporterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which NVML is loaded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NvmlLibrary {
    /// None.
    Off,
    /// The one that the loader finds, if there is any.
    #[default]
    Auto,
    /// The one at an absolute path.
    At(PathBuf),
}

impl FromStr for NvmlLibrary {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            path if path.chars().any(char::is_control) => Err("it has control characters"),
            path if Path::new(path).is_absolute() => Ok(Self::At(PathBuf::from(path))),
            _ => Err("it is no absolute path"),
        }
    }
}

impl fmt::Display for NvmlLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::At(path) => path.display().fmt(f),
        }
    }
}

/// The kubelet's socket for the resources of pods; empty: none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodResourcesSocket(String);

impl PodResourcesSocket {
    /// The path, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<&Path> {
        (!self.0.is_empty()).then(|| Path::new(&self.0))
    }
}

impl Default for PodResourcesSocket {
    /// Where a kubelet with its default root directory listens.
    fn default() -> Self {
        Self("/var/lib/kubelet/pod-resources/kubelet.sock".to_owned())
    }
}

impl FromStr for PodResourcesSocket {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.chars().any(char::is_control) {
            return Err("it has control characters");
        }
        if !text.is_empty() && !Path::new(text).is_absolute() {
            return Err("it is no absolute path");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PodResourcesSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_paths_are_checked() {
        for good in ["", "http://localhost:9400/metrics", "http://[::1]:9400/metrics"] {
            assert_eq!(good.parse::<ExporterUrl>().unwrap().to_string(), good);
        }
        for bad in [
            "localhost:9400",
            "https://localhost:9400/metrics",
            "http://",
            "ftp://a/b",
            "http://u@h/",
        ] {
            assert!(bad.parse::<ExporterUrl>().is_err(), "{bad}");
        }
        for good in ["auto", "off", "/usr/lib/libnvidia-ml.so.1"] {
            assert_eq!(good.parse::<NvmlLibrary>().unwrap().to_string(), good);
        }
        for bad in ["", "on", "libnvidia-ml.so.1", "/a\nb"] {
            assert!(bad.parse::<NvmlLibrary>().is_err(), "{bad}");
        }
        assert!("relative.sock".parse::<PodResourcesSocket>().is_err());
        assert_eq!("".parse::<PodResourcesSocket>().unwrap().get(), None);
    }
}
