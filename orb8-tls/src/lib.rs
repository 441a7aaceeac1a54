//! TLS 1.3 with certificates on both sides, between agents, server and command line.
//!
//! Who somebody is says a DNS name among the subject alternative names of its certificate: [`AGENT`], [`SERVER`] or
//! [`OPERATOR`]. All of them come from one certificate authority, which serves nothing else.

/// An agent.
pub const AGENT: &str = "agent.orb8";
/// The server that joins agents.
pub const SERVER: &str = "server.orb8";
/// A person, or a program in a person's place, who may ask everything.
pub const OPERATOR: &str = "operator.orb8";
