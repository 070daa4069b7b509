//! Sequences of several layers, and requests that a cache must refuse.

use std::num::NonZeroUsize;

use super::*;
use crate::{AttentionSpec, ComputeDtype, KernelSet, Ops, OpsConfig, Precision};

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
    let mut cache = SequenceCache::new(ops, layers, KvMode::Int8).unwrap();
    cache.fill_synthetic(ops, tokens).unwrap();
    cache
}

fn message<T>(result: Result<T>) -> String {
    result.err().map_or_else(String::new, |error| error.to_string())
}

#[test]
fn bytes_per_token_are_the_estimators() {
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
    let mut cache = filled(&ops, &[layer(64, None), layer(64, Some(256))], 1000);
    for tokens in [1001, usize::MAX] {
        assert!(message(cache.trim(tokens)).contains("it holds 1000"));
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
    let mut fork = cache.fork();
    fork.trim(100).unwrap();
    assert_eq!((cache.tokens(), fork.tokens()), (700, 100));
    assert_eq!(cache.allocated_bytes(), 3 * fork.allocated_bytes());
}

#[test]
fn too_many_tokens_and_empty_windows_are_refused() {
    let ops = ops();
    let mut cache = filled(&ops, &[layer(64, None)], 5);
    assert!(message(cache.reserve(usize::MAX)).contains("no overflow"));
    assert!(message(cache.fill_synthetic(&ops, 1)).contains("needs an empty cache"));
    let layer_1 = cache.storage_mut::<HostCaches>().layer_mut(1);
    assert!(message(layer_1).contains("attention layer 1 is out of range: there are 1"));
    let mut empty = SequenceCache::new(&ops, &[layer(64, None)], KvMode::Int8).unwrap();
    assert!(message(empty.fill_synthetic(&ops, usize::MAX)).contains("less than 2^31"));
    let window = AttentionSpec::causal(2, 2, 64).with_window(Some(0));
    assert!(message(window).contains("the sliding window is 0"));
}

#[test]
fn a_mode_that_a_layer_cannot_hold_is_refused() {
    let ops = ops();
    for mode in KvMode::ALL {
        let refused = SequenceCache::check(&ops, &[layer(64, None), layer(80, None)], mode);
        assert_eq!(refused.is_err(), mode.is_turbo(), "{mode}");
    }
}
