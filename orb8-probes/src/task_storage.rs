//! Memory that belongs to a task, which aya has no type for.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE,
        task_struct,
    },
    helpers::generated::bpf_task_storage_get,
};

/// A value for each task, which goes with the task (Linux 5.11, for tracing programs 5.12). Its fields are how a map is
/// described in BTF; none of them is ever read.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: a description, never read.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    /// A map without values.
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    const fn map(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The task's value, if it has one.
    ///
    /// # Safety
    /// `task` is of `bpf_get_current_task_btf`.
    #[inline(always)]
    pub unsafe fn get(&self, task: *mut task_struct) -> Option<&'static mut T> {
        // SAFETY: the caller's; the value lives as long as the program runs, which its task does not end.
        unsafe {
            bpf_task_storage_get(self.map(), task, ptr::null_mut(), 0)
                .cast::<T>()
                .as_mut()
        }
    }

    /// The task's value, made of zeros if it has none; `None` without memory.
    ///
    /// # Safety
    /// `task` is of `bpf_get_current_task_btf`.
    #[inline(always)]
    pub unsafe fn get_or_create(&self, task: *mut task_struct) -> Option<&'static mut T> {
        let create = u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE);
        // SAFETY: as above.
        unsafe {
            bpf_task_storage_get(self.map(), task, ptr::null_mut(), create)
                .cast::<T>()
                .as_mut()
        }
    }
}
