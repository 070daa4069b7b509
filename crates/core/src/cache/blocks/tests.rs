//! Blocks against a `Vec` of all rows ever appended: attention reads the rows that were written,
//! and bytes are the estimator's.

use std::num::NonZeroUsize;

use mlxcel_estimator::{CacheType, KvMode, LayerState, SequenceTokens};
use mlxcel_kernels::Order;
use mlxcel_kernels::attention::{AttentionParams, AttentionRun, Mask, attention};
use mlxcel_kernels::kv::BlockSide;
use proptest::prelude::*;

use super::*;

const HEADS: usize = 2;
const DIM: usize = 32;
const ROW: usize = HEADS * DIM;

/// A sequence and all that was appended to it.
#[derive(Clone)]
struct Sequence {
    cache: BlockCache,
    k: Vec<f32>,
    v: Vec<f32>,
    window: Option<usize>,
    sealed: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Append { sequence: usize, tokens: usize, seed: u64 },
    Fork { sequence: usize },
    Trim { sequence: usize, back: usize },
}

impl Sequence {
    fn new(mode: KvMode, window: Option<usize>) -> Self {
        let layout = layout(window);
        let cache = BlockCache::new(&layout, mode.into()).unwrap();
        Self { cache, k: Vec::new(), v: Vec::new(), window, sealed: 0 }
    }

    fn tokens(&self) -> usize {
        self.k.len() / ROW
    }

    fn allocated_bytes(&self) -> u64 {
        let mut sum = 0;
        self.cache.allocations(&mut |_, bytes| sum += bytes as u64);
        sum
    }

    /// Appends as a pass does: all at once, or block by block where blocks are sealed.
    fn append(&mut self, pool: &Pool, tokens: usize, seed: u64) {
        let (k, v) = (noise(tokens * ROW, seed), noise(tokens * ROW, !seed));
        let (mut at, end) = (self.tokens(), self.tokens() + tokens);
        self.cache.reserve_alone(at, end).unwrap();
        let by_block = self.cache.breaks_at_blocks();
        let mut done = 0;
        while at < end {
            let step = if by_block {
                (KV_BLOCK_TOKENS - at % KV_BLOCK_TOKENS).min(end - at)
            } else {
                end - at
            };
            self.cache.seal_before(pool, at).unwrap();
            let rows = done * ROW..(done + step) * ROW;
            self.cache.append(pool, at, &k[rows.clone()], &v[rows]).unwrap();
            self.sealed = self.sealed.max(at / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS);
            (at, done) = (at + step, done + step);
        }
        self.k.extend(k);
        self.v.extend(v);
    }

    /// Checks that the queries of the last `tokens` tokens read the same from these blocks as from
    /// blocks that dropped nothing.
    fn check_attention(&self, pool: &Pool, tokens: usize) {
        // Queries of a delegated mode see sealed and open values, block by block.
        let Some(window) = self.window.filter(|_| !self.cache.breaks_at_blocks()) else { return };
        let mut whole = Self::empty(&self.cache);
        whole.cache.reserve_alone(0, self.tokens()).unwrap();
        whole.cache.append(pool, 0, &self.k, &self.v).unwrap();
        let position = self.tokens() - tokens;
        let got = attend(pool, &self.cache, position, tokens, window);
        let want = attend(pool, &whole.cache, position, tokens, window);
        let error = distance(&got, &want);
        assert!(error < 1e-4, "window {window}, {tokens} queries from {position}: {error}");
    }

    /// The same formats, no window, no tokens.
    fn empty(like: &BlockCache) -> Self {
        let cache = BlockCache {
            format: LayerFormat { sealed: None, ..like.format },
            window: None,
            blocks: VecDeque::new(),
            dropped: 0,
            wrapped: false,
            end: 0,
            lost: 0,
        };
        Self { cache, k: Vec::new(), v: Vec::new(), window: None, sealed: 0 }
    }

    /// The first position that the next query sees.
    fn seen_from(&self, tokens: usize) -> usize {
        self.window.map_or(0, |window| (tokens + 1).saturating_sub(window))
    }

    /// Trims, or leaves everything as it was where that is refused.
    fn trim(&mut self, tokens: usize) {
        let sealed_place = self.cache.breaks_at_blocks()
            && tokens < self.sealed
            && !tokens.is_multiple_of(KV_BLOCK_TOKENS);
        let done = self.cache.trim(tokens).is_ok();
        let whole = self.window.is_none() || tokens == 0 || tokens == self.tokens();
        if whole {
            assert_eq!(done, !sealed_place, "trim of {} to {tokens}", self.tokens());
        }
        if done {
            self.k.truncate(tokens * ROW);
            self.v.truncate(tokens * ROW);
            self.sealed = self.sealed.min(tokens);
        }
    }

