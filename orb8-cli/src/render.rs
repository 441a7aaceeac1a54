//! Answers as text.

pub(crate) mod checks;
pub(crate) mod edge_csv;
pub(crate) mod edge_json;
pub(crate) mod edge_table;
pub(crate) mod event;
pub(crate) mod flow_csv;
pub(crate) mod flow_json;
pub(crate) mod flow_table;
pub(crate) mod footer;
pub(crate) mod gpu_csv;
pub(crate) mod gpu_event;
pub(crate) mod gpu_json;
pub(crate) mod gpu_table;
pub(crate) mod nodes;
pub(crate) mod pods;
pub(crate) mod status;
pub(crate) mod syscall_csv;
pub(crate) mod syscall_event;
pub(crate) mod syscall_json;
pub(crate) mod syscall_table;
pub(crate) mod table;
