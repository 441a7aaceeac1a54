//! What can be wrong with settings.
use std::{borrow::Cow, fmt, io, path::PathBuf};

use super::{FILE_VARIABLE, Source};

/// The three names of a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Names {
    pub(super) key: &'static str,
}

impl Names {
    /// Key in the file, `grpc_port`.
    #[must_use]
    pub const fn key(self) -> &'static str {
        self.key
    }

    /// Flag without its dashes, `grpc-port`.
    #[must_use]
    pub fn flag(self) -> String {
        self.key.replace('_', "-")
    }

    /// Environment variable, `ORB8_GRPC_PORT`.
    #[must_use]
    pub fn variable(self) -> String {
        format!("ORB8_{}", self.key.to_ascii_uppercase())
    }

    /// The name that someone who set it there used first, then the others.
    fn as_used_in(self, source: Source) -> (String, String) {
        let flag = format!("--{}", self.flag());
        let variable = self.variable();
        let key = format!("`{}` in a file", self.key);
        match source {
            Source::Flag | Source::Default => (flag, format!("{variable}, {key}")),
            Source::Environment => (variable, format!("{flag}, {key}")),
            Source::File => (self.key.to_owned(), format!("{flag}, {variable}")),
        }
    }
}

/// Why the settings can't be used. Each message names the setting, its value and what is allowed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A value that does not parse or is out of range.
    #[error("{}", ValueMessage { names: *names, source: *source_kind, file, value, reason, allowed })]
    Value {
        /// The setting.
        names: Names,
        /// Where the value was given.
        source_kind: Source,
        /// The file, if it was given there.
        file: Option<PathBuf>,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: String,
        /// What the setting takes.
        allowed: String,
    },
    /// Two values that do not go together.
    #[error("{0}")]
    Conflict(String),
    /// A variable whose value is not text.
    #[error("{0} is not valid UTF-8: set it to text, or unset it")]
    NotText(String),
    /// The file can't be read.
    #[error("can't read the configuration file {}: {error} (it is named by --config or {FILE_VARIABLE})", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        error: Box<toml::de::Error>,
    },
    /// A key that is no setting.
    #[error(
        "{}: there is no setting `{key}`{}; `orb8-agent --help` lists them",
        path.display(),
        nearest.map(|nearest| format!(" (did you mean `{nearest}`?)")).unwrap_or_default()
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// A setting of a similar name.
        nearest: Option<&'static str>,
    },
    /// The command line: a wrong flag, or a request for help or the version.
    #[error("{0}")]
    Arguments(#[from] clap::Error),
}

/// An address without the user in it, who may have a password; any other text as it is.
fn without_user(value: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = value.split_once("://") else {
        return Cow::Borrowed(value);
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rfind('@') {
        Some(at) => Cow::Owned(format!("{scheme}://…{}", &rest[at..])),
        None => Cow::Borrowed(value),
    }
}

struct ValueMessage<'a> {
    names: Names,
    source: Source,
    file: &'a Option<PathBuf>,
    value: &'a str,
    reason: &'a str,
    allowed: &'a str,
}

impl fmt::Display for ValueMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, others) = self.names.as_used_in(self.source);
        if let Some(file) = self.file {
            write!(f, "{}: ", file.display())?;
        }
        write!(
            f,
            "{used} is \"{}\": {}; allowed: {} (also settable as {others})",
            without_user(self.value).escape_debug(),
            self.reason,
            self.allowed
        )?;
        // Kubernetes' service links: a Service named orb8-grpc gives ORB8_GRPC_PORT=tcp://10.96.0.7:9090.
        if self.source == Source::Environment && super::environment::is_service_link(self.value) {
            f.write_str(
                "; this value is a Kubernetes service link: set `enableServiceLinks: false` in the pod, or \
                 rename the Service",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_repeated() {
        for (value, shown) in [
            (
                "http://user:secret@host:9400/metrics",
                "http://…@host:9400/metrics",
            ),
            ("http://a:b@c@host", "http://…@host"),
            ("http://host/metrics?at=a@b", "http://host/metrics?at=a@b"),
            ("tcp://10.96.0.7:9090", "tcp://10.96.0.7:9090"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(without_user(value), shown);
        }
    }
}