    /// Compares every position that a query could see with what was appended.
    fn check(&self, mode: KvMode) {
        let (blocks, first) = self.cache.view();
        let seen = self.seen_from(self.tokens());
        assert!(first <= seen, "tokens from {seen} on are needed, held are those from {first} on");
        let open = self.tokens().saturating_sub(1) / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS;
        for position in seen..self.tokens() {
            let block = blocks[(position - first) / KV_BLOCK_TOKENS];
            let at = position % KV_BLOCK_TOKENS;
            let values = match mode.values() {
                CacheType::Turbo4Delegated if position >= open.max(self.sealed) => CacheType::Fp16,
                other => other,
            };
            let sides =
                [(BlockSide::Key, &self.k, mode.keys()), (BlockSide::Value, &self.v, values)];
            for (side, rows, stored) in sides {
                let mut got = [0.0; ROW];
                block.dequantise(side, at..at + 1, &mut got).unwrap();
                let want = &rows[position * ROW..(position + 1) * ROW];
                let error = distance(&got, want);
                assert!(error < tolerance(stored), "{mode} {side:?} {position}: {error}");
            }
        }
    }
}

/// What `tokens` queries from `position` on read out of `cache`.
fn attend(
    pool: &Pool,
    cache: &BlockCache,
    position: usize,
    tokens: usize,
    window: usize,
) -> Vec<f32> {
    let (blocks, first) = cache.view();
    let q = noise(tokens * ROW, 99);
    let run = AttentionRun {
        q: &q,
        first_position: position,
        blocks: &blocks,
        first_block_position: first,
        first_key: 0,
        kv_tokens: position + tokens - first,
    };
    let params = AttentionParams {
        query_heads: HEADS,
        kv_heads: HEADS,
        key_dim: DIM,
        value_dim: DIM,
        scale: 0.2,
        softcap: None,
        sinks: None,
        window: Some(window),
        mask: Mask::Causal,
        order: Order::Fastest,
    };
    let mut out = vec![0.0; q.len()];
    attention(pool, &params, &[run], &mut out).unwrap();
    out
}

/// ‖a − b‖ / ‖b‖; about 1.4 for vectors that have nothing to do with each other.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let square = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (square(&difference) / square(b)).sqrt()
}

/// Several times the error of the format, far below that of a wrong vector.
fn tolerance(stored: CacheType) -> f32 {
    match stored {
        CacheType::Fp16 => 1e-3,
        CacheType::Int8 => 2e-2,
        CacheType::Turbo4 | CacheType::Turbo4Delegated => 0.25,
        _ => 0.45,
    }
}

fn layout(window: Option<usize>) -> LayerLayout {
    let window = window.and_then(NonZeroUsize::new);
    LayerLayout { kv_heads: HEADS, key_dim: DIM, value_dim: DIM, window, latent: false }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tokens = prop_oneof![1..4usize, 1..700usize, Just(256)];
    let step = prop_oneof![
        5 => (0..3usize, tokens, any::<u64>())
            .prop_map(|(sequence, tokens, seed)| Step::Append { sequence, tokens, seed }),
        1 => (0..3usize).prop_map(|sequence| Step::Fork { sequence }),
        2 => (0..3usize, 0..600usize).prop_map(|(sequence, back)| Step::Trim { sequence, back }),
    ];
    prop::collection::vec(step, 1..14)
}

