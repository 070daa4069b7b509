//! What a hub says about a repository: its revision and its files, checked before they become paths.

use serde::Deserialize;

use super::HubError;
use super::client::Hub;
use super::error::HubResult;
use super::hash::Checksum;
use super::local::{is_plain_name, is_repository};

/// The longest answer about a repository.
const MAX_INFO_BYTES: u64 = 64 << 20;

/// A repository at one revision.
#[derive(Clone, Debug)]
pub struct RepoInfo {
    /// `org/name`.
    pub name: String,
    /// The revision as it was asked for.
    pub revision: String,
    /// The commit.
    pub sha: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// Its place in the repository; every part of it is a plain name.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    pub(super) checksum: Checksum,
}

#[derive(Deserialize)]
struct RawInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    size: u64,
    sha256: String,
}

impl Hub {
    /// Asks for the files of `name` at `revision` (a branch, a tag or a commit).
    ///
    /// # Errors
    /// A name or revision that cannot exist, a refusal, an answer that is not a hub's.
    pub fn info(&self, name: &str, revision: &str) -> HubResult<RepoInfo> {
        if !is_repository(name) {
            return Err(HubError::BadName { name: name.to_owned() });
        }
        if !revision.split('/').all(is_plain_name) {
            return Err(HubError::BadName { name: revision.to_owned() });
        }
        let quoted = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{name}/revision/{quoted}?blobs=true", self.endpoint());
        let bytes = self.get(&url, MAX_INFO_BYTES)?;
        let strange = |what: String| HubError::NotAHub { url: url.clone(), what };
        let raw: RawInfo = serde_json::from_slice(&bytes).map_err(|error| {
            let html = bytes.trim_ascii_start().starts_with(b"<");
            strange(if html { "it sends a web page".to_owned() } else { error.to_string() })
        })?;
        if !is_plain_name(&raw.sha) {
            return Err(strange("its revision is not one".to_owned()));
        }
        let files = raw.siblings.into_iter().map(RemoteFile::checked).collect::<Result<_, _>>();
        let (name, revision) = (name.to_owned(), revision.to_owned());
        Ok(RepoInfo { name, revision, sha: raw.sha, files: files.map_err(strange)? })
    }

    /// Where the contents of a file are.
    pub(super) fn file_url(&self, info: &RepoInfo, path: &str) -> String {
        let path: Vec<String> = path.split('/').map(quoted).collect();
        format!("{}/{}/resolve/{}/{}", self.endpoint(), info.name, info.sha, path.join("/"))
    }
}

/// Percent-encodes what may not stand in a URL.
fn quoted(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let encode =
        |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    part.bytes().map(encode).collect()
}

impl RemoteFile {
    fn checked(raw: RawFile) -> Result<Self, String> {
        let path = raw.rfilename;
        let short: String = path.chars().filter(|c| !c.is_control()).take(80).collect();
        if !path.split('/').all(is_file_name) {
            return Err(format!("a file is called \"{short}\""));
        }
        let is_hex = |text: &str, digits| {
            text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let (size, checksum) = match (raw.lfs, raw.size, raw.blob_id) {
            (Some(lfs), ..) if is_hex(&lfs.sha256, 64) => (lfs.size, Checksum::Sha256(lfs.sha256)),
            (None, Some(size), Some(id)) if is_hex(&id, 40) => (size, Checksum::Git(id)),
            _ => return Err(format!("{short} has no size or no checksum")),
        };
        Ok(Self { path, size_bytes: size, checksum })
    }
}

/// Whether `name` may become the name of a file. Spaces and the like are fine, ways out are not.
fn is_file_name(name: &str) -> bool {
    let bad = |c: char| c.is_control() || matches!(c, '/' | '\\');
    !name.is_empty() && name != "." && name != ".." && name.len() < 256 && !name.contains(bad)
}

impl RepoInfo {
    /// The file at `path`.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<RemoteFile, String> {
        RemoteFile::checked(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn files_with_and_without_lfs() {
        let small = format!(r#"{{"rfilename":"a b/c","size":3,"blobId":"{}"}}"#, "0a".repeat(20));
        let file = check(&small).unwrap();
        assert_eq!((file.path.as_str(), file.size_bytes), ("a b/c", 3));
        let lfs = format!(
            r#"{{"rfilename":"m","size":9,"blobId":"x","lfs":{{"sha256":"{}","size":7}}}}"#,
            "0a".repeat(32)
        );
        assert_eq!(check(&lfs).unwrap().size_bytes, 7);
    }

    #[test]
    fn hostile_names_and_checksums_are_refused() {
        for name in ["../x", "/etc/passwd", "a/../../b", "a//b", "", "a\\u0000b", "..", "a\\\\b"] {
            let id = "0a".repeat(20);
            let json = format!(r#"{{"rfilename":"{name}","size":3,"blobId":"{id}"}}"#);
            assert!(check(&json).is_err(), "{name}");
        }
        assert!(check(r#"{"rfilename":"a","size":3,"blobId":"../../../x"}"#).is_err());
        assert!(check(r#"{"rfilename":"a","size":3}"#).is_err());
        assert!(check(r#"{"rfilename":"a","lfs":{"size":3,"sha256":"AB"}}"#).is_err());
    }

    #[test]
    fn urls_are_quoted() {
        assert_eq!(quoted("a b#ü?"), "a%20b%23%C3%BC%3F");
    }
}
