//! eBPF programs of orb8.
