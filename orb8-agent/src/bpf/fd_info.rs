//! What `/proc/self/fdinfo` says of programs and maps.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _},
};

/// What the kernel says of a program or map in `/proc/self/fdinfo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FdInfo {
    /// Bytes that it occupies.
    pub memlock: u64,
    /// Runs, while `kernel.bpf_stats_enabled` is 1.
    pub run_count: u64,
    /// Time of those runs in nanoseconds.
    pub run_time_ns: u64,
    /// Runs that were left out, for the program was running on that CPU already.
    pub recursion_misses: u64,
}

/// Reads `/proc/self/fdinfo` of a program or map.
///
/// # Errors
/// If the file cannot be read.
pub fn fd_info(fd: impl AsFd) -> io::Result<FdInfo> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0)
    };
    Ok(FdInfo {
        memlock: field("memlock"),
        run_count: field("run_cnt"),
        run_time_ns: field("run_time_ns"),
        recursion_misses: field("recursion_misses"),
    })
}
