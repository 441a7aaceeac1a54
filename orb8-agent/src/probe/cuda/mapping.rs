//! Lines of `/proc/PID/maps`, and the files behind them (proc_pid_maps(5)).

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::AsFd as _,
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::MetadataExt as _,
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::statfs::{FsType, fstatfs},
};

/// Bytes of a process's maps that are read: some 60,000 mappings.
const MAPS: u64 = 8 << 20;
const OVERLAYFS: FsType = FsType(0x794c_7630);
/// What the kernel appends to the path of a file that has been removed.
const DELETED: &[u8] = b" (deleted)";

/// A file as a process's maps have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Range of addresses, as written.
    pub range: String,
    /// Device, major and minor.
    pub device: (u32, u32),
    /// Inode.
    pub inode: u64,
    /// Path in the process's mount namespace.
    pub path: PathBuf,
}

/// Which file it is: what two names of one file have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Identity {
    /// 0: on an overlay, each mount of which has a device number of its own, over the same files.
    device: u64,
    inode: u64,
    /// Of a file on an overlay: size and times of change, which tell it from others with the same inode number.
    rest: [i64; 5],
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_overlay = fstatfs(file.as_fd())?.filesystem_type() == OVERLAYFS;
        Ok(Self {
            device: if is_overlay { 0 } else { metadata.dev() },
            inode: metadata.ino(),
            rest: if is_overlay {
                [
                    metadata.size().cast_signed(),
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                    metadata.ctime(),
                    metadata.ctime_nsec(),
                ]
            } else {
                [0; 5]
            },
        })
    }
}

/// Whether a file is called as NVIDIA's libraries are: `libcuda.so.1`, `libcuda.so.550.54.15`, `libcudart.so.12`,
/// `libcudart-d0da41ae.so.11.0`.
fn is_library(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    let name = name.strip_suffix(DELETED).unwrap_or(name);
    name.starts_with(b"libcuda.so")
        || name.starts_with(b"libcudart.so")
        || name
            .strip_prefix(b"libcudart-")
            .is_some_and(|rest| rest.windows(3).any(|part| part == b".so"))
}

