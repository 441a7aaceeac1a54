//! Calls that are told one by one, with what their arguments point to.
//!
//! A program may not fault: what is not in memory cannot be read, and the event says so.

use core::ptr;

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns,
    bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_read_user_str, bpf_ringbuf_reserve,
    bpf_ringbuf_submit,
};
use orb8_common::syscall::{Cpu, EVENT_HEAD, Event, NUMBERS, STRING, STRINGS, TEXT, Watch, abi, watch};

use crate::{call::Call, caller::cpu, maps, settings};

/// Flags of include/uapi/linux/sched.h that make namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// Time; where clone has the signal.
const CLONE_NEWTIME: u64 = 0x80;
/// Words of `struct pt_regs` that arguments are among.
const REGISTERS: usize = 16;
/// Arguments of a program that are looked at.
const VECTOR: u32 = 7;

/// Sends the call, or counts why not. `call` has the ABI in its high half and the number in its low one, `watch` likewise
/// flags and weight; `regs` is the tracepoint's.
///
/// A function of its own for the verifier too, by its name and its arguments, which are all numbers: it is verified once,
/// and not for each path that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn orb8_tell(regs: u64, call: u64, watch: u64) -> u32 {
    let call = Call {
        abi: (call >> 32) as u32,
        number: call as u32,
    };
    let watch = Watch {
        weight: watch as u32,
        flags: (watch >> 32) as u32,
    };
    match cpu() {
        Some(cpu) => u32::from(tell(regs, call, watch, cpu)),
        None => 0,
    }
}

/// True if an event was sent.
#[inline(always)]
fn tell(regs: u64, call: Call, watch: Watch, cpu: &mut Cpu) -> bool {
    let mut registers = [0_u64; REGISTERS];
    // SAFETY: copies registers of the current task, or fails.
    unsafe {
        bpf_probe_read_kernel(
            registers.as_mut_ptr().cast(),
            size_of_val(&registers) as u32,
            regs as *const _,
        );
    }
    let compat = call.abi == abi::COMPAT;
    let places = if compat {
        settings::COMPAT_ARGS.get()
    } else {
        settings::NATIVE_ARGS.get()
    };
    let mut args = [0_u64; 6];
    for (arg, place) in args.iter_mut().zip(places) {
        let value = registers[place as usize & (REGISTERS - 1)];
        *arg = if compat { u64::from(value as u32) } else { value };
    }
    if !is_told(watch.flags, args[0]) {
        return false;
    }
    cpu.wanted += 1;
    if watch.weight > 1 && !is_turn(call, watch.weight) {
        cpu.sampled_out += 1;
        return false;
    }
    if watch.flags & (watch::STRINGS | watch::VECTOR << watch::VECTOR_SHIFT) != 0 {
        return with_text(call, watch, &args, cpu);
    }
    // SAFETY: the ring, and a size that is known.
    let event = unsafe { bpf_ringbuf_reserve(ring(), EVENT_HEAD as u64, 0) }.cast::<Event>();
    if event.is_null() {
        cpu.events_lost += 1;
        return false;
    }
    // SAFETY: room for a head.
    unsafe {
        head(event, call, watch, &args);
        bpf_ringbuf_submit(event.cast(), 0);
    }
    true
}

const fn ring() -> *mut core::ffi::c_void {
    (&raw const maps::EVENTS).cast_mut().cast()
}

/// Whether this call is one of those that are told of its number.
#[inline(always)]
fn is_told(flags: u32, first: u64) -> bool {
    if flags & watch::CLONE_FLAGS != 0 {
        return first & CLONE_NAMESPACES != 0;
    }
    if flags & watch::UNSHARE_FLAGS != 0 {
        return first & (CLONE_NAMESPACES | CLONE_NEWTIME) != 0;
    }
    if flags & watch::CLONE3_FLAGS != 0 {
        let mut clone = 0_u64;
        // SAFETY: copies a word of user memory, or fails.
        let failed = unsafe { bpf_probe_read_user((&raw mut clone).cast(), 8, first as *const _) } != 0;
        // Better one too many than one that goes unnoticed.
        return failed || clone & (CLONE_NAMESPACES | CLONE_NEWTIME) != 0;
    }
    true
}

/// Whether this is a `weight`-th call on this CPU.
#[inline(always)]
fn is_turn(call: Call, weight: u32) -> bool {
    let Some(since) = maps::SINCE_EVENT.get_ptr_mut(call.abi * NUMBERS as u32 + call.number) else {
        return false;
    };
    // SAFETY: this CPU's element of a map.
    unsafe {
        *since += 1;
        if *since < weight {
            return false;
        }
        *since = 0;
    }
    true
}