fn run(mode: KvMode, window: Option<usize>, steps: &[Step]) {
    let pool = Pool::new(1).unwrap();
    let mut sequences = vec![Sequence::new(mode, window)];
    for step in steps {
        let count = sequences.len();
        match *step {
            Step::Append { sequence, tokens, seed } => {
                let sequence = &mut sequences[sequence % count];
                sequence.append(&pool, tokens, seed);
                sequence.check_attention(&pool, tokens);
            }
            Step::Fork { sequence } => sequences.push(sequences[sequence % count].clone()),
            Step::Trim { sequence, back } => {
                let sequence = &mut sequences[sequence % count];
                sequence.trim(sequence.tokens().saturating_sub(back));
            }
        }
        sequences.iter().for_each(|sequence| sequence.check(mode));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn blocks_hold_appended_rows(
        mode in prop::sample::select(&KvMode::ALL[..]),
        window in prop_oneof![Just(None), (1..900usize).prop_map(Some), Just(Some(512))],
        steps in steps(),
    ) {
        run(mode, window, &steps);
    }
}

/// The estimator's bytes for one sequence of `context` tokens whose last pass had `chunk`.
fn formula(mode: KvMode, window: Option<usize>, context: usize, chunk: usize) -> u64 {
    let (heads, dim) = (HEADS as u64, DIM as u64);
    let window = window.map(|window| window as u64);
    let kept = LayerState::Attention { kv_heads: heads, key_dim: dim, value_dim: dim, window };
    let beyond_window = chunk as u64 - 1;
    let tokens = SequenceTokens { context: context as u64, beyond_window, images: 0 };
    kept.cache_bytes(mode, tokens).unwrap().total()
}

#[test]
fn bytes_are_the_estimators_for_every_mode() {
    let pool = Pool::new(1).unwrap();
    for mode in KvMode::ALL {
        let mut sequence = Sequence::new(mode, None);
        for tokens in [1, 254, 1, 1, 255, 1, 700] {
            sequence.append(&pool, tokens, 7);
            let expected = formula(mode, None, sequence.tokens(), tokens);
            let what = format!("{mode} at {} tokens", sequence.tokens());
            assert_eq!(sequence.allocated_bytes(), expected, "{what}");
        }
    }
}

#[test]
fn a_synthetic_fill_is_sealed_like_a_sequence() {
    let pool = Pool::new(1).unwrap();
    for mode in KvMode::ALL {
        for tokens in [100, 600, 1000] {
            let mut sequence = Sequence::new(mode, None);
            sequence.cache.fill_synthetic(&pool, tokens).unwrap();
            let expected = formula(mode, None, tokens, 1);
            let got = sequence.allocated_bytes();
            assert_eq!(got, expected, "{mode} at {tokens} tokens");
            let (blocks, _) = sequence.cache.view();
            let open: Vec<_> =
                blocks.iter().map(|b| *b.layout() == sequence.cache.format.open).collect();
            let seals = sequence.cache.breaks_at_blocks();
            let last = open.len() - 1;
            assert!(open.iter().enumerate().all(|(at, open)| *open == (!seals || at == last)));
        }
    }
}

#[test]
fn bytes_of_a_windowed_layer_are_the_estimators() {
    let pool = Pool::new(1).unwrap();
    // Delegated blocks do not rotate: see the module.
    for mode in KvMode::ALL.into_iter().filter(|mode| *mode != KvMode::Turbo4Delegated) {
        for window in [1, 100, 256, 512, 700] {
            let mut sequence = Sequence::new(mode, Some(window));
            for chunk in [512, 512, 512, 300] {
                sequence.append(&pool, chunk, 3);
                let expected = formula(mode, Some(window), sequence.tokens(), chunk);
                let got = sequence.allocated_bytes();
                assert!(got <= expected, "{mode} {window}: {got} of {expected}");
            }
            // What a chunk needed more is given back within a block.
            (0..256).for_each(|token| sequence.append(&pool, 1, token));
            for token in 0..300 {
                sequence.append(&pool, 1, token);
                let expected = formula(mode, Some(window), sequence.tokens(), 1);
                let what = format!("{mode} window {window} at {} tokens", sequence.tokens());
                assert_eq!(sequence.allocated_bytes(), expected, "{what}");
            }
            sequence.check(mode);
        }
    }
}

#[test]
fn a_sealed_block_is_trimmed_to_its_start_only() {
    let pool = Pool::new(1).unwrap();
    let mut sequence = Sequence::new(KvMode::Turbo4Delegated, None);
    sequence.append(&pool, 600, 1);
    let error = sequence.cache.trim(300).unwrap_err().to_string();
    assert!(error.contains("the block from 256 on is sealed; trim to 256"), "{error}");
    sequence.trim(520);
    sequence.trim(512);
    sequence.trim(256);
    assert_eq!(sequence.tokens(), 256);
    sequence.append(&pool, 300, 2);
    sequence.check(KvMode::Turbo4Delegated);
}

#[test]
fn dropped_tokens_cannot_be_trimmed_to() {
    let pool = Pool::new(1).unwrap();
    let mut sequence = Sequence::new(KvMode::Fp16, Some(300));
    sequence.append(&pool, 1000, 1);
    sequence.append(&pool, 1, 2);
    let error = sequence.cache.trim(500).unwrap_err().to_string();
    assert!(error.contains("cannot trim to 500 tokens: the sliding window"), "{error}");
    sequence.check(KvMode::Fp16);
    sequence.trim(0);
    assert_eq!(sequence.tokens(), 0);
    sequence.append(&pool, 10, 3);
    sequence.check(KvMode::Fp16);
}

#[test]
fn a_chunk_after_single_tokens_attends_to_them() {
    let pool = Pool::new(1).unwrap();
    let mut sequence = Sequence::new(KvMode::Fp16, Some(512));
    for tokens in [512, 512].into_iter().chain([1; 6]) {
        sequence.append(&pool, tokens, 5);
    }
    assert!(sequence.cache.wrapped);
    let mut fork = sequence.clone();
    sequence.append(&pool, 300, 6);
    for sequence in [&sequence, &fork] {
        sequence.check(KvMode::Fp16);
    }
    sequence.check_attention(&pool, 300);
    fork.append(&pool, 1, 7);
    fork.check_attention(&pool, 1);
    sequence.check(KvMode::Fp16);
}

/// A trim unshares a block, but overwritten tokens stay lost.
#[test]
fn overwritten_tokens_stay_lost_after_two_trims() {
    let append = |tokens| Step::Append { sequence: 0, tokens, seed: 3 };
    let trim = |back| Step::Trim { sequence: 0, back };
    let steps = [append(372), append(579), append(74), trim(129), trim(83)];
    run(KvMode::Fp16, Some(814), &steps);
}
