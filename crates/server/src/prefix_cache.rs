//! Prompt cache: keys and values of prompts that were read, shared copy on write.
//!
//! An entry is a prompt's cache with its tokens and images. A new prompt takes the longest prefix
//! that any entry has in common with it, to the token; the block in which it continues is copied
//! then. Generated tokens are not kept, since a decode step rounds differently from a prefill pass:
//! a completion that returns as part of a prompt is read as a prompt. When all entries together,
//! shared blocks counted once, exceed the limit, the least recently used entry is evicted.

use std::collections::HashMap;

use mlxcel_core::{FEW_TOKENS, SequenceCache};

use super::prompt::{ImageTokens, Prompt, PromptImage, before_image, block_end, images_within};

/// Length of the shortest prefix that is shared: a shorter prompt may have been computed as a decode
/// step.
const MIN_SHARED_TOKENS: usize = FEW_TOKENS + 1;

/// A fork of the first `tokens` tokens of `cache`. `None` for no tokens, where a sliding window has
/// dropped keys that a continuation would need, and where a recurrent state is already further: such
/// a state is saved as a copy at its current position, or not at all.
pub(super) fn fork_prefix(cache: &SequenceCache, tokens: usize) -> Option<SequenceCache> {
    if tokens == 0 {
        return None;
    }
    let mut fork = cache.fork();
    fork.trim(tokens).ok().map(|()| fork)
}

/// The part of `cache`, a beginning of `prompt`, that stays shared while a sequence continues it:
/// whole blocks, since the last one is copied. All of it where a sliding window cannot be trimmed
/// there.
pub(super) fn fork_whole_blocks(cache: &SequenceCache, prompt: &Prompt) -> Option<SequenceCache> {
    let tokens = block_end(&prompt.images, cache.tokens());
    (tokens > 0).then(|| fork_prefix(cache, tokens).unwrap_or_else(|| cache.fork()))
}

/// Bytes of all blocks that `caches` hold, each counted once.
pub(super) fn distinct_bytes<'a>(caches: impl IntoIterator<Item = &'a SequenceCache>) -> u64 {
    let mut blocks = HashMap::new();
    for cache in caches {
        cache.allocations(&mut |identity, bytes| {
            blocks.insert(identity, bytes as u64);
        });
    }
    blocks.values().sum()
}

/// Cached prefixes.
#[derive(Default)]
pub(super) struct PrefixCache {
    entries: Vec<PrefixEntry>,
    limit_bytes: u64,
    /// Counts uses; the entry with the smallest count was used least recently.
    clock: u64,
}

struct PrefixEntry {
    tokens: Vec<u32>,
    images: Vec<PromptImage>,
    cache: SequenceCache,
    last_use: u64,
}

impl PrefixEntry {
    fn key(&self) -> ImageTokens<'_> {
        ImageTokens { tokens: &self.tokens, images: &self.images }
    }

    /// Returns true if `other` begins with this entry.
    fn is_prefix_of(&self, other: &Self) -> bool {
        self.key().common_prefix(other.key()) == self.tokens.len()
    }
}

/// Part of an entry that a prompt could use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PrefixCandidate {
    tokens: usize,
    entry: usize,
}

