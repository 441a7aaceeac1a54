//! The tree of cgroups: from a cgroup's id, which is what eBPF programs see, to its path.
//!
//! The id of a cgroup is the inode of its directory on cgroup2 (`cgroup_id()` is `kernfs_node.id`, which is what
//! `stat` shows on 64-bit kernels). A thread keeps the tree by inotify, so that a container which is gone before
//! anyone asks still has a name.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    mem::size_of,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::{IdentityError, Limit, cgroup::CgroupName};

/// Type of a file handle whose 8 bytes are the inode (`FILEID_KERNFS`, include/linux/exportfs.h; kernel ≥ 5.5).
const FILEID_KERNFS: libc::c_int = 0xfe;
/// Inode of the root of any cgroup hierarchy (`kernfs_create_root`, fs/kernfs/dir.c).
const ROOT_INODE: u64 = 1;
/// Directories nested deeper than this are not read (the kernel's own bound is far higher, but a path is not).
const MAX_DEPTH: usize = 64;
/// Between two looks of the thread at what can be forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// The mount point of the cgroup2 hierarchy, pure or hybrid, from `proc_root/self/mountinfo`.
///
/// Of several mounts the one that shows the hierarchy from its root is taken: in a container that is not its own, but the
/// one that it was given of the host's.
///
/// # Errors
/// If the file cannot be read, or no cgroup2 file system is mounted.
pub fn mount_point(proc_root: &Path) -> Result<PathBuf, IdentityError> {
    let mountinfo = proc_root.join("self/mountinfo");
    let text = fs::read(&mountinfo).map_err(|source| IdentityError::File {
        action: "read",
        path: mountinfo.clone(),
        source,
    })?;
    let mounts = find_mounts(&String::from_utf8_lossy(&text));
    let whole = mounts
        .iter()
        .find(|mount| fs::metadata(mount).is_ok_and(|directory| directory.ino() == ROOT_INODE));
    whole
        .or(mounts.first())
        .cloned()
        .ok_or(IdentityError::NoCgroup2 { mountinfo })
}

/// Mount points of cgroup2, those first that show the hierarchy from the root of the caller's cgroup namespace.
///
/// Lines are `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAG…] - TYPE SOURCE OPTIONS` (proc(5)).
fn find_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then_some(())?;
        let mut fields = before.split(' ').skip(3);
        Some((fields.next()?, fields.next()?))
    });
    let mut mounts: Vec<_> = mounts.collect();
    // `false` sorts before `true`; equals stay in order.
    mounts.sort_by_key(|(root, _)| *root != "/");
    mounts
        .into_iter()
        .map(|(_, mount)| PathBuf::from(unescape(mount)))
        .collect()
}

/// Undoes mountinfo's `\040` for space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4);
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                text.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                text.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    text.push_str(rest);
    text
}

/// Bounds of a [`Cgroups`].
#[derive(Clone, Copy, Debug)]
pub struct CgroupLimits {
    /// Cgroups whose names are kept, removed ones included.
    pub cgroups: usize,
    /// inotify watches, one a directory. What has no watch is still found by its id while it exists.
    pub watches: usize,
    /// How long the name of a removed cgroup is kept.
    pub retention: Duration,
}

/// Paths of cgroups by their ids. See the module's documentation.
#[derive(Debug)]
pub struct Cgroups {
    shared: Arc<Shared>,
    /// Ends the thread when dropped.
    _stop: UnixStream,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Inode of the root directory.
    root_id: u64,
    root_fd: File,
    limits: CgroupLimits,
    /// Whether the kernel lets us open a cgroup by its id.
    by_handle: bool,
    tree: Mutex<Tree>,
    /// Woken when there are newcomers.
    arrival: Arc<Notify>,
}

#[derive(Debug)]
struct Entry {
    path: Arc<str>,
    removed: Option<Instant>,
}

#[derive(Debug, Default)]
struct Tree {
    entries: HashMap<u64, Entry>,
    ids: HashMap<Arc<str>, u64>,
    watches: HashMap<WatchDescriptor, Arc<str>>,
    /// Containers' cgroups that came since they were last taken.
    newcomers: Vec<Arc<str>>,
    names_turned_away: u64,
    watches_turned_away: u64,
    generation: u64,
}

/// Newcomers that wait to be met. More are found by the next look at all processes.
const MAX_NEWCOMERS: usize = 1024;

