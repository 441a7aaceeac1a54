//! Who owns an interface, a cgroup or an address.

pub mod owner;
