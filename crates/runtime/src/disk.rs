//! How much room a file system has, asked before something large is written.

use std::path::Path;

/// Bytes that this user may still write where `path` lies, or would lie: the nearest folder above
/// it that exists is asked. `None` where the system does not say.
#[must_use]
pub fn available_bytes(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let folder = path.ancestors().find(|folder| folder.exists())?;
    let system = rustix::fs::statvfs(folder).ok()?;
    system.f_bavail.checked_mul(system.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_to_be_has_the_room_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        assert!(available_bytes(folder.path()).unwrap() > 0);
        assert!(available_bytes(&folder.path().join("a/b/c")).unwrap() > 0);
    }
}
