//! Contexts: where a server is and who asks it, kept in a file under a name.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};

use crate::exit::Usage;

/// One context. What is not given is as if it were not typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) insecure: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kubeconfig: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kube_context: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent_namespace: Option<String>,
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Saved>,
}

/// Where the file is, whether it is there or not; none without a home directory.
pub(crate) fn path() -> Option<PathBuf> {
    let variable = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("ORB8_CONFIG")
        .or_else(|| variable("XDG_CONFIG_HOME").map(|directory| directory.join("orb8/config.toml")))
        .or_else(|| env::home_dir().map(|home| home.join(".config/orb8/config.toml")))
}

impl Contexts {
    /// What the file says; nothing if there is none.
    ///
    /// # Errors
    /// If it can't be read, or makes no sense: names it and the place.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let Some(path) = path() else {
            return Ok(Self::default());
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            // Somebody else's home directory: nobody asked for that file.
            Err(error)
                if error.kind() == std::io::ErrorKind::PermissionDenied
                    && env::var_os("ORB8_CONFIG").is_none() =>
            {
                return Ok(Self::default());
            }
            Err(error) => return Err(anyhow!("reading the contexts in {}: {error}", path.display())),
        };
        Self::parse(&text, &path)
    }

    fn parse(text: &str, path: &Path) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| {
            let told = error.to_string();
            Usage(format!(
                "the contexts in {} make no sense: {}",
                path.display(),
                told.trim()
            ))
            .into()
        })
    }

    /// The current context, if any.
    ///
    /// # Errors
    /// If there is no context of its name: asking somebody else instead would be a surprise.
    pub(crate) fn current(&self) -> Result<Option<&Saved>, Usage> {
        let Some(name) = &self.current else {
            return Ok(None);
        };
        self.contexts.get(name).map(Some).ok_or_else(|| {
            Usage(format!(
                "the current context is {name}, and none of this name is saved: `orb8 config use-context NAME`"
            ))
        })
    }

    /// Writes the file, for its owner's eyes alone. Nobody sees it half written.
    ///
    /// # Errors
    /// If it can't be written: names it.
    pub(crate) fn write(&self) -> anyhow::Result<PathBuf> {
        let path = path().context("there is no home directory to keep contexts in: set ORB8_CONFIG")?;
        let failed = || format!("writing the contexts to {}", path.display());
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        fs::create_dir_all(directory).with_context(failed)?;
        let mut file = tempfile::Builder::new()
            .prefix(".orb8-config-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(directory)
            .with_context(failed)?;
        file.write_all(toml::to_string(self)?.as_bytes())
            .with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        file.persist(&path)
            .map_err(|error| error.error)
            .with_context(failed)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_nonsense_is_named() {
        let contexts = Contexts {
            current: Some("prod".into()),
            contexts: [(
                "prod".to_owned(),
                Saved {
                    server: Some("a:1".into()),
                    insecure: true,
                    ..Saved::default()
                },
            )]
            .into(),
        };
        let text = toml::to_string(&contexts).unwrap();
        let path = Path::new("/tmp/x.toml");
        assert_eq!(Contexts::parse(&text, path).unwrap(), contexts);
        assert_eq!(
            contexts.current().unwrap().unwrap().server.as_deref(),
            Some("a:1")
        );
        assert!(Contexts::default().current().unwrap().is_none());
        let error = Contexts::parse("[contexts.a]\nsrver = 'x'\n", path)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/tmp/x.toml") && error.contains("srver"),
            "{error}"
        );
    }
}
