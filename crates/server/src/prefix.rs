//! Cached prefixes: the keys and values of prompts that were read, shared copy on write.
//!
//! An entry is a prompt's cache with its tokens and images. A new prompt takes the longest prefix that
//! any entry has in common with it, to the token: a block that it goes on in is copied then. What was
//! generated is not kept, since a step of decoding rounds otherwise than a prompt's pass: an answer that
//! comes back as a part of a prompt is read as one. The entry used longest ago goes first when the
//! bytes of all, blocks that several share counted once, exceed the limit.

use std::collections::HashMap;

use mlxcel_core::{FEW_TOKENS, SequenceCache};

use super::prompt::{ImageKey, Prompt, common, cut, outside, seen};

/// The shortest prefix that is shared: a shorter prompt may have been computed as a step.
const LEAST_SHARED_TOKENS: usize = FEW_TOKENS + 1;

/// A part of `cache` that others may hold: its first `tokens` tokens; `None` where there is none, where
/// a sliding window has dropped what a continuation would see, or where a recurrent state has gone
/// further: such a state is kept as a copy of where it is, or not at all.
pub(super) fn share(cache: &SequenceCache, tokens: usize) -> Option<SequenceCache> {
    if tokens == 0 {
        return None;
    }
    let mut fork = cache.fork();
    fork.trim(tokens).ok().map(|()| fork)
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

/// The entries.
#[derive(Default)]
pub(super) struct PrefixCache {
    entries: Vec<Entry>,
    limit_bytes: u64,
    /// Counts uses; the entry with the smallest count was used longest ago.
    clock: u64,
}

struct Entry {
    tokens: Vec<u32>,
    images: Vec<ImageKey>,
    cache: SequenceCache,
    used: u64,
}

impl PrefixCache {
    /// Nothing yet; a limit of 0 keeps it so.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, ..Self::default() }
    }

    /// Whether anything is ever kept.
    pub(super) fn enabled(&self) -> bool {
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

    /// The longest prefix of `prompt` that is there, not within an image and short of the last token,
    /// which must be computed for its logits; where a cache cannot be cut there (sealed blocks),
    /// the longest of whole blocks. The result is the caller's own.
    pub(super) fn find(&mut self, prompt: &Prompt) -> Option<SequenceCache> {
        let most = prompt.last_end();
        let wanted = (prompt.tokens.get(..most)?, prompt.images.as_slice());
        let mut candidates: Vec<(usize, usize)> = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (common((&entry.tokens, &entry.images), wanted), index))
            .map(|(tokens, index)| (outside(&prompt.images, tokens), index))
            .flat_map(|(tokens, index)| [(tokens, index), (cut(&prompt.images, tokens), index)])
            .filter(|(tokens, _)| *tokens >= LEAST_SHARED_TOKENS)
            .collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        let (cache, index) = candidates.into_iter().find_map(|(tokens, index)| {
            Some((share(&self.entries.get(index)?.cache, tokens)?, index))
        })?;
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(index) {
            entry.used = self.clock;
        }
        Some(cache)
    }

    /// Keeps `cache`, which holds exactly `tokens` with `images` among them; an entry that it
    /// continues is dropped, since a shorter prefix can be cut from the longer one.
    pub(super) fn insert(&mut self, tokens: &[u32], images: &[ImageKey], cache: SequenceCache) {
        let short = tokens.len() < LEAST_SHARED_TOKENS;
        if !self.enabled() || short || cache.tokens() != tokens.len() {
            return;
        }
        self.clock += 1;
        let used = self.clock;
        let images = seen(images, tokens.len());
        let new = Entry { tokens: tokens.to_vec(), images, cache, used };
        let continues = |entry: &Entry| {
            common((&entry.tokens, &entry.images), (&new.tokens, &new.images)) == entry.tokens.len()
        };
        let same = |entry: &&mut Entry| continues(entry) && entry.tokens.len() == new.tokens.len();
        if let Some(known) = self.entries.iter_mut().find(same) {
            known.used = used;
            return;
        }
        let shorter =
            |entry: &Entry| continues(entry) && share(&new.cache, entry.tokens.len()).is_some();
        self.entries.retain(|entry| !shorter(entry));
        self.entries.push(new);
        while self.entries.len() > 1 && distinct_bytes(self.caches()) > self.limit_bytes {
            self.evict();
        }
        if distinct_bytes(self.caches()) > self.limit_bytes {
            self.entries.clear();
        }
    }

    /// Drops the entry used longest ago; `false` when there is none.
    pub(super) fn evict(&mut self) -> bool {
        let oldest = (0..self.entries.len()).min_by_key(|i| self.entries.get(*i).map(|e| e.used));
        oldest.map(|index| self.entries.swap_remove(index)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxcel_estimator::KvMode;
    use mlxcel_runtime::engine::{Engine, EngineConfig, ModelSource, NoProgress};
    use mlxcel_runtime::loading::Residence;
    use mlxcel_runtime::vision::ImagePlacement;
    use mlxcel_runtime::{ComputeDtype, KernelSet, OpsConfig, Precision};

    fn tokens(len: usize, seed: u32) -> Vec<u32> {
        (0..u32::try_from(len).unwrap()).map(|i| (i * 31 + seed * 977) % 4096).collect()
    }

    fn text(tokens: &[u32]) -> Prompt {
        Prompt::text(tokens.to_vec())
    }

    /// One engine for all cases: MLX belongs to one thread.
    #[test]
    fn prefixes_are_found_shared_and_evicted() {
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
        prefixes.insert(&tokens(768, 1), &[], share(&one, 768).unwrap());
        assert_eq!(distinct_bytes(prefixes.caches().chain([&one])), bytes, "shared");

        let mut other = tokens(600, 1);
        other.extend(tokens(300, 9));
        assert_eq!(prefixes.find(&text(&other)).unwrap().tokens(), 600);
        assert_eq!(prefixes.find(&text(&tokens(768, 1))).unwrap().tokens(), 767, "one is computed");
        assert_eq!(prefixes.find(&text(&tokens(769, 1))).unwrap().tokens(), 768);
        assert_eq!(prefixes.find(&text(&tokens(10, 1))).unwrap().tokens(), 9);
        assert!(prefixes.find(&text(&tokens(9, 1))).is_none(), "too short");
        assert!(prefixes.find(&text(&tokens(900, 2))).is_none());

        prefixes.insert(&tokens(512, 1), &[], share(&one, 512).unwrap());
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
        let image = |start: usize, digest: u8| ImageKey {
            tokens: start..start + 100,
            digest: [digest; 32],
            reading: ImagePlacement::InlineBidirectional,
        };
        let prompt = |length: usize, images: &[ImageKey]| Prompt {
            tokens: tokens(length, 1),
            images: images.to_vec(),
        };
        let both = [image(10, 1), image(300, 2)];
        let mut prefixes = PrefixCache::new(1 << 30);
        prefixes.insert(&tokens(400, 1), &both, share(cache, 400).unwrap());
        let mut found = |prompt: &Prompt| {
            prefixes.find(prompt).map_or(0, |cache: SequenceCache| cache.tokens())
        };
        assert_eq!(found(&prompt(500, &both)), 400);
        assert_eq!(found(&prompt(350, &both[..1])), 300);
        assert_eq!(found(&prompt(500, &[image(10, 1), image(300, 3)])), 300);
        assert_eq!(found(&prompt(500, &[image(10, 3), image(300, 2)])), 10);
        assert_eq!(found(&prompt(500, &[])), 10, "text before the image");
        prefixes.insert(&tokens(400, 1), &[image(10, 3)], share(cache, 400).unwrap());
        assert_eq!(prefixes.len(), 2, "another image is another entry");
        prefixes.insert(&tokens(500, 1), &both, share(cache, 500).unwrap());
        assert_eq!(prefixes.len(), 2, "one that continues an entry takes its place");
    }

    /// A delegated mode is cut within its open block, and behind whole ones before that.
    fn sealed_blocks_are_found_whole(engine: &Engine) {
        let mut cache = engine.new_cache_in(KvMode::Turbo4Delegated).unwrap();
        cache.fill_synthetic(engine.ops(), 700).unwrap();
        let mut prefixes = PrefixCache::new(1 << 30);
        prefixes.insert(&tokens(700, 1), &[], share(&cache, 700).unwrap());
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
        prefixes.insert(&prompt[..512], &[], share(&cache, 512).unwrap());
        assert!(share(&cache, 256).is_none(), "a state cannot go back");
        // The keys and values are shared, the states are copies of their own.
        let bytes = distinct_bytes(prefixes.caches().chain([&cache]));
        let alone = cache.allocated_bytes() as u64;
        assert!(alone < bytes && bytes < 2 * alone, "{alone} {bytes}");

        let expected = read(&prompt[512..], &mut cache);
        assert!(share(&cache, 512).is_none(), "it has gone further");
        assert!(prefixes.find(&text(&prompt[..500])).is_none());
        let mut hit = prefixes.find(&text(&prompt)).unwrap();
        assert_eq!(hit.tokens(), 512);
        assert_eq!(read(&prompt[512..], &mut hit), expected);
        assert_eq!(read(&prompt[512..], &mut prefixes.find(&text(&prompt)).unwrap()), expected);
    }
}
