//! What leaves the agent: answers to queries and scrapes.

pub mod metrics;
