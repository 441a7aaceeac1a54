//! The live view of owners and their peers: `model` holds what is known, `view` draws it, `plain` prints it where
//! there is no terminal.

pub(crate) mod model;
pub(crate) mod plain;
pub(crate) mod screen;
pub(crate) mod view;
