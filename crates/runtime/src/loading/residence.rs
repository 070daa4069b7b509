//! Residence of weights during use: mapped files, or anonymous memory.

use std::path::Path;

use mlxcel_core::KernelSet;

use crate::memory::AvailableMemory;

/// Weights below this are mapped: their page tables are small.
const WORTH_READING_BYTES: u64 = 64 << 20;

/// Residence of weights during use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Residence {
    /// Read where huge pages make the kernels faster and the memory for it is free, else mapped.
    #[default]
    Auto,
    /// Mapped files: nothing is read before its first use, and processes share the page cache.
    Mapped,
    /// Anonymous memory, in huge pages where the system has them: slower to load, faster to use.
    Read,
}

impl Residence {
    /// Returns true if weights of `bytes` are read into memory for kernels of `kernels`, given the
    /// memory that is free now.
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

/// Returns true if the system below `root` gives huge pages on request.
fn has_huge_pages(root: &Path) -> bool {
    let setting = root.join("sys/kernel/mm/transparent_hugepage/enabled");
    let setting = std::fs::read_to_string(setting).unwrap_or_default();
    ["[always]", "[madvise]"].iter().any(|on| setting.contains(on))
}

/// Returns true if so many bytes are available.
fn is_free(bytes: u64) -> bool {
    let available = AvailableMemory::measure().ok().and_then(|available| available.bytes);
    available.is_some_and(|available| bytes <= available)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_choices_are_kept() {
        for kernels in [KernelSet::Host, KernelSet::Mlx] {
            for bytes in [0, 1 << 30, u64::MAX] {
                assert!(Residence::Read.reads(bytes, kernels));
                assert!(!Residence::Mapped.reads(bytes, kernels));
            }
        }
    }

    #[test]
    fn auto_reads_only_large_weights_that_fit() {
        assert!(!Residence::Auto.reads(WORTH_READING_BYTES - 1, KernelSet::Host));
        assert!(!Residence::Auto.reads(WORTH_READING_BYTES, KernelSet::Mlx));
        assert!(!Residence::Auto.reads(u64::MAX, KernelSet::Host));
        let here = has_huge_pages(Path::new("/"));
        assert_eq!(Residence::Auto.reads(WORTH_READING_BYTES, KernelSet::Host), here);
    }

    #[test]
    fn huge_page_settings_of_linux_are_read() {
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
