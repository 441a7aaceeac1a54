//! The `orb8-server` program.

fn main() {}
