//! The source `dcgm`: NVIDIA's dcgm-exporter, which serves a page of metrics for Prometheus.
//!
//! [`Scraper`] fetches it, [`read`] makes devices of it.

mod fields;
mod labels;
mod page;
mod scrape;
mod text;

pub use page::{NotDcgm, read};
pub use scrape::{DcgmError, Scraper};
