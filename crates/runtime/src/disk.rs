//! Disks that are full, or become so: room asked for beforehand, files replaced whole.

use std::io;
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

/// Writes `text` to `path` so that a reader, or whoever comes after a full disk, finds the old file
/// or the new one, never half of one. Follows links; what is no file (a pipe, a device) is written to
/// as it is.
///
/// # Errors
/// When the file, or its draft beside it, cannot be written.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let old = std::fs::metadata(path).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return std::fs::write(path, text);
    }
    let path = if old.is_some() { std::fs::canonicalize(path)? } else { path.to_owned() };
    let mut draft = path.clone().into_os_string();
    draft.push(format!(".{}.tmp", std::process::id()));
    let written = std::fs::write(&draft, text)
        .and_then(|()| {
            old.map_or(Ok(()), |old| std::fs::set_permissions(&draft, old.permissions()))
        })
        .and_then(|()| std::fs::rename(&draft, &path));
    if written.is_err() {
        // The error says more than that a draft is left could.
        let _ = std::fs::remove_file(&draft);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_where_its_link_leads() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        replace(&at("file"), "old").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        replace(&at("link"), "new").unwrap();
        assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "new");
        assert!(at("link").is_symlink());
        assert!(replace(&at("missing/file"), "new").is_err());
        std::fs::create_dir(at("folder")).unwrap();
        assert!(replace(&at("folder"), "new").is_err());
        let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        let names: Vec<_> = names.iter().map(std::fs::DirEntry::file_name).collect();
        assert_eq!(names, ["file", "folder", "link"]);
    }

    #[test]
    fn a_device_stays_one() {
        replace(Path::new("/dev/null"), "text").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
        let full = replace(Path::new("/dev/full"), "text").unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_folder_to_be_has_the_room_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        assert!(available_bytes(folder.path()).unwrap() > 0);
        assert!(available_bytes(&folder.path().join("a/b/c")).unwrap() > 0);
    }
}
