//! Settings from the TOML file.
use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{DEFINITIONS, SettingsError, Source, nearest, position};

/// Far more than all settings need; a wrong file (a device, a log) is refused instead of read into memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The file and what it sets, by place in [`DEFINITIONS`]; `None` if no file is named and the default one does
/// not exist. A named file has to exist.
#[allow(
    clippy::type_complexity,
    reason = "a file and its values, taken apart at once by the one caller"
)]
pub(super) fn read(
    named: Option<&Path>,
    default_file: &Path,
) -> Result<Option<(PathBuf, Vec<(usize, String)>)>, SettingsError> {
    let path = named.unwrap_or(default_file);
    let text = match read_text(path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(SettingsError::Unreadable {
                path: path.to_owned(),
                error,
            });
        }
    };
    let table: Table = text.parse().map_err(|error| SettingsError::Syntax {
        path: path.to_owned(),
        error: Box::new(error),
    })?;
    let mut values = Vec::with_capacity(table.len());
    for (key, value) in table {
        let Some(index) = position(&key) else {
            let nearest = nearest(&key.to_ascii_lowercase().replace('-', "_"));
            return Err(SettingsError::UnknownKey {
                path: path.to_owned(),
                key,
                nearest,
            });
        };
        let text = as_text(&value, DEFINITIONS[index].list).ok_or_else(|| SettingsError::Value {
            names: DEFINITIONS[index].names(),
            source_kind: Source::File,
            file: Some(path.to_owned()),
            value: value.to_string(),
            reason: format!("a TOML {} cannot be its value", value.type_str()),
            allowed: (DEFINITIONS[index].allowed)(),
        })?;
        values.push((index, text));
    }
    Ok(Some((path.to_owned(), values)))
}

fn read_text(path: &Path) -> io::Result<String> {
    let metadata = path.metadata()?;
    // Opening a FIFO would block the start for ever.
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    let mut text = String::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 1 MiB",
        ));
    }
    Ok(text)
}

/// The value as it would be written in a flag.
fn as_text(value: &Value, list: bool) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(on) => Some(if *on { "on" } else { "off" }.to_owned()),
        Value::Array(items) if list => {
            let items = items.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?;
            Some(items.join(","))
        }
        _ => None,
    }
}
