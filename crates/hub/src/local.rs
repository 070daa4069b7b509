//! Local checkpoints by the value of `-m`: a folder, or `org/name` in the local Hugging Face cache.
//! Never uses the network.

use std::path::{Component, Path, PathBuf};

use super::HubError;

/// Folder of the Hugging Face cache, as `huggingface_hub` finds it: `HF_HUB_CACHE`, else
/// `HF_HOME/hub`, else `XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
///
/// `variable` looks a variable up; an empty one counts as unset.
fn cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let candidates = [
        ("HF_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ];
    candidates.into_iter().find_map(|(name, below)| {
        let folder = variable(name).filter(|value| !value.as_os_str().is_empty())?;
        Some(if below.is_empty() { folder } else { folder.join(below) })
    })
}

/// The folder of the checkpoint `model`: the folder of that name, or else the snapshot of
/// `refs/main` in this machine's Hugging Face cache.
///
/// # Errors
/// A [`HubError`] that names the places searched.
pub fn resolve(model: &Path) -> Result<PathBuf, HubError> {
    resolve_in(model, default_cache().as_deref())
}

/// [`resolve`] with a given cache folder.
///
/// # Errors
/// A [`HubError`] that names the places searched.
pub fn resolve_in(model: &Path, cache: Option<&Path>) -> Result<PathBuf, HubError> {
    if model.is_dir() {
        return Ok(model.to_owned());
    }
    if model.exists() {
        return Err(HubError::NotAFolder { path: model.to_owned() });
    }
    let Some((org, name)) = repository(model) else {
        return Err(HubError::NoSuchFolder { path: model.to_owned() });
    };
    let full_name = format!("{org}/{name}");
    let Some(cache) = cache else { return Err(HubError::NoCache { name: full_name }) };
    let entry = entry(cache, org, name);
    if !entry.is_dir() {
        return Err(HubError::NotInCache { name: full_name, cache: cache.to_owned() });
    }
    snapshot(entry)
}

/// The folder of `org/name` in a cache.
fn entry(cache: &Path, org: &str, name: &str) -> PathBuf {
    cache.join(format!("models--{org}--{name}"))
}

/// [`cache_folder`] by this process's environment.
#[must_use]
pub fn default_cache() -> Option<PathBuf> {
    cache_folder(|name| std::env::var_os(name).map(PathBuf::from))
}

/// The folder of the checkpoint `name` in `cache`, which need not exist.
///
/// # Errors
/// A name that is not `org/name`.
pub(super) fn entry_of(cache: &Path, name: &str) -> Result<PathBuf, HubError> {
    match repository(Path::new(name)) {
        Some((org, repo)) => Ok(entry(cache, org, repo)),
        None => Err(HubError::BadName { name: name.to_owned() }),
    }
}

/// The snapshot that `refs/main` of a cache entry points to.
pub(super) fn snapshot(entry: PathBuf) -> Result<PathBuf, HubError> {
    let Ok(revision) = std::fs::read_to_string(entry.join("refs/main")) else {
        return Err(HubError::BrokenEntry { entry, reason: "refs/main is missing" });
    };
    let revision = revision.trim();
    if !is_plain_name(revision) {
        return Err(HubError::BrokenEntry { entry, reason: "refs/main holds no revision" });
    }
    let snapshot = entry.join("snapshots").join(revision);
    if !snapshot.is_dir() {
        return Err(HubError::BrokenEntry {
            entry,
            reason: "the snapshot of refs/main is missing",
        });
    }
    Ok(snapshot)
}

/// Parts of `org/name`; `None` for any other path, `..` included.
pub(super) fn repository(model: &Path) -> Option<(&str, &str)> {
    let mut parts = model.components().map(|part| match part {
        Component::Normal(part) => part.to_str().filter(|part| is_plain_name(part)),
        _ => None,
    });
    let org = parts.next()??;
    let name = parts.next()??;
    parts.next().is_none().then_some((org, name))
}

/// Returns true for a valid name of a checkpoint on a hub, `org/name`.
pub(super) fn is_repository(model: &str) -> bool {
    repository(Path::new(model)).is_some()
}

/// Returns true for a name of characters that the hub allows, which stays within a folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let is_allowed = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    !name.is_empty() && !name.starts_with('.') && is_allowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn message(model: &str, cache: &Path) -> String {
        resolve_in(Path::new(model), Some(cache)).unwrap_err().to_string()
    }

    #[test]
    fn finds_a_folder_and_a_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let entry = cache.path().join("models--org--some.Model-1");
        fs::create_dir_all(entry.join("snapshots/abc123")).unwrap();
        fs::create_dir_all(entry.join("refs")).unwrap();
        fs::write(entry.join("refs/main"), "abc123\n").unwrap();
        let found = resolve_in(Path::new("org/some.Model-1"), Some(cache.path())).unwrap();
        assert_eq!(found, entry.join("snapshots/abc123"));
        assert_eq!(resolve_in(&entry, None).unwrap(), entry);
    }

    #[test]
    fn says_what_is_wrong() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().display().to_string();
        assert!(message("org/absent", cache.path()).contains(&folder));
        assert_eq!(message("absent", cache.path()), "no such model folder: absent");
        let file = cache.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(message(file.to_str().unwrap(), cache.path()).contains("is a file"));
        let entry = cache.path().join("models--org--name");
        fs::create_dir_all(entry.join("refs")).unwrap();
        assert!(message("org/name", cache.path()).contains("refs/main is missing"));
        fs::write(entry.join("refs/main"), "../../x").unwrap();
        assert!(message("org/name", cache.path()).contains("holds no revision"));
        fs::write(entry.join("refs/main"), "abc").unwrap();
        assert!(message("org/name", cache.path()).contains("snapshot of refs/main is missing"));
        let homeless = resolve_in(Path::new("org/absent"), None).unwrap_err().to_string();
        assert!(homeless.contains("HF_HOME"));
    }

    #[test]
    fn a_name_cannot_leave_the_cache() {
        for model in ["../name", "org/..", "/org/name", "org/a/b", "org/na me", ".org/name", ""] {
            assert_eq!(repository(Path::new(model)), None, "{model}");
        }
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_puts_it() {
        let with = |known: &'static [(&str, &str)]| {
            cache_folder(|name| {
                known.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(with(&[("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b")]), Some("/a".into()));
        assert_eq!(with(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/b")]), Some("/b/hub".into()));
        let xdg = with(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/d")]);
        assert_eq!(xdg, Some("/c/huggingface/hub".into()));
        assert_eq!(with(&[("HOME", "/d")]), Some("/d/.cache/huggingface/hub".into()));
        assert_eq!(with(&[]), None);
    }
}