impl Cgroups {
    /// Reads the hierarchy at `root` and starts to follow it. Costs about 50 µs a cgroup; where cgroups can be opened
    /// by id, the thread does that while the caller goes on.
    ///
    /// # Errors
    /// If `root` is not on cgroup2 or cannot be read, or no thread can be started. Without inotify (its instances
    /// are limited per user) the tree is followed by looking again, and a warning is logged.
    pub fn open(root: &Path, limits: CgroupLimits) -> Result<Self, IdentityError> {
        let file_error = |action| {
            move |source| IdentityError::File {
                action,
                path: root.to_owned(),
                source,
            }
        };
        let root_fd = File::open(root).map_err(file_error("open"))?;
        if !on_cgroup2(&root_fd) {
            return Err(IdentityError::NotCgroup2 {
                path: root.to_owned(),
            });
        }
        let root_id = root_fd.metadata().map_err(file_error("stat"))?.ino();
        let mut shared = Shared {
            // What /proc/self/fd shows is the real path.
            root: fs::canonicalize(root).map_err(file_error("resolve"))?,
            root_id,
            root_fd,
            limits,
            by_handle: false,
            tree: Mutex::default(),
            arrival: Arc::new(Notify::new()),
        };
        shared.by_handle = shared.open_by_id(root_id).is_ok_and(|path| path == "/");
        let shared = Arc::new(shared);
        let (stop, stopped) = UnixStream::pair().map_err(|source| IdentityError::Thread {
            action: "watches cgroups",
            source,
        })?;
        let inotify = Inotify::init()
            .inspect_err(|error| {
                warn!(
                    "cannot watch cgroups: {error}; short-lived ones may stay unnamed (raise \
                     fs.inotify.max_user_instances)"
                );
            })
            .ok();
        let mut watcher = Watcher {
            shared: shared.clone(),
            inotify,
        };
        if !shared.by_handle {
            watcher.rescan();
        }
        thread::Builder::new()
            .name("orb8-cgroups".to_owned())
            .spawn(move || watcher.run(&stopped))
            .map_err(|source| IdentityError::Thread {
                action: "watches cgroups",
                source,
            })?;
        Ok(Self { shared, _stop: stop })
    }

    /// Mount point.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// Id of the root cgroup.
    #[must_use]
    pub fn root_id(&self) -> u64 {
        self.shared.root_id
    }

    /// Path of a cgroup below the mount, with a leading slash; also of one removed not long ago. `None` if no such
    /// cgroup is known, which can change within milliseconds of its creation. A look-up if known, otherwise two
    /// system calls.
    #[must_use]
    pub fn path(&self, id: u64) -> Option<Arc<str>> {
        if id == self.shared.root_id {
            return Some(Arc::from("/"));
        }
        if let Some(entry) = self.shared.tree().entries.get(&id) {
            return Some(entry.path.clone());
        }
        if !self.shared.by_handle {
            return None;
        }
        let path: Arc<str> = Arc::from(self.shared.open_by_id(id).ok()?);
        let limits = self.shared.limits;
        self.shared.tree().insert(id, path.clone(), &limits);
        Some(path)
    }

    /// Whether a cgroup is known to have been removed, or cannot be found any more. A look-up if it is known, otherwise two
    /// system calls.
    #[must_use]
    pub fn is_gone(&self, id: u64) -> bool {
        if id == self.shared.root_id {
            return false;
        }
        if let Some(entry) = self.shared.tree().entries.get(&id) {
            return entry.removed.is_some();
        }
        self.shared.by_handle
            && self.shared.open_by_id(id).is_err_and(|error| {
                // Not one that could not be opened for another reason, such as too many open files.
                matches!(error.raw_os_error(), Some(libc::ESTALE | libc::ENOENT))
            })
    }

    /// Woken whenever a container's cgroup has come.
    #[must_use]
    pub fn arrival(&self) -> Arc<Notify> {
        self.shared.arrival.clone()
    }

    /// Cgroups of containers that came since the last call.
    pub(crate) fn take_newcomers(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.shared.tree().newcomers)
    }

    /// The cgroup whose path `matches`, and its id; also one removed not long ago, where there is no other. Cost: a look
    /// at all paths.
    #[must_use]
    pub fn find(&self, mut matches: impl FnMut(&str) -> bool) -> Option<(u64, Arc<str>)> {
        let tree = self.shared.tree();
        let found = tree
            .entries
            .iter()
            .filter(|(_, entry)| matches(&entry.path))
            // A container may have cgroups below its own.
            .min_by_key(|(_, entry)| (entry.removed.is_some(), entry.path.len()));
        found.map(|(&id, entry)| (id, entry.path.clone()))
    }

    /// Changes whenever a cgroup comes or goes.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.tree().generation
    }

    /// Whether cgroups can be opened by their id (kernel ≥ 5.5 and `CAP_DAC_READ_SEARCH`).
    #[must_use]
    pub fn by_handle(&self) -> bool {
        self.shared.by_handle
    }

    /// Use of the bounds.
    #[must_use]
    pub fn limits(&self) -> [Limit; 2] {
        let tree = self.shared.tree();
        [
            Limit {
                name: "cgroup_names",
                used: tree.entries.len(),
                max: self.shared.limits.cgroups,
                turned_away: tree.names_turned_away,
            },
            Limit {
                name: "cgroup_watches",
                used: tree.watches.len(),
                max: self.shared.limits.watches,
                turned_away: tree.watches_turned_away,
            },
        ]
    }
}

