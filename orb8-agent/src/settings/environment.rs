//! Settings from environment variables.
use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
};

use super::{DEFINITIONS, FILE_VARIABLE, SettingsError, error::Names, nearest};

const PREFIX: &str = "ORB8_";

/// Variables of orb8 that are no settings of the agent: the command line's, and the tests'.
const OTHER_VARIABLES: &[&str] = &[FILE_VARIABLE, "ORB8_AGENT", "ORB8_REQUIRE_KERNEL"];

/// An environment; tests bring their own.
pub trait Environment {
    /// Value of a variable.
    fn get(&self, name: &str) -> Option<OsString>;
    /// Names of all variables.
    fn names(&self) -> Vec<OsString>;
}

/// The environment of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<OsString> {
        env::var_os(name)
    }

    fn names(&self) -> Vec<OsString> {
        env::vars_os().map(|(name, _)| name).collect()
    }
}

impl Environment for BTreeMap<OsString, OsString> {
    fn get(&self, name: &str) -> Option<OsString> {
        BTreeMap::get(self, OsStr::new(name)).cloned()
    }

    fn names(&self) -> Vec<OsString> {
        self.keys().cloned().collect()
    }
}

/// Values of the settings that the environment sets, by place in [`DEFINITIONS`].
pub(super) fn values(environment: &impl Environment) -> Result<Vec<(usize, String)>, SettingsError> {
    let mut values = Vec::new();
    for (index, definition) in DEFINITIONS.iter().enumerate() {
        let variable = definition.names().variable();
        let Some(value) = environment.get(&variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        let text = value
            .into_string()
            .map_err(|_| SettingsError::NotText(variable))?;
        values.push((index, text));
    }
    Ok(values)
}

/// Whether Kubernetes made this value (it describes every Service of the namespace in the environment).
pub(super) fn is_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
}

/// One sentence for each variable that looks like a setting and is none.
pub(super) fn warnings(environment: &impl Environment) -> Vec<String> {
    let mut names: Vec<String> = environment
        .names()
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| is_unknown(name, environment))
        .collect();
    names.sort_unstable();
    names
        .into_iter()
        .map(|name| {
            let key = name[PREFIX.len()..].to_ascii_lowercase();
            let hint = nearest(&key)
                .map(|key| format!(" (did you mean {}?)", Names { key }.variable()))
                .unwrap_or_default();
            format!("{} is no setting and is ignored{hint}", name.escape_debug())
        })
        .collect()
}

fn is_unknown(name: &str, environment: &impl Environment) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let of_a_service = rest.contains("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.starts_with("SERVICE_")
        || rest.contains("PORT_")
            && ["_TCP", "_UDP", "_SCTP"]
                .iter()
                .any(|protocol| rest.contains(protocol))
        || environment
            .get(name)
            .is_some_and(|value| value.to_str().is_some_and(is_service_link));
    !of_a_service
        && !OTHER_VARIABLES.contains(&name)
        && !DEFINITIONS
            .iter()
            .any(|definition| definition.names().variable() == name)
}
