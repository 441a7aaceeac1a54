//! The server that joins agents.

pub mod authority;
pub mod certgen;
pub mod guard;
