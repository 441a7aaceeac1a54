//! What leaves the agent: answers to queries and scrapes.

pub(crate) mod grpc;
pub(crate) mod http;
pub mod metrics;
