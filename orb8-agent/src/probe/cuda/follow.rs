//! Finds the libraries that processes have mapped.
//!
//! Invariant, as of each look at all processes: every library that a process has mapped is attached to once, or there is a
//! reason why not; none is attached to that no process has mapped.
//!
//! A process loads libraries when it starts, or later: one that has executed a program is looked at several times, at
//! growing distances. All processes are looked at when the agent starts and once a minute, which finds the rest.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use orb8_proto::v1;
use tracing::{info, warn};

use super::{
    AttachError, CudaOptions, FileStatus, Mode,
    files::{Files, Left},
    load::Loaded,
    mapping::{Identity, Mapping},
};

/// When a process is looked at, after it has executed a program.
const LOOKS: [Duration; 8] = [
    Duration::from_millis(0),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1500),
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(30),
];
/// Processes that wait for their next look. More wait for the look at all.
const WAITING: usize = 8192;
/// Different files, as processes' maps tell them apart, between two looks at all processes.
const MAPPED: usize = 4096;

/// A file as processes' maps tell it from others.
type Mapped = ((u32, u32), u64);

/// What is known of a file.
#[derive(Debug)]
enum Known {
    /// It is attached to.
    In(usize),
    /// It has none of the functions.
    Nothing,
    /// It could not be opened or attached to.
    Failed(FileStatus),
}

/// Follows processes.
#[derive(Debug)]
pub(super) struct Follower {
    proc_root: PathBuf,
    look_at_all: Duration,
    last_look: Option<Instant>,
    /// Processes by when they are looked at next, and how often they have been.
    waiting: BTreeMap<(Instant, u32), usize>,
    waits: HashMap<u32, Instant>,
    known: HashMap<Mapped, Known>,
    slots: HashMap<Identity, usize>,
    turned_away: u64,
    /// Processes' maps cannot be read; said once.
    blind: bool,
}

impl Follower {
    pub(super) fn new(options: &CudaOptions) -> Self {
        Self {
            proc_root: options.proc_root.clone(),
            look_at_all: options.look_at_all,
            last_look: None,
            waiting: BTreeMap::new(),
            waits: HashMap::new(),
            known: HashMap::new(),
            slots: HashMap::new(),
            turned_away: 0,
            blind: false,
        }
    }

    pub(super) fn follow(
        &mut self,
        now: Instant,
        loaded: &mut Loaded,
        files: &mut Files,
        mode: Mode,
    ) -> Left {
        let mut left = Left::default();
        // As many as the queue holds, however fast it is filled.
        for _ in 0..1024 {
            let Some(pid) = loaded.next_executed() else { break };
            self.schedule(pid, now, 0);
        }
        let all_is_due = self
            .last_look
            .is_none_or(|last| now.saturating_duration_since(last) >= self.look_at_all);
        if all_is_due {
            self.last_look = Some(now);
            left = self.look_at_all(loaded, files, mode);
        }
        while let Some((&(due, pid), &looks)) = self.waiting.first_key_value() {
            if due > now {
                break;
            }
            self.waiting.pop_first();
            self.waits.remove(&pid);
            if self.look(pid, loaded, files, mode).is_some() {
                self.schedule(pid, now, looks + 1);
            }
        }
        left
    }

    /// Looks at a process for the `looks`-th time later, unless that was enough.
    fn schedule(&mut self, pid: u32, now: Instant, looks: usize) {
        let Some(&wait) = LOOKS.get(looks) else { return };
        if let Some(due) = self.waits.remove(&pid) {
            self.waiting.remove(&(due, pid));
        }
        if self.waits.len() < WAITING {
            self.waits.insert(pid, now + wait);
            self.waiting.insert((now + wait, pid), looks);
        }
    }

