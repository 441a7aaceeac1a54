//! Cgroups of a test's own, and processes in them that make no call but those that the test names.

use std::{
    ffi::CString,
    fs,
    io::{self, Write as _},
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::Duration,
};

use nix::libc;

/// Whether kernel tests can run here; says why not. With `ORB8_REQUIRE_KERNEL=1` it panics instead.
pub(crate) fn can_run() -> bool {
    let why = if !nix::unistd::geteuid().is_root() {
        "needs root, to load eBPF programs and make cgroups"
    } else if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
    } else if root().is_none() {
        "cgroup2 is not mounted under /sys/fs/cgroup"
    } else {
        return true;
    };
    let required = std::env::var_os("ORB8_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    assert!(!required, "{why}");
    // Not println: the test harness would keep it to itself.
    let _ = writeln!(io::stderr(), "skipped: {why}");
    false
}

/// Where cgroup2 is mounted: alone, or beside version 1.
pub(crate) fn root() -> Option<&'static Path> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.join("cgroup.procs").exists() && path.join("cgroup.controllers").exists())
}

/// A cgroup that is removed with its value.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    pub(crate) id: u64,
}

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("orb8-test-{}-{name}", process::id());
        let path = root().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        let id = fs::metadata(&path).unwrap().ino();
        Self { path, id }
    }

    /// Starts a child process in the cgroup, which makes `calls` there, and no other call before them; then it ends with
    /// one `exit_group`. `calls` must neither allocate nor lock: other threads of the test do not exist in the child.
    pub(crate) fn start(&self, calls: impl FnOnce()) -> Child {
        let mut pipe = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: the child makes nothing but system calls.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let mut byte = 0_u8;
            // SAFETY: room for a byte; then the calls, and the end.
            unsafe {
                // Descriptors of other tests' programs would keep those attached.
                libc::dup2(pipe[0], 0);
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
                // Entered before the process is in its cgroup.
                libc::read(0, (&raw mut byte).cast(), 1);
                calls();
                libc::_exit(0);
            }
        }
        // In its read, or the read would be one of the cgroup's calls.
        while !fs::read_to_string(format!("/proc/{pid}/syscall"))
            .is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_read)))
        {
            thread::sleep(Duration::from_millis(1));
        }
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
        // SAFETY: a byte, and descriptors of our own.
        unsafe {
            assert_eq!(libc::write(pipe[1], [0_u8].as_ptr().cast(), 1), 1);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
        }
        Child(pid)
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Has a command run in the cgroup, from its first instruction on.
    pub(crate) fn enter(&self, command: &mut Command) {
        let path = CString::new(self.path.join("cgroup.procs").into_os_string().into_vec()).unwrap();
        let enter = move || {
            // SAFETY: system calls, which are safe between fork and exec, with a path and a text that live on.
            let written = unsafe {
                let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                libc::write(fd, c"0".as_ptr().cast(), 1)
            };
            if written == 1 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        };
        // SAFETY: as above.
        unsafe { command.pre_exec(enter) };
    }

    /// As [`start`](Self::start), and waits for its end.
    pub(crate) fn run(&self, calls: impl FnOnce()) {
        self.start(calls).wait();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has just ended may still be in it.
        for _ in 0..200 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process in a cgroup.
#[derive(Debug)]
pub(crate) struct Child(pub(crate) libc::pid_t);

impl Child {
    pub(crate) fn wait(self) {
        let mut status = 0;
        // SAFETY: a child of ours, and room for its status.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        assert_eq!(status, 0, "the child ended with status {status:#x}");
    }

    /// Whether it has ended; it can still be waited for.
    pub(crate) fn has_ended(&self) -> bool {
        // SAFETY: integers, for which zeros are a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: a child of ours, and room for what is known of it.
        unsafe {
            libc::waitid(libc::P_PID, self.0.cast_unsigned(), &raw mut info, options) != 0
                || info.si_pid() != 0
        }
    }

    pub(crate) fn kill(self) {
        let mut status = 0;
        // SAFETY: a child of ours.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, &raw mut status, 0);
        }
    }
}
