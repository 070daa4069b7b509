//! Sequences of several layers, and what a person could ask of a cache that it cannot do.

use std::num::NonZeroUsize;

use super::*;
use crate::AttentionSpec;
use crate::ops::{ComputeDtype, OpsConfig, Precision};

fn ops() -> Ops {
    Ops::new(&OpsConfig {
        kernels: KernelSet::Host,
        threads: Some(1),
        precision: Precision::Exact,
        dtype: ComputeDtype::Checkpoint,
    })
    .unwrap()
}

fn layer(dim: usize, window: Option<usize>) -> LayerLayout {
    let window = window.and_then(NonZeroUsize::new);
    LayerLayout { kv_heads: 2, key_dim: dim, value_dim: dim, window, latent: false }
}

fn filled(ops: &Ops, layers: &[LayerLayout], tokens: usize) -> SequenceCache {
    let cache = SequenceCache::new(ops, layers, KvMode::Int8).unwrap();
    cache.fill_synthetic(ops, tokens).unwrap();
    cache
}

fn message<T>(result: Result<T>) -> String {
    result.err().map_or_else(String::new, |error| error.to_string())
}

#[test]
fn a_token_takes_what_the_estimator_says_in_every_layer() {
    let layers = [layer(128, None), layer(64, Some(512))];
    for (mode, expected) in [
        (KvMode::Fp16, 2 * (512 + 256)),
        (KvMode::Int8Turbo4, 2 * (196 + 100)),
        (KvMode::Turbo4, 2 * (132 + 68)),
    ] {
        assert_eq!(SequenceCache::bytes_per_token(&layers, mode).unwrap(), expected, "{mode}");
    }
    let odd = SequenceCache::bytes_per_token(&[layer(80, None)], KvMode::Turbo4);
    assert!(message(odd).contains("80 is not a power of two"));
}

#[test]
fn a_trim_that_fails_in_one_layer_changes_none() {
    let ops = ops();
    let cache = filled(&ops, &[layer(64, None), layer(64, Some(256))], 1000);
    for tokens in [1001, usize::MAX] {
        assert!(message(cache.trim(tokens)).contains("cannot trim 1000 tokens"));
    }
    cache.reserve(1).unwrap();
    let bytes = cache.allocated_bytes();
    assert!(message(cache.trim(600)).contains("the sliding window has dropped"));
    assert_eq!((cache.tokens(), cache.allocated_bytes()), (1000, bytes));
    cache.trim(0).unwrap();
    assert_eq!((cache.tokens(), cache.allocated_bytes()), (0, 0));
}

#[test]
fn a_fork_has_its_own_length() {
    let ops = ops();
    let cache = filled(&ops, &[layer(64, None)], 700);
    let fork = cache.fork();
    fork.trim(100).unwrap();
    assert_eq!((cache.tokens(), fork.tokens()), (700, 100));
    assert_eq!(cache.allocated_bytes(), 3 * fork.allocated_bytes());
}

#[test]
fn what_is_too_long_or_has_no_window_is_an_error() {
    let ops = ops();
    let cache = filled(&ops, &[layer(64, None)], 5);
    assert!(message(cache.reserve(usize::MAX)).contains("overflows"));
    assert!(message(cache.fill_synthetic(&ops, 1)).contains("only an empty cache"));
    assert!(message(cache.layer(1)).contains("layer 1 of 1"));
    let empty = SequenceCache::new(&ops, &[layer(64, None)], KvMode::Int8).unwrap();
    assert!(message(empty.fill_synthetic(&ops, usize::MAX)).contains("too many"));
    let window = AttentionSpec::causal(2, 2, 64).with_window(Some(0));
    assert!(message(window).contains("a sliding window of 0 tokens"));
}

#[test]
fn a_mode_that_a_layer_cannot_hold_is_refused() {
    let ops = ops();
    for mode in KvMode::ALL {
        let refused = SequenceCache::check(&ops, &[layer(64, None), layer(80, None)], mode);
        assert_eq!(refused.is_err(), mode.is_turbo(), "{mode}");
    }
}
