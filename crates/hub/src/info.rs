//! Description of a repository: its revision and files, checked before they become paths.

use serde::Deserialize;

use super::HubError;
use super::client::{Hub, unexpected};
use super::error::{HubResult, UnexpectedResponse};
use super::hash::Checksum;
use super::local::{is_plain_name, is_repository};

/// Maximum size of the description of a repository.
const MAX_INFO_BYTES: u64 = 64 << 20;

/// A repository at one revision.
#[derive(Clone, Debug)]
pub struct RepoInfo {
    /// `org/name`.
    pub name: String,
    /// The revision as requested.
    pub revision: String,
    /// The commit.
    pub sha: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// Path in the repository; every part of it is a file name.
    pub path: String,
    /// Size of the file.
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
    /// Requests the description of `name` at `revision` (a branch, a tag or a commit).
    ///
    /// # Errors
    /// An invalid name or revision, a refusal, a response that is not a hub's.
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
        let raw: RawInfo = serde_json::from_slice(&bytes).map_err(|error| {
            let is_html = bytes.trim_ascii_start().starts_with(b"<");
            let response =
                if is_html { UnexpectedResponse::WebPage } else { UnexpectedResponse::Json(error) };
            unexpected(&url, response)
        })?;
        if !is_plain_name(&raw.sha) {
            return Err(unexpected(&url, UnexpectedResponse::Revision));
        }
        let mut files = Vec::new();
        for file in raw.siblings {
            files.push(RemoteFile::checked(file).map_err(|response| unexpected(&url, response))?);
        }
        Ok(RepoInfo { name: name.to_owned(), revision: revision.to_owned(), sha: raw.sha, files })
    }

    /// URL of the contents of a file.
    pub(super) fn file_url(&self, info: &RepoInfo, path: &str) -> String {
        let path: Vec<String> = path.split('/').map(percent_encoded).collect();
        format!("{}/{}/resolve/{}/{}", self.endpoint(), info.name, info.sha, path.join("/"))
    }
}

/// Percent-encodes all characters that are special in a URL.
fn percent_encoded(part: &str) -> String {
    let mut encoded = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Returns true if `text` is a hash of `digits` lowercase hexadecimal digits.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl RemoteFile {
    /// Returns true if the file is `PREFIX*.safetensors` at the top level.
    fn is_weights(&self, prefix: &str) -> bool {
        let path = &self.path;
        path.starts_with(prefix) && path.ends_with(".safetensors") && !path.contains('/')
    }

    fn checked(raw: RawFile) -> Result<Self, UnexpectedResponse> {
        let path = raw.rfilename;
        let name: String = path.chars().filter(|c| !c.is_control()).take(80).collect();
        if !path.split('/').all(is_file_name) {
            return Err(UnexpectedResponse::FileName { name });
        }
        let (size_bytes, checksum) = match (raw.lfs, raw.size, raw.blob_id) {
            (Some(lfs), ..) if is_hex(&lfs.sha256, 64) => (lfs.size, Checksum::Sha256(lfs.sha256)),
            (None, Some(size), Some(id)) if is_hex(&id, 40) => (size, Checksum::Git(id)),
            _ => return Err(UnexpectedResponse::NoChecksum { name }),
        };
        Ok(Self { path, size_bytes, checksum })
    }
}

/// Returns true if `name` is safe as the name of a file: spaces are fine, path separators are not.
fn is_file_name(name: &str) -> bool {
    let has_separator = name.contains(|c: char| c.is_control() || matches!(c, '/' | '\\'));
    !name.is_empty() && name != "." && name != ".." && name.len() < 256 && !has_separator
}

impl RepoInfo {
    /// Error of a repository without `wanted` files.
    pub(super) fn lacks(&self, wanted: String) -> HubError {
        HubError::NothingToDownload { name: self.name.clone(), wanted }
    }

    /// Weight files at the top level: `model*.safetensors`, or all safetensors files if none is
    /// called so, since other names hold the same weights again.
    pub(super) fn weight_files(&self) -> impl Iterator<Item = &RemoteFile> {
        let has_model = self.files.iter().any(|file| file.is_weights("model"));
        let prefix = if has_model { "model" } else { "" };
        self.files.iter().filter(move |file| file.is_weights(prefix))
    }

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
        RemoteFile::checked(serde_json::from_str(json).unwrap()).map_err(|error| error.to_string())
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
        assert_eq!(percent_encoded("a b#ü?"), "a%20b%23%C3%BC%3F");
    }
}