    /// Attaches to what a process has mapped, and says which files these are; `None` if it has ended.
    fn look(&mut self, pid: u32, loaded: &mut Loaded, files: &mut Files, mode: Mode) -> Option<Vec<Mapped>> {
        let mappings = match Mapping::of_process(&self.proc_root, pid) {
            Ok(mappings) => mappings,
            Err(error) => {
                if !std::mem::replace(&mut self.blind, true) {
                    warn!(pid, %error, "libraries of some processes cannot be found: it takes CAP_SYS_PTRACE");
                }
                return None;
            }
        };
        if mappings.is_empty() && !self.proc_root.join(pid.to_string()).exists() {
            return None;
        }
        let mut mapped = Vec::new();
        for mapping in mappings {
            let key = (mapping.device, mapping.inode);
            mapped.push(key);
            if self.known.contains_key(&key) {
                continue;
            }
            if self.known.len() >= MAPPED {
                self.turned_away += 1;
                continue;
            }
            let known = self.take_in(&mapping, pid, loaded, files, mode);
            self.known.insert(key, known);
        }
        Some(mapped)
    }

    fn take_in(
        &mut self,
        mapping: &Mapping,
        pid: u32,
        loaded: &mut Loaded,
        files: &mut Files,
        mode: Mode,
    ) -> Known {
        let failed = |reason: String| {
            warn!(pid, path = %mapping.path.display(), reason, "a CUDA library is not traced");
            Known::Failed(FileStatus {
                path: mapping.path.clone(),
                state: v1::State::Failed,
                reason,
                functions: 0,
            })
        };
        let (file, identity) = match mapping.open(&self.proc_root, pid) {
            Ok(opened) => opened,
            Err(error) => return failed(format!("cannot open it: {error}")),
        };
        if let Some(&slot) = self.slots.get(&identity) {
            return Known::In(slot);
        }
        match files.attach(loaded, &file, &mapping.path, mode) {
            Ok(Some(slot)) => {
                self.slots.insert(identity, slot);
                info!(pid, path = %mapping.path.display(), functions = files.functions(slot), "a CUDA library is traced");
                Known::In(slot)
            }
            Ok(None) => Known::Nothing,
            Err(error) => {
                if matches!(error, AttachError::Full { .. }) {
                    self.turned_away += 1;
                }
                failed(error.to_string())
            }
        }
    }

    fn look_at_all(&mut self, loaded: &mut Loaded, files: &mut Files, mode: Mode) -> Left {
        let mut left = Left::default();
        let Ok(entries) = fs::read_dir(&self.proc_root) else {
            return left;
        };
        // What failed is tried again, and so is what had none of the functions: a file may be written anew, or another one
        // have its inode. That of a file that is attached to is nobody else's.
        self.known.retain(|_, known| matches!(known, Known::In(_)));
        let pids = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let mut mapped = HashSet::new();
        for pid in pids {
            mapped.extend(self.look(pid, loaded, files, mode).unwrap_or_default());
        }
        self.known.retain(|key, _| mapped.contains(key));
        let in_use: HashSet<usize> = self
            .known
            .values()
            .filter_map(|known| match known {
                Known::In(slot) => Some(*slot),
                Known::Nothing | Known::Failed(_) => None,
            })
            .collect();
        self.slots.retain(|_, slot| {
            let used = in_use.contains(slot);
            if !used && let Some(attached) = files.leave_slot(*slot) {
                info!(path = %attached.path().display(), "no process has this CUDA library any more");
                left.0.push(attached);
            }
            used
        });
        let proc_root = &self.proc_root;
        loaded.forget_holders(|tgid| proc_root.join(tgid.to_string()).exists());
        left
    }

    /// Files that could not be attached to.
    pub(super) fn failed(&self) -> impl Iterator<Item = &FileStatus> {
        self.known.values().filter_map(|known| match known {
            Known::Failed(status) => Some(status),
            Known::In(_) | Known::Nothing => None,
        })
    }

    /// Files that there was no room for.
    pub(super) const fn turned_away(&self) -> u64 {
        self.turned_away
    }
}
