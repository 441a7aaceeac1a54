//! Counts of calls, by cgroup and function.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_get_current_task_btf};
use orb8_common::cuda::{CallKey, Calls, InCall, Stats, cookie};
use orb8_probes::atomic;

use crate::maps;

/// What this CPU's programs count.
#[inline(always)]
pub(crate) fn stats() -> Option<*mut Stats> {
    maps::STATS.get_ptr_mut(0)
}

/// What the current thread is in; `create`: made if it has none.
#[inline(always)]
pub(crate) fn in_call(create: bool) -> Option<&'static mut InCall> {
    // SAFETY: no arguments; the task is the current one.
    unsafe {
        let task = bpf_get_current_task_btf();
        if create {
            maps::IN_CALL.get_or_create(task)
        } else {
            maps::IN_CALL.get(task)
        }
    }
}

/// Number of the function that a cookie is of.
#[inline(always)]
pub(crate) fn function(cookie: u64) -> u32 {
    (cookie & cookie::FUNCTION) as u32
}

/// One of [`orb8_common::cuda::kind`].
#[inline(always)]
pub(crate) fn kind(cookie: u64) -> u64 {
    cookie >> cookie::KIND_SHIFT & cookie::KIND
}

/// Adds to the calls of a cgroup and function. False if there is no room for them.
#[inline(always)]
pub(crate) fn add(cgroup: u64, function: u32, more: &Calls) -> bool {
    let key = CallKey {
        cgroup,
        function,
        reserved: 0,
    };
    let mut calls = maps::CALLS.get_ptr_mut(&key);
    if calls.is_none() {
        if maps::CALLS.insert(&key, more, BPF_NOEXIST as u64).is_ok() {
            return true;
        }
        // Entered by another CPU meanwhile, or full.
        calls = maps::CALLS.get_ptr_mut(&key);
    }
    let Some(calls) = calls else {
        return false;
    };
    // SAFETY: a map value.
    unsafe {
        if more.count != 0 {
            atomic::add(&raw mut (*calls).count, more.count);
        }
        if more.errors != 0 {
            atomic::add(&raw mut (*calls).errors, more.errors);
        }
        if more.bytes != 0 {
            atomic::add(&raw mut (*calls).bytes, more.bytes);
        }
        if more.returned != 0 {
            atomic::add(&raw mut (*calls).total_ns, more.total_ns);
            atomic::add(&raw mut (*calls).returned, more.returned);
        }
    }
    true
}
