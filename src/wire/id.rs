//! Fresh names: UUIDs of version 7, which sort by age.

use uuid::Uuid;

/// A name that nobody has had. The random part comes from the kernel by system call: the uuid crate's way looks
/// `getrandom` up by name, which a static program cannot, and then needs /dev/urandom, which an empty root has not.
#[cfg(target_os = "linux")]
pub fn fresh() -> Uuid {
    let mut random = [0; 10];
    match rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()) {
        // So few bytes come whole.
        Ok(_) => uuid::Builder::from_unix_timestamp_millis(super::fleet::now_ms(), &random).into_uuid(),
        Err(_) => Uuid::now_v7(),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn fresh() -> Uuid {
    Uuid::now_v7()
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
