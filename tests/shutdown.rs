//! How everything ends.
