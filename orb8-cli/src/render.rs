//! Answers as text.

pub(crate) mod checks;
pub(crate) mod event;
pub(crate) mod flow_csv;
pub(crate) mod flow_json;
pub(crate) mod flow_table;
pub(crate) mod footer;
pub(crate) mod status;
pub(crate) mod table;
