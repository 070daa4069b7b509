//! Free disk space, and atomic replacement of files.

use std::io;
use std::path::Path;

/// Free bytes for this user on the file system of `path`, which need not exist: its nearest
/// existing ancestor counts. `None` if the system does not report it.
#[must_use]
pub(crate) fn available_bytes(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let folder = path.ancestors().find(|folder| folder.exists())?;
    let system = rustix::fs::statvfs(folder).ok()?;
    system.f_bavail.checked_mul(system.f_frsize)
}

/// Writes `text` to `path` through a temporary file and a rename, so that readers see the old or the
/// new contents, also if the disk is full. Follows links. Pipes and devices are written to directly.
///
/// # Errors
/// Failure to write the file or the temporary file in its folder.
pub(crate) fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let old = std::fs::metadata(path).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return std::fs::write(path, text);
    }
    let path = if old.is_some() { std::fs::canonicalize(path)? } else { path.to_owned() };
    let mut temporary = path.clone().into_os_string();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let written = std::fs::write(&temporary, text)
        .and_then(|()| {
            old.map_or(Ok(()), |old| std::fs::set_permissions(&temporary, old.permissions()))
        })
        .and_then(|()| std::fs::rename(&temporary, &path));
    if written.is_err() {
        // The write error is the one to report; a leftover temporary file is harmless.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_a_link_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_atomically(&at("file"), "old").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        write_atomically(&at("link"), "new").unwrap();
        assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "new");
        assert!(at("link").is_symlink());
        assert!(write_atomically(&at("missing/file"), "new").is_err());
        std::fs::create_dir(at("folder")).unwrap();
        assert!(write_atomically(&at("folder"), "new").is_err());
        let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        let names: Vec<_> = names.iter().map(std::fs::DirEntry::file_name).collect();
        assert_eq!(names, ["file", "folder", "link"]);
    }

    #[test]
    fn a_device_is_written_to_directly() {
        write_atomically(Path::new("/dev/null"), "text").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
        let full = write_atomically(Path::new("/dev/full"), "text").unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_missing_folder_has_the_space_of_its_ancestor() {
        let folder = tempfile::tempdir().unwrap();
        assert!(available_bytes(folder.path()).unwrap() > 0);
        assert!(available_bytes(&folder.path().join("a/b/c")).unwrap() > 0);
    }
}