fn on_cgroup2(directory: &File) -> bool {
    nix::sys::statfs::fstatfs(directory)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
}

impl Shared {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        // Nothing panics while it holds the lock; and if it did, names are no reason to stop.
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_by_id(&self, id: u64) -> io::Result<String> {
        #[repr(C)]
        struct Handle {
            header: libc::file_handle,
            id: [u8; 8],
        }
        let mut handle = Handle {
            header: libc::file_handle {
                handle_bytes: size_of::<u64>() as libc::c_uint,
                handle_type: FILEID_KERNFS,
                f_handle: [],
            },
            id: id.to_ne_bytes(),
        };
        // SAFETY: the header is followed by the 8 bytes that it announces.
        let fd = unsafe {
            libc::open_by_handle_at(
                self.root_fd.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        let text = link.to_string_lossy();
        let text = text.strip_suffix(" (deleted)").unwrap_or(&text);
        let below = Path::new(text)
            .strip_prefix(&self.root)
            .map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(format!("/{}", below.display()))
    }
}

impl Tree {
    /// Whether there was room.
    fn insert(&mut self, id: u64, path: Arc<str>, limits: &CgroupLimits) -> bool {
        if let Some(entry) = self.entries.get_mut(&id) {
            if entry.removed.take().is_some() {
                self.ids.insert(entry.path.clone(), id);
            }
            return true;
        }
        if self.entries.len() >= limits.cgroups {
            self.forget(Duration::ZERO);
        }
        if self.entries.len() >= limits.cgroups {
            self.names_turned_away += 1;
            return false;
        }
        self.generation += 1;
        if self.newcomers.len() < MAX_NEWCOMERS && CgroupName::parse(&path).container.is_some() {
            self.newcomers.push(path.clone());
        }
        self.ids.insert(path.clone(), id);
        self.entries.insert(id, Entry { path, removed: None });
        true
    }

    fn removed(&mut self, path: &str) {
        if let Some(entry) = self.ids.remove(path).and_then(|id| self.entries.get_mut(&id)) {
            entry.removed = Some(Instant::now());
            self.generation += 1;
        }
    }

    /// Drops what was removed longer ago than `retention`.
    fn forget(&mut self, retention: Duration) {
        self.entries
            .retain(|_, entry| entry.removed.is_none_or(|removed| removed.elapsed() < retention));
    }
}

struct Watcher {
    shared: Arc<Shared>,
    inotify: Option<Inotify>,
}

impl Watcher {
    fn run(mut self, stopped: &UnixStream) {
        if self.shared.by_handle {
            self.rescan();
        }
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut fds = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
            let inotify: Option<BorrowedFd<'_>> = self.inotify.as_ref().map(AsFd::as_fd);
            fds.extend(inotify.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            let timeout = PollTimeout::try_from(HOUSEKEEPING).unwrap_or(PollTimeout::MAX);
            let ready = match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => continue,
                Err(_) => return,
                Ok(ready) => ready,
            };
            if fds[0].any().unwrap_or(true) {
                return;
            }
            if ready == 0 {
                let retention = self.shared.limits.retention;
                self.shared.tree().forget(retention);
                if self.inotify.is_none() {
                    self.rescan();
                }
                continue;
            }
            self.events(&mut buffer);
        }
    }

    fn events(&mut self, buffer: &mut [u8]) {
        let Some(inotify) = &mut self.inotify else {
            return;
        };
        let events: Vec<_> = match inotify.read_events(buffer) {
            Ok(events) => events.map(|event| event.to_owned()).collect(),
            Err(error) => {
                debug!("reading cgroup events: {error}");
                return;
            }
        };
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                self.rescan();
                continue;
            }
            if event.mask.contains(EventMask::IGNORED) {
                self.shared.tree().watches.remove(&event.wd);
                continue;
            }
            let (Some(name), true) = (&event.name, event.mask.contains(EventMask::ISDIR)) else {
                continue;
            };
            let Some(parent) = self.shared.tree().watches.get(&event.wd).cloned() else {
                continue;
            };
            let path = child(&parent, &name.to_string_lossy());
            if event.mask.contains(EventMask::CREATE) {
                self.scan(&path, &mut |_| ());
                if !self.shared.tree().newcomers.is_empty() {
                    self.shared.arrival.notify_one();
                }
            } else if event.mask.contains(EventMask::DELETE) {
                self.shared.tree().removed(&path);
            }
        }
    }

    /// Reads the whole tree, and marks what is no longer there as removed.
    fn rescan(&mut self) {
        let mut found = HashMap::new();
        self.scan("/", &mut |path| {
            found.insert(path.clone(), ());
        });
        let mut tree = self.shared.tree();
        let gone: Vec<_> = tree
            .ids
            .keys()
            .filter(|path| !found.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            // Between the scan and here others can have been made and found by their id: look before forgetting.
            if !self.shared.root.join(path.trim_start_matches('/')).exists() {
                tree.removed(&path);
            }
        }
    }

    /// Reads one directory and all below it. A watch is set before the directory is read, so that nothing which is
    /// made in between is missed.
    fn scan(&mut self, start: &str, found: &mut dyn FnMut(&Arc<str>)) {
        let mut pending = vec![(Arc::<str>::from(start), 0)];
        while let Some((path, depth)) = pending.pop() {
            let directory = self.shared.root.join(path.trim_start_matches('/'));
            let Ok(metadata) = fs::symlink_metadata(&directory) else {
                continue;
            };
            let id = metadata.ino();
            if id != self.shared.root_id {
                let mut tree = self.shared.tree();
                // Removed and made again under the same name before its events were read.
                if tree.ids.get(&path).is_some_and(|&old| old != id) {
                    tree.removed(&path);
                }
                if !tree.insert(id, path.clone(), &self.shared.limits) {
                    continue;
                }
            }
            found(&path);
            self.watch(&directory, &path);
            if depth >= MAX_DEPTH {
                continue;
            }
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let path = child(&path, &entry.file_name().to_string_lossy());
                    pending.push((Arc::from(path), depth + 1));
                }
            }
        }
    }

    fn watch(&self, directory: &Path, path: &Arc<str>) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        let known = self.shared.tree().watches.len();
        if known >= self.shared.limits.watches {
            self.shared.tree().watches_turned_away += 1;
            return;
        }
        // Adding a watch for a directory that has one returns the one it has.
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR | WatchMask::DONT_FOLLOW;
        let result = inotify.watches().add(directory, mask);
        let mut tree = self.shared.tree();
        match result {
            Ok(watch) => {
                tree.watches.insert(watch, path.clone());
            }
            // Gone already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                if tree.watches_turned_away == 0 {
                    warn!(
                        "cannot watch cgroup {path}: {error}; short-lived cgroups below it may stay unnamed (raise \
                         fs.inotify.max_user_watches)"
                    );
                }
                tree.watches_turned_away += 1;
            }
        }
    }
}

