//! Baselines over the agent's end: one file, replaced as a whole.
//!
//! The file is JSON with a format, a version and the machine's ABI. One that is of another version or machine, or that is
//! damaged, is moved aside and the agent starts to learn anew: a wrong baseline is worse than none.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Baseline, CallHistory, History};
use crate::syscalls::{
    call::{Abi, Call},
    workload::Workload,
};

/// Name of the file in the state directory.
pub const FILE: &str = "syscall-baseline.json";
const FORMAT: &str = "orb8 syscall baseline";
const VERSION: u32 = 1;
/// A larger file is none of ours: 131,072 calls of 4096 workloads take some 20 MB.
const MAX_BYTES: u64 = 64 << 20;
/// Bytes of the names of a workload: two file names and a path, with room.
const MAX_NAME: usize = 8192;

/// Why a file could not be used, or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is in it.
    #[error("{} is not a baseline that this agent can use ({reason})", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: String,
    version: u32,
    abi: String,
    workloads: Vec<SavedWorkload>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedWorkload {
    workload: Workload,
    watched_s: f64,
    weight_s: f64,
    last_ns: u64,
    calls: Vec<SavedCall>,
}

/// ABI, number, first time, since, rates, squares, highest, lowest; as [`CallHistory`] has them.
type SavedCall = (String, u16, u64, f64, f64, f64, f64, f64);

impl Baseline {
    /// What is to be saved, as text. Cost: linear in the calls; some 100 bytes each.
    #[must_use]
    pub fn to_saved(&self) -> String {
        let saved = Saved {
            format: FORMAT.to_owned(),
            version: VERSION,
            abi: Abi::native().name().to_owned(),
            workloads: self
                .workloads
                .iter()
                .map(|(workload, history)| SavedWorkload {
                    workload: workload.clone(),
                    watched_s: history.watched,
                    weight_s: history.weight,
                    last_ns: history.last_ns,
                    calls: history
                        .calls
                        .iter()
                        .map(|(call, it)| {
                            (
                                call.abi.name().to_owned(),
                                call.number,
                                it.first_ns,
                                it.since,
                                it.rates,
                                it.squares,
                                it.highest,
                                it.lowest,
                            )
                        })
                        .collect(),
                })
                .collect(),
        };
        // Numbers that JSON has no words for do not come about.
        serde_json::to_string(&saved).unwrap_or_default()
    }

    /// Takes in what an agent has saved in `directory`; how many workloads. Nothing, if it has saved nothing.
    ///
    /// # Errors
    /// If the file is none that can be used: it has been moved aside then, and nothing was taken in.
    pub fn load(&mut self, directory: &Path) -> Result<usize, StateError> {
        let path = directory.join(FILE);
        let text = match read(&path) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(0),
            Err(source) => {
                return Err(StateError::File {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        match parse(&text) {
            Ok(workloads) => {
                for (workload, history) in workloads {
                    self.restore(workload, history);
                }
                Ok(self.workloads.len())
            }
            Err(reason) => {
                let aside = path.with_extension("json.unusable");
                let reason = match fs::rename(&path, &aside) {
                    Ok(()) => format!("{reason}; it is kept as {}", aside.display()),
                    Err(error) => format!("{reason}; it cannot be moved aside: {error}"),
                };
                Err(StateError::Foreign { path, reason })
            }
        }
    }
}

/// `None`: there is no such file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Not one that waits to be opened, or never ends.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    Ok(Some(text))
}

fn parse(text: &[u8]) -> Result<BTreeMap<Workload, History>, String> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
        abi: String,
    }
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let head: Head = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if head.format != FORMAT || head.version != VERSION {
        return Err(format!(
            "it is `{}` of version {}, and this agent writes `{FORMAT}` of version {VERSION}",
            head.format.escape_debug(),
            head.version
        ));
    }
    if head.abi != Abi::native().name() {
        return Err(format!("it is of an {} machine", head.abi.escape_debug()));
    }
    let saved: Saved = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let mut workloads = BTreeMap::new();
    for one in saved.workloads {
        let sane = |value: f64| value.is_finite() && value >= 0.0;
        let times = [one.watched_s, one.weight_s];
        // More than all time that can have been watched: 100 years.
        if !times.into_iter().all(sane) || one.watched_s > 3.2e9 || one.workload.len() > MAX_NAME {
            return Err(format!(
                "what it says of {} makes no sense",
                one.workload.to_string().escape_debug()
            ));
        }
        let mut calls = BTreeMap::new();
        for (abi, number, first_ns, since, rates, squares, highest, lowest) in one.calls {
            let abi = Abi::HERE.iter().find(|known| known.name() == abi);
            let call = abi
                .map(|&abi| Call { abi, number })
                .filter(|call| call.has_number());
            let numbers = [since, rates, squares, highest, lowest];
            let Some(call) = call.filter(|_| numbers.into_iter().all(sane)) else {
                return Err(format!(
                    "what it says of a call of {} makes no sense",
                    one.workload.to_string().escape_debug()
                ));
            };
            let known = CallHistory {
                first_ns,
                since,
                rates,
                squares,
                highest,
                lowest,
                ..CallHistory::default()
            };
            calls.insert(call, known);
        }
        let history = History {
            calls,
            watched: one.watched_s,
            weight: one.weight_s,
            last_ns: one.last_ns,
            active: false,
        };
        workloads.insert(one.workload, history);
    }
    Ok(workloads)
}

