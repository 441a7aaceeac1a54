//! Mounts, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf};

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where it is.
    pub path: PathBuf,
    /// Type of its file system: `cgroup2`, `tracefs`.
    pub file_system: String,
    /// Options of the file system (not of the mount), separated by commas.
    pub options: String,
}

impl Mount {
    /// The value of the option `name=value`.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options
            .split(',')
            .find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Reads mountinfo. Lines that are not as documented are left out.
#[must_use]
pub fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // 36 35 98:0 /root /where rw,noatime master:1 - type source options
    let mut fields = line.split(|&byte| byte == b' ');
    let path = fields.nth(4)?;
    fields.find(|&field| field == b"-")?;
    let file_system = fields.next()?;
    let options = fields.nth(1)?;
    Some(Mount {
        path: OsString::from_vec(unescape(path)).into(),
        file_system: String::from_utf8_lossy(file_system).into_owned(),
        options: String::from_utf8_lossy(options).into_owned(),
    })
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_with_and_without_optional_fields_are_read() {
        let mounts = parse(
            b"30 22 0:26 / /sys/fs/cgroup\\040two rw,nosuid shared:4 master:2 - cgroup2 cgroup rw,nsdelegate\n\
              22 1 0:5 / /proc rw - proc proc rw,hidepid=invisible\n\
              nonsense\n",
        );
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].path, PathBuf::from("/sys/fs/cgroup two"));
        assert_eq!(mounts[0].file_system, "cgroup2");
        assert_eq!(mounts[0].option("nsdelegate"), None);
        assert_eq!(mounts[1].option("hidepid"), Some("invisible"));
    }

    proptest! {
        #[test]
        fn hostile_text_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn escapes_are_undone(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let escaped: Vec<u8> = path
                .iter()
                .flat_map(|&byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                    _ => vec![byte],
                })
                .collect();
            prop_assert_eq!(unescape(&escaped), path);
        }
    }
}
