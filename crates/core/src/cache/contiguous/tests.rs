//! Arrays against a `Vec` of all rows ever appended. One test: MLX's streams belong to a thread.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;

const HEADS: usize = 2;
const DIM: usize = 4;

/// Values that say where they stand: head, position, side, and when they were written.
fn rows(positions: std::ops::Range<usize>, side: u16, time: u16) -> Array {
    let len = positions.len();
    let mut values = Vec::new();
    for head in 0..HEADS {
        values.extend(positions.clone().flat_map(|at| [row(head, at, side, time); DIM]));
    }
    Array::from_slice(&values, &ints([1, HEADS, len, DIM]).unwrap()).unwrap()
}

fn row(head: usize, position: usize, side: u16, time: u16) -> f32 {
    let position = u16::try_from(position).unwrap();
    f32::from(position) * 64.0 + f32::from(time) * 4.0 + f32::from(side) * 2.0 + head as f32
}

/// `written[position]` is the time at which it was written.
fn check(held: &Held, written: &[u16], seen_from: usize) {
    assert!(held.first <= seen_from);
    for (side, array) in [(0, &held.keys), (1, &held.values)] {
        let got: Vec<f32> = array.to_vec().unwrap();
        let len = written.len() - held.first;
        assert_eq!(got.len(), HEADS * len * DIM);
        for head in 0..HEADS {
            for (at, &time) in written.iter().enumerate().skip(seen_from) {
                let start = (head * len + at - held.first) * DIM;
                let want = row(head, at, side, time);
                assert_eq!(got[start..start + DIM], [want; DIM], "head {head}, position {at}");
            }
        }
    }
}

fn run(window: Option<usize>, steps: &[(usize, usize)]) {
    let window = window.and_then(NonZeroUsize::new);
    let layout =
        LayerLayout { kv_heads: HEADS, key_dim: DIM, value_dim: DIM, window, latent: false };
    let mut cache = ContiguousCache::new(&layout, KvMode::Fp16).unwrap();
    let mut written: Vec<u16> = Vec::new();
    for (time, &(tokens, back)) in (0u16..).zip(steps) {
        let start = written.len();
        let span = start..start + tokens;
        let held = cache.append(&rows(span.clone(), 0, time), &rows(span, 1, time)).unwrap();
        written.resize(start + tokens, time);
        let seen_from = window.map_or(0, |window| (start + 1).saturating_sub(window.get()));
        check(&held, &written, seen_from);
        let to = written.len().saturating_sub(back);
        let done = cache.trim(to).is_ok();
        assert!(done || window.is_some());
        written.truncate(if done { to } else { written.len() });
        let held = cache.first + cache.len;
        assert_eq!(held, written.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn arrays_hold_what_was_appended(
        window in prop::option::of(1..700usize),
        steps in prop::collection::vec((1..400usize, prop_oneof![Just(0), 0..300usize]), 1..9),
    ) {
        run(window, &steps);
    }
}
