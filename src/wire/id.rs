//! Fresh names: UUIDs of version 7, which sort by age.

use super::{fleet, random};
use uuid::Uuid;

/// A name that nobody has had.
pub fn fresh() -> Uuid {
    let mut bytes = [0; 10];
    match random::fill(&mut bytes) {
        Ok(()) => uuid::Builder::from_unix_timestamp_millis(fleet::now_ms(), &bytes).into_uuid(),
        Err(_) => Uuid::now_v7(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_are_of_version_7_and_differ() {
        let ids: std::collections::HashSet<Uuid> = (0..1000).map(|_| fresh()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
    }
}
