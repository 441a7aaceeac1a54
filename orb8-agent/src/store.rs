//! Bounded recent history.