impl PrefixCache {
    /// An empty cache; with a limit of 0 it stays empty.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, ..Self::default() }
    }

    /// Returns true if anything is ever kept.
    pub(super) fn is_enabled(&self) -> bool {
        self.limit_bytes > 0
    }

    /// The caches of all entries.
    pub(super) fn caches(&self) -> impl Iterator<Item = &SequenceCache> {
        self.entries.iter().map(|entry| &entry.cache)
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A fork of the longest cached prefix of `prompt`. It does not end within an image, and at least
    /// the last token is left to compute, for its logits. Where a cache cannot be trimmed to the
    /// common length (sealed blocks), whole blocks are taken.
    pub(super) fn find(&mut self, prompt: &Prompt) -> Option<SequenceCache> {
        let tokens = prompt.tokens.get(..prompt.last_shareable())?;
        let wanted = ImageTokens { tokens, images: &prompt.images };
        let mut candidates = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let common = before_image(&prompt.images, entry.key().common_prefix(wanted));
            for tokens in [common, block_end(&prompt.images, common)] {
                if tokens >= MIN_SHARED_TOKENS {
                    candidates.push(PrefixCandidate { tokens, entry: index });
                }
            }
        }
        candidates.sort_unstable_by(|one, other| other.cmp(one));
        let (cache, index) = candidates.into_iter().find_map(|candidate| {
            let entry = self.entries.get(candidate.entry)?;
            Some((fork_prefix(&entry.cache, candidate.tokens)?, candidate.entry))
        })?;
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(index) {
            entry.last_use = self.clock;
        }
        Some(cache)
    }

    /// Adds `cache`, which holds exactly `tokens` with `images` among them. An entry that it
    /// continues is dropped, since the shorter prefix can be trimmed from the longer one.
    pub(super) fn insert(&mut self, tokens: &[u32], images: &[PromptImage], cache: SequenceCache) {
        let is_short = tokens.len() < MIN_SHARED_TOKENS;
        if !self.is_enabled() || is_short || cache.tokens() != tokens.len() {
            return;
        }
        self.clock += 1;
        let last_use = self.clock;
        let images = images_within(images, tokens.len());
        let new = PrefixEntry { tokens: tokens.to_vec(), images, cache, last_use };
        let mut entries = self.entries.iter_mut();
        let known = entries
            .find(|entry| entry.is_prefix_of(&new) && entry.tokens.len() == new.tokens.len());
        if let Some(known) = known {
            known.last_use = last_use;
            return;
        }
        self.entries.retain(|entry| {
            !entry.is_prefix_of(&new) || fork_prefix(&new.cache, entry.tokens.len()).is_none()
        });
        self.entries.push(new);
        while self.entries.len() > 1 && distinct_bytes(self.caches()) > self.limit_bytes {
            self.evict();
        }
        if distinct_bytes(self.caches()) > self.limit_bytes {
            self.entries.clear();
        }
    }

    /// Drops the least recently used entry; `false` if there is none.
    pub(super) fn evict(&mut self) -> bool {
        let entries = self.entries.iter().enumerate();
        let oldest = entries.min_by_key(|(_, entry)| entry.last_use).map(|(index, _)| index);
        oldest.map(|index| self.entries.swap_remove(index)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use mlxcel_estimator::KvMode;
    use mlxcel_runtime::engine::{Engine, EngineConfig, ModelSource, NoProgress};
    use mlxcel_runtime::loading::Residence;
    use mlxcel_runtime::vision::ImagePlacement;
    use mlxcel_runtime::{ComputeDtype, KernelSet, OpsConfig, Precision};

    use super::*;

    fn tokens(len: usize, seed: u32) -> Vec<u32> {
        (0..u32::try_from(len).unwrap()).map(|i| (i * 31 + seed * 977) % 4096).collect()
    }

    fn text(tokens: &[u32]) -> Prompt {
        Prompt::text(tokens.to_vec())
    }

    #[test]
    fn prefixes_are_found_shared_and_evicted() {
        super::super::on_engine(find_share_and_evict);
    }

    fn find_share_and_evict() {
        let ops = OpsConfig {
            kernels: KernelSet::Host,
            threads: Some(1),
            precision: Precision::Int8,
            dtype: ComputeDtype::Checkpoint,
        };
        let (kv_mode, weights) = (KvMode::Turbo4, Residence::Auto);
        let config = EngineConfig { ops: ops.clone(), kv_mode, prefill_chunk: 512, weights };
        let engine = Engine::load(&ModelSource::BuiltIn, config, &mut NoProgress).unwrap();
        let filled = |tokens: usize| {
            let mut cache = engine.new_cache().unwrap();
            cache.fill_synthetic(engine.ops(), tokens).unwrap();
            cache
        };
        let one = filled(768);
        let bytes = distinct_bytes([&one]);
        assert_eq!(bytes, one.allocated_bytes() as u64);
        let mut prefixes = PrefixCache::new(2 * bytes);
        prefixes.insert(&tokens(768, 1), &[], fork_prefix(&one, 768).unwrap());
        assert_eq!(distinct_bytes(prefixes.caches().chain([&one])), bytes, "shared");

        let mut other = tokens(600, 1);
        other.extend(tokens(300, 9));
        assert_eq!(prefixes.find(&text(&other)).unwrap().tokens(), 600);
        assert_eq!(prefixes.find(&text(&tokens(768, 1))).unwrap().tokens(), 767, "one is computed");
        assert_eq!(prefixes.find(&text(&tokens(769, 1))).unwrap().tokens(), 768);
        assert_eq!(prefixes.find(&text(&tokens(10, 1))).unwrap().tokens(), 9);
        assert!(prefixes.find(&text(&tokens(9, 1))).is_none(), "too short");
        assert!(prefixes.find(&text(&tokens(900, 2))).is_none());

        prefixes.insert(&tokens(512, 1), &[], fork_prefix(&one, 512).unwrap());
        assert_eq!(distinct_bytes(prefixes.caches()), bytes);
        prefixes.insert(&tokens(768, 2), &[], filled(768));
        assert!(prefixes.find(&text(&tokens(900, 1))).is_some());
        prefixes.insert(&tokens(768, 3), &[], filled(768));
        assert!(prefixes.find(&text(&tokens(900, 2))).is_none(), "used longest ago");
        assert!(prefixes.find(&text(&tokens(900, 1))).is_some());
        while prefixes.evict() {}
        assert_eq!((prefixes.len(), distinct_bytes(prefixes.caches())), (0, 0));
        images_are_told_apart(&one);
        sealed_blocks_are_found_whole(&engine);
        drop((one, prefixes, filled));
        snapshots_of_states_are_found_where_they_were_made(ops, &tokens(600, 1));
    }

    /// Placeholders are equal, images are not; a prefix ends behind an image, never within one.
    fn images_are_told_apart(cache: &SequenceCache) {
        let image = |start: usize, digest: u8| PromptImage {
            tokens: start..start + 100,
            digest: [digest; 32],
            placement: ImagePlacement::InlineBidirectional,
        };
        let prompt = |length: usize, images: &[PromptImage]| Prompt {
            tokens: tokens(length, 1),
            images: images.to_vec(),
        };
        let both = [image(10, 1), image(300, 2)];
        let mut prefixes = PrefixCache::new(1 << 30);
        prefixes.insert(&tokens(400, 1), &both, fork_prefix(cache, 400).unwrap());
        let mut found = |prompt: &Prompt| {
            prefixes.find(prompt).map_or(0, |cache: SequenceCache| cache.tokens())
        };
        assert_eq!(found(&prompt(500, &both)), 400);
        assert_eq!(found(&prompt(350, &both[..1])), 300);
        assert_eq!(found(&prompt(500, &[image(10, 1), image(300, 3)])), 300);
        assert_eq!(found(&prompt(500, &[image(10, 3), image(300, 2)])), 10);
        assert_eq!(found(&prompt(500, &[])), 10, "text before the image");
        prefixes.insert(&tokens(400, 1), &[image(10, 3)], fork_prefix(cache, 400).unwrap());
        assert_eq!(prefixes.len(), 2, "another image is another entry");
        prefixes.insert(&tokens(500, 1), &both, fork_prefix(cache, 500).unwrap());
        assert_eq!(prefixes.len(), 2, "one that continues an entry takes its place");
    }

    /// A delegated mode is cut within its open block, and behind whole ones before that.
    fn sealed_blocks_are_found_whole(engine: &Engine) {
        let mut cache = engine.new_cache_in(KvMode::Turbo4Delegated).unwrap();
        cache.fill_synthetic(engine.ops(), 700).unwrap();
        let mut prefixes = PrefixCache::new(1 << 30);
        prefixes.insert(&tokens(700, 1), &[], fork_prefix(&cache, 700).unwrap());
        let mut found = |length: usize| {
            let mut prompt = tokens(length, 1);
            prompt.push(4095);
            prefixes.find(&text(&prompt)).map_or(0, |cache| cache.tokens())
        };
        assert_eq!([found(700), found(650), found(500), found(200)], [700, 650, 256, 0]);
    }

    /// A hybrid's state is found whole or not at all, and goes on as if nothing had been cached.
    fn snapshots_of_states_are_found_where_they_were_made(ops: OpsConfig, prompt: &[u32]) {
        let prompt: Vec<u32> = prompt.iter().map(|token| token % 512).collect();
        let folder = tempfile::tempdir().unwrap();
        let variant = &mlxcel_testing::golden::VARIANTS[0];
        mlxcel_testing::golden::checkpoint("qwen3_next", variant, folder.path()).unwrap();
        let (kv_mode, weights) = (KvMode::Fp16, Residence::Auto);
        let config = EngineConfig { ops, kv_mode, prefill_chunk: 512, weights };
        let source = ModelSource::Folder(folder.path().to_owned());
        let engine = Engine::load(&source, config, &mut NoProgress).unwrap();
        let read = |tokens: &[u32], cache: &mut SequenceCache| {
            engine.prefill(tokens, cache, &mut NoProgress).unwrap()
        };
        let mut cache = engine.new_cache().unwrap();
        read(&prompt[..512], &mut cache);
        let mut prefixes = PrefixCache::new(1 << 30);
        prefixes.insert(&prompt[..512], &[], fork_prefix(&cache, 512).unwrap());
        assert!(fork_prefix(&cache, 256).is_none(), "a state cannot go back");
        // The keys and values are shared, the states are copies of their own.
        let bytes = distinct_bytes(prefixes.caches().chain([&cache]));
        let alone = cache.allocated_bytes() as u64;
        assert!(alone < bytes && bytes < 2 * alone, "{alone} {bytes}");

        let expected = read(&prompt[512..], &mut cache);
        assert!(fork_prefix(&cache, 512).is_none(), "it has gone further");
        assert!(prefixes.find(&text(&prompt[..500])).is_none());
        let mut hit = prefixes.find(&text(&prompt)).unwrap();
        assert_eq!(hit.tokens(), 512);
        assert_eq!(read(&prompt[512..], &mut hit), expected);
        assert_eq!(read(&prompt[512..], &mut prefixes.find(&text(&prompt)).unwrap()), expected);
    }
}
