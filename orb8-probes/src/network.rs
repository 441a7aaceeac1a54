//! The network family: from a frame to its flow.

pub mod parse;
pub mod segments;