/// # Safety
/// `event` has room for [`EVENT_HEAD`] bytes.
#[inline(always)]
unsafe fn head(event: *mut Event, call: Call, watch: Watch, args: &[u64; 6]) {
    // SAFETY: the caller's; helpers without arguments.
    unsafe {
        let pid_tgid = bpf_get_current_pid_tgid();
        (&raw mut (*event).time_ns).write(bpf_ktime_get_ns());
        (&raw mut (*event).cgroup).write(bpf_get_current_cgroup_id());
        (&raw mut (*event).args).write(*args);
        (&raw mut (*event).tgid).write((pid_tgid >> 32) as u32);
        (&raw mut (*event).tid).write(pid_tgid as u32);
        (&raw mut (*event).abi).write(call.abi);
        (&raw mut (*event).number).write(call.number);
        (&raw mut (*event).weight).write(watch.weight);
        (&raw mut (*event).strings).cast::<u32>().write(0);
        (&raw mut (*event).lengths).cast::<u64>().write(0);
        bpf_get_current_comm((&raw mut (*event).comm).cast(), 16);
    }
}

#[inline(always)]
fn with_text(call: Call, watch: Watch, args: &[u64; 6], cpu: &mut Cpu) -> bool {
    // SAFETY: the ring, and a size that is known.
    let event = unsafe { bpf_ringbuf_reserve(ring(), size_of::<Event>() as u64, 0) }.cast::<Event>();
    if event.is_null() {
        cpu.events_lost += 1;
        return false;
    }
    // SAFETY: room for an event.
    unsafe {
        head(event, call, watch, args);
        ptr::write_bytes((&raw mut (*event).text).cast::<u64>(), 0, TEXT / 8);
    }
    cpu.text = [0; 2];
    cpu.text_flags = [0; 2];
    let mut more = false;
    let mut vector = 0;
    for (at, &arg) in args.iter().enumerate() {
        if watch.flags >> at & 1 != 0 && arg != 0 {
            more |= !read(event, cpu, arg);
        }
        if watch.flags >> watch::VECTOR_SHIFT & watch::VECTOR == at as u32 + 1 {
            vector = arg;
        }
    }
    if vector != 0 {
        let width = if call.abi == abi::NATIVE { 8 } else { 4 };
        for at in 0..=VECTOR {
            let mut pointer = 0_u64;
            // SAFETY: copies a word of user memory, or fails.
            let failed = unsafe {
                bpf_probe_read_user(
                    (&raw mut pointer).cast(),
                    width,
                    vector.wrapping_add(u64::from(at * width)) as *const _,
                )
            } != 0;
            if failed || pointer == 0 {
                break;
            }
            if at == VECTOR || !read(event, cpu, pointer) {
                more = true;
                break;
            }
        }
    }
    // SAFETY: room for an event.
    unsafe {
        (&raw mut (*event).strings).write(cpu.text[1] as u8);
        (&raw mut (*event).truncated).write(cpu.text_flags[0] as u8);
        (&raw mut (*event).unreadable).write(cpu.text_flags[1] as u8);
        (&raw mut (*event).more).write(u8::from(more));
        bpf_ringbuf_submit(event.cast(), 0);
    }
    true
}

/// Copies a string of the caller's memory behind those before; false if there is no room.
///
/// How far the text is lies in a map, not in registers: the verifier then forgets by which path it came there, and looks
/// at each step once.
#[inline(always)]
fn read(event: *mut Event, cpu: &mut Cpu, pointer: u64) -> bool {
    // With its NUL.
    const ROOM: u32 = STRING as u32 + 1;
    // SAFETY: a valid reference; read anew each time, for the reason above.
    let [used, at] = unsafe { (&raw const cpu.text).read_volatile() };
    if used > TEXT as u32 - ROOM || at >= STRINGS as u32 {
        return false;
    }
    // SAFETY: `used` leaves room for a string.
    let length = unsafe {
        let place = (&raw mut (*event).text).cast::<u8>().add(used as usize);
        bpf_probe_read_user_str(place.cast(), ROOM, pointer as *const _)
    };
    let [mut truncated, mut unreadable] = cpu.text_flags;
    let length = if length <= 0 {
        unreadable |= 1 << at;
        1
    } else if length as u32 >= ROOM {
        // The kernel does not say whether this was all.
        truncated |= 1 << at;
        ROOM
    } else {
        length as u32
    };
    cpu.text_flags = [truncated, unreadable];
    // SAFETY: as above; below `STRINGS`.
    unsafe {
        (&raw mut cpu.text).write_volatile([used + length, at + 1]);
        (&raw mut (*event).lengths)
            .cast::<u8>()
            .add(at as usize)
            .write(length as u8 - 1);
    }
    true
}