impl Mapping {
    /// Reads a line; `None` if it is not of a library.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        // Most lines are none: first what tells so.
        let slash = line.iter().position(|&byte| byte == b'/')?;
        let path = &line[slash..];
        if !is_library(path) {
            return None;
        }
        let head = std::str::from_utf8(&line[..slash]).ok()?;
        let mut fields = head.split_ascii_whitespace();
        let (range, device) = (fields.next()?, fields.nth(2)?);
        let (from, to) = range.split_once('-')?;
        let is_hex =
            |text: &str| !text.is_empty() && text.len() <= 16 && u64::from_str_radix(text, 16).is_ok();
        if !is_hex(from) || !is_hex(to) {
            return None;
        }
        let (major, minor) = device.split_once(':')?;
        let inode = fields.next()?.parse().ok()?;
        let path = path.strip_suffix(DELETED).unwrap_or(path);
        Some(Self {
            range: range.to_owned(),
            device: (
                u32::from_str_radix(major, 16).ok()?,
                u32::from_str_radix(minor, 16).ok()?,
            ),
            inode,
            path: PathBuf::from(OsString::from_vec(path.to_vec())),
        })
    }

    /// Libraries that a process has mapped, each once; none if it has ended.
    ///
    /// # Errors
    /// If its maps cannot be read: without the right to (`CAP_SYS_PTRACE`).
    pub fn of_process(proc_root: &Path, pid: u32) -> io::Result<Vec<Self>> {
        let mut maps = Vec::new();
        let read = File::open(proc_root.join(format!("{pid}/maps")))
            .and_then(|file| file.take(MAPS).read_to_end(&mut maps));
        match read {
            Ok(_) => {}
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        }
        let mut found: Vec<Self> = Vec::new();
        for mapping in maps.split(|&byte| byte == b'\n').filter_map(Self::parse) {
            let is_new = found
                .iter()
                .all(|it| (it.device, it.inode) != (mapping.device, mapping.inode));
            if is_new {
                found.push(mapping);
            }
        }
        Ok(found)
    }

    /// The file itself, and which it is.
    ///
    /// # Errors
    /// If it cannot be opened, or another file has its name by now.
    pub fn open(&self, proc_root: &Path, pid: u32) -> io::Result<(File, Identity)> {
        let file = match self.open_by_range(proc_root, pid) {
            Ok(file) => file,
            // That takes a right more than most agents have.
            Err(_) => self.open_by_path(proc_root, pid)?,
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        let identity = Identity::of(&file)?;
        Ok((file, identity))
    }

    fn open_by_range(&self, proc_root: &Path, pid: u32) -> io::Result<File> {
        // The kernel writes ranges with leading zeros in maps, and without them here.
        let (from, to) = self.range.split_once('-').unwrap_or_default();
        let (from, to) = (from.trim_start_matches('0'), to.trim_start_matches('0'));
        File::open(proc_root.join(format!("{pid}/map_files/{from}-{to}")))
    }

    /// By its path under the process's root, which the process must not lead us out of.
    fn open_by_path(&self, proc_root: &Path, pid: u32) -> io::Result<File> {
        let root = File::open(proc_root.join(format!("{pid}/root")))?;
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let path = self.path.as_os_str().as_bytes();
        let file = File::from(openat2(root.as_fd(), path, how)?);
        if file.metadata()?.ino() != self.inode {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "another file has its name by now",
            ));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn libraries_are_found_by_their_names() {
        let line = b"7f1bca83a000-7f1bca83c000 r-xp 00036000 fd:01 2895508                    /usr/lib/a b/libcuda.so.1";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(mapping.device, (0xfd, 1));
        assert_eq!(
            (mapping.inode, mapping.range.as_str()),
            (2_895_508, "7f1bca83a000-7f1bca83c000")
        );
        assert_eq!(mapping.path, Path::new("/usr/lib/a b/libcuda.so.1"));
        let named = |name: &str| Mapping::parse(format!("1-2 r--p 0 0:1f 7 /x/{name}").as_bytes());
        for name in [
            "libcuda.so",
            "libcuda.so.550.54.15",
            "libcudart.so.12",
            "libcudart-d0da41ae.so.11.0",
            "libcuda.so.1 (deleted)",
        ] {
            assert!(named(name).is_some(), "{name}");
        }
        assert_eq!(
            named("libcuda.so.1 (deleted)").unwrap().path,
            Path::new("/x/libcuda.so.1")
        );
        for name in [
            "libcudadebugger.so.1",
            "libcudart-x",
            "libcudnn.so.9",
            "libcuda.so.1/other",
            "",
        ] {
            assert!(named(name).is_none(), "{name}");
        }
    }

    #[test]
    fn what_is_no_line_of_maps_is_left_out() {
        for line in [
            "",
            "/libcuda.so.1",
            "1 r--p 0 0:1f 7 /libcuda.so.1",
            "1-../../2 r--p 0 0:1f 7 /libcuda.so.1",
            "1-2 r--p 0 01f 7 /libcuda.so.1",
            "1-2 r--p 0 0:1f x /libcuda.so.1",
            "1-2 r--p 0 0:1f 7 libcuda.so.1",
        ] {
            assert_eq!(Mapping::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn this_process_has_none() {
        assert_eq!(
            Mapping::of_process(Path::new("/proc"), std::process::id()).unwrap(),
            []
        );
        assert_eq!(Mapping::of_process(Path::new("/proc"), u32::MAX).unwrap(), []);
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Mapping::parse(&line);
            let _ = Mapping::parse(&[&line[..], b"/libcuda.so.1"].concat());
        }

        #[test]
        fn every_mapping_reads_back(
            from in any::<u64>(), to in any::<u64>(), major in any::<u32>(), minor in any::<u32>(), inode in any::<u64>(),
            directory in "[ -~&&[^/]]{1,20}",
        ) {
            let line = format!("{from:08x}-{to:08x} r-xp 00001000 {major:02x}:{minor:02x} {inode}      /{directory}/libcudart.so.12");
            let mapping = Mapping::parse(line.as_bytes()).unwrap();
            prop_assert_eq!(mapping.device, (major, minor));
            prop_assert_eq!(mapping.inode, inode);
            let path = format!("/{directory}/libcudart.so.12");
            prop_assert_eq!(mapping.path, Path::new(&path));
        }
    }
}
