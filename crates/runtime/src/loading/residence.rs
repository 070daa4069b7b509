//! Where weights lie while they are used: in their files, mapped, or in memory of our own.

use std::path::Path;

use mlxcel_core::KernelSet;

use crate::memory::AvailableMemory;

/// Weights below this are mapped: the processor finds their addresses quickly anyhow.
const WORTH_READING_BYTES: u64 = 64 << 20;

/// Where weights lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Residence {
    /// Read where huge pages make the kernels faster and the memory for it is free, else mapped.
    #[default]
    Auto,
    /// In their files: nothing is read before it is used, and processes share what is cached.
    Mapped,
    /// In memory of our own, in huge pages where the system has them: slower to load, faster to use.
    Read,
}

impl Residence {
    /// Whether weights of `bytes` are read for kernels of `kernels` on this machine as it is now.
    #[must_use]
    pub fn reads(self, bytes: u64, kernels: KernelSet) -> bool {
        match self {
            Self::Mapped => false,
            Self::Read => true,
            Self::Auto => {
                let pays = kernels == KernelSet::Host && bytes >= WORTH_READING_BYTES;
                pays && has_huge_pages(Path::new("/")) && is_free(bytes)
            }
        }
    }
}

/// Whether the system below `root` gives huge pages to who asks for them.
fn has_huge_pages(root: &Path) -> bool {
    let setting = root.join("sys/kernel/mm/transparent_hugepage/enabled");
    let setting = std::fs::read_to_string(setting).unwrap_or_default();
    ["[always]", "[madvise]"].iter().any(|on| setting.contains(on))
}

/// Whether so much memory is free beside what the files take in the system's cache.
fn is_free(bytes: u64) -> bool {
    let available = AvailableMemory::measure().ok().and_then(|available| available.bytes);
    available.is_some_and(|available| bytes <= available)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_was_asked_for() {
        for kernels in [KernelSet::Host, KernelSet::Mlx] {
            for bytes in [0, 1 << 30, u64::MAX] {
                assert!(Residence::Read.reads(bytes, kernels));
                assert!(!Residence::Mapped.reads(bytes, kernels));
            }
        }
    }

    #[test]
    fn reads_by_itself_only_where_that_pays_and_fits() {
        assert!(!Residence::Auto.reads(WORTH_READING_BYTES - 1, KernelSet::Host));
        assert!(!Residence::Auto.reads(WORTH_READING_BYTES, KernelSet::Mlx));
        assert!(!Residence::Auto.reads(u64::MAX, KernelSet::Host));
        let here = has_huge_pages(Path::new("/"));
        assert_eq!(Residence::Auto.reads(WORTH_READING_BYTES, KernelSet::Host), here);
    }

    #[test]
    fn knows_the_settings_of_linux() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/kernel/mm/transparent_hugepage");
        assert!(!has_huge_pages(root.path()));
        std::fs::create_dir_all(&folder).unwrap();
        for (setting, on) in [
            ("always [madvise] never\n", true),
            ("[always] madvise never\n", true),
            ("always madvise [never]\n", false),
        ] {
            std::fs::write(folder.join("enabled"), setting).unwrap();
            assert_eq!(has_huge_pages(root.path()), on, "{setting}");
        }
    }
}
