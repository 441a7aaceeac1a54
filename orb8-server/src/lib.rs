//! The server that joins agents.
//!
//! `discovery` finds the agents, `pool` keeps a connection to each and knows how it is, `pods` knows on which nodes pods
//! are; an [`orb8_fleet::Hub`] over the pool answers, a [`guard`] says to whom, and `service` offers that to the network
//! within bounds. `http` serves metrics and health, `settings` says how all of it runs. Nothing is stored: any number of
//! servers can stand side by side. [`certgen`] makes the certificates that all of them need.

pub mod authority;
pub mod certgen;
mod discovery;
pub mod guard;
mod http;
mod metrics;
mod pods;
mod pool;
mod program;
mod server;
pub mod settings;
mod status;
mod wall_clock;
mod watching;

pub use program::main;
pub use server::{Server, ServerError};