/// Replaces the file in `directory`, which is made if need be: at every moment there is the old one or the new one.
///
/// # Errors
/// If a file cannot be written, flushed or renamed; the old one stays.
pub fn save(directory: &Path, text: &str) -> Result<(), StateError> {
    let path = directory.join(FILE);
    let fresh = directory.join(format!("{FILE}.new"));
    let error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StateError::File { action, path, source }
    };
    fs::create_dir_all(directory).map_err(error("make", directory))?;
    // What an agent that was killed has left; or somebody's link to elsewhere.
    match fs::remove_file(&fresh) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(error("remove", &fresh)(cause)),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(error("make", &fresh))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(error("write", &fresh))?;
    fs::rename(&fresh, &path).map_err(error("replace", &path))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(error("flush", directory))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::syscalls::baseline::{BaselineLimits, Change};

    const SECOND: u64 = 1_000_000_000;

    fn workload() -> Workload {
        Workload {
            namespace: "shop".to_owned(),
            workload: "Deployment/cart".to_owned(),
            ..Workload::default()
        }
    }

    fn call(name: &str) -> Call {
        Call::parse(name).unwrap()[0]
    }

    fn fresh() -> Baseline {
        Baseline::new(BaselineLimits::default(), 0)
    }

    fn learn(baseline: &mut Baseline, from: u64, seconds: u64) {
        for second in from + 1..=from + seconds {
            let calls = [(call("read"), 100), (call("i386:openat"), 1)];
            baseline.add(&workload(), &calls, second * SECOND);
            assert!(baseline.end_interval(second * SECOND).is_empty());
        }
    }

    #[test]
    fn what_was_learned_outlives_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("made/for/it");
        let mut before = fresh();
        learn(&mut before, 0, 3600);
        save(&state, &before.to_saved()).unwrap();
        save(&state, &before.to_saved()).unwrap();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);

        let later = 10_000;
        let mut after = Baseline::new(BaselineLimits::default(), later * SECOND);
        assert_eq!(after.load(&state).unwrap(), 1);
        assert_eq!(after.watched(&workload()), before.watched(&workload()));
        assert_eq!(after.to_saved(), before.to_saved());
        // The restart is no anomaly, and what is known is not new.
        learn(&mut after, later, 600);
        let at = (later + 601) * SECOND;
        after.add(&workload(), &[(call("read"), 100), (call("ptrace"), 1)], at);
        let found = after.end_interval(at);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].change, found[0].call), (Change::New, call("ptrace")));
        assert_eq!(found[0].watched.as_secs(), 4200);
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        assert_eq!(fresh().load(directory.path()).unwrap(), 0);
        let mut good = fresh();
        learn(&mut good, 0, 100);
        let good = good.to_saved();
        let cases = [
            String::new(),
            "{}".to_owned(),
            good[..good.len() / 2].to_owned(),
            good.replace("\"version\":1", "\"version\":2"),
            good.replace(FORMAT, "another format"),
            good.replace("\"abi\":\"x86_64\"", "\"abi\":\"vax\""),
            good.replace("\"watched_s\":", "\"watched_s\":-"),
            good.replace("\"watched_s\":", "\"watched_s\":1e300,\"x\":"),
            good.replace("[\"i386\"", "[\"i387\""),
        ];
        for text in cases {
            fs::write(&path, &text).unwrap();
            let mut baseline = fresh();
            let error = baseline.load(directory.path()).unwrap_err().to_string();
            assert!(
                error.contains("it is kept as") && error.contains(FILE),
                "{text}: {error}"
            );
            assert!(!path.exists() && baseline.warm().0 == 0);
        }
        // Nor is a directory, or a link.
        fs::create_dir(&path).unwrap();
        assert!(fresh().load(directory.path()).is_err());
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(fresh().load(directory.path()).is_err());
        assert!(save(Path::new("/proc/none"), "").is_err());
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(at in 0usize..1000, byte: u8, cut in 0usize..1000) {
            let mut baseline = fresh();
            learn(&mut baseline, 0, 30);
            let mut text = baseline.to_saved().into_bytes();
            let len = text.len();
            text[at % len] = byte;
            text.truncate(len - cut % len.min(10));
            if let Ok(workloads) = parse(&text) {
                for history in workloads.values() {
                    prop_assert!(history.watched.is_finite());
                }
            }
        }
    }
}