fn child(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_the_mount() {
        let hybrid = "22 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      23 22 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      24 22 0:22 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mounts(hybrid), [Path::new("/sys/fs/cgroup/unified")]);
        let pure = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_mounts(pure)[0], Path::new("/sys/fs/cgroup"));
        let bind = "30 1 0:26 /system.slice /run/a rw - cgroup2 c rw\n31 1 0:26 / /run/my\\040cgroups rw - cgroup2 c rw\n";
        assert_eq!(find_mounts(bind)[0], Path::new("/run/my cgroups"));
        assert!(find_mounts("30 1 0:26 / /a rw - tmpfs cgroup2 rw").is_empty());
    }

    #[test]
    fn a_full_tree_counts_and_forgets_removed_first() {
        let limits = CgroupLimits {
            cgroups: 2,
            watches: 1,
            retention: Duration::from_secs(60),
        };
        let mut tree = Tree::default();
        assert!(tree.insert(1, "/a".into(), &limits));
        assert!(tree.insert(2, "/b".into(), &limits));
        assert!(!tree.insert(3, "/c".into(), &limits));
        assert_eq!(tree.names_turned_away, 1);
        tree.removed("/a");
        assert!(tree.entries.contains_key(&1), "the name outlives the cgroup");
        assert!(tree.insert(3, "/c".into(), &limits));
        assert!(!tree.entries.contains_key(&1));
        assert_eq!(tree.ids.len(), 2);
    }

    proptest! {
        #[test]
        fn any_mountinfo(text in "(.{0,60}\n){0,4}", field in ".{0,40}") {
            find_mounts(&text);
            prop_assert!(unescape(&field).len() <= field.len());
        }
    }
}
