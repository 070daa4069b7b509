//! Checksums of a hub: SHA-256 of large files, git's SHA-1 of small ones.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Expected hash of a file, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    /// Hash of the contents.
    Sha256(String),
    /// Hash of `blob SIZE\0` and the contents, as git names a file.
    Git(String),
}

/// A hash in progress.
pub(super) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Checksum {
    /// The hexadecimal digits: the name of the file in the cache.
    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }

    /// Starts the hash of a file of `size` bytes.
    pub(super) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Git(_) => Hasher::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn hex(self) -> String {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Git(hasher) => hex(&hasher.finalize()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf hello | sha256sum` and `printf hello | git hash-object --stdin`.
    #[test]
    fn known_checksums() {
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let git = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
        for sum in [Checksum::Sha256(sha256.to_owned()), Checksum::Git(git.to_owned())] {
            let mut hasher = sum.hasher(5);
            hasher.update(b"he");
            hasher.update(b"llo");
            assert_eq!(hasher.hex(), sum.hex());
        }
    }
}
