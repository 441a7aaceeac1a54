//! TLS 1.3 with certificates on both sides, between agents, server and command line.
//!
//! Who somebody is says a DNS name among the subject alternative names of its certificate: [`AGENT`], [`SERVER`] or
//! [`OPERATOR`]. All of them come from one certificate authority, which serves nothing else. `material` reads keys and
//! certificates, [`Acceptor`] is for who listens ([`incoming`] bounds what it takes), [`Connector`] for who connects.

mod acceptor;
mod connector;
mod dial;
mod error;
mod incoming;
mod material;

pub use acceptor::{Acceptor, ClientCertificates};
pub use connector::Connector;
pub use dial::{Dialed, dial};
pub use error::TlsError;
pub use incoming::{Connection, ConnectionCounts, ConnectionLimits, Peer, incoming};
pub use material::{Material, TlsFiles};
pub use tokio_rustls::client::TlsStream;

/// An agent.
pub const AGENT: &str = "agent.orb8";
/// The server that joins agents.
pub const SERVER: &str = "server.orb8";
/// A person, or a program in a person's place, who may ask everything.
pub const OPERATOR: &str = "operator.orb8";
