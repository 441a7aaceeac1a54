//! The server that joins agents.
