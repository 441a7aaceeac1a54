//! Which network namespace the processes of a cgroup are in.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Compares cgroups' network namespaces with the agent's own.
#[derive(Debug)]
pub(super) struct CgroupNetns {
    proc_root: PathBuf,
    own: Option<PathBuf>,
    wanted: bool,
}

impl CgroupNetns {
    pub(super) fn new(proc_root: &Path, wanted: bool) -> Self {
        Self {
            own: fs::read_link(proc_root.join("self/ns/net")).ok(),
            proc_root: proc_root.to_owned(),
            wanted,
        }
    }

    pub(super) const fn wanted(&self) -> bool {
        self.wanted
    }

    /// Whether the first process of the cgroup that can be asked is in another namespace; `None` if none can.
    pub(super) fn is_other(&self, cgroup: &Path) -> Option<bool> {
        let own = self.own.as_ref()?;
        let processes = fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
        processes
            .lines()
            .take(16)
            .find_map(|pid| fs::read_link(self.proc_root.join(pid).join("ns/net")).ok())
            .map(|netns| netns != *own)
    }
}
