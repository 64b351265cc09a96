//! Recipes: against the reference, and behind their walls.

mod bench;
mod builds;
mod oracle;
mod table;
