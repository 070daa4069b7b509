//! Memory against context for every cache mode: the data of a plot.
//!
//! Contexts double from 1024 tokens to the longest that is requested or that the model was trained
//! for; every point is a full estimate.

use crate::error::EstimatorError;
use crate::estimate::estimate_total_memory;
use crate::kv::KvMode;
use crate::machine::Machine;
use crate::spec::ModelSpec;
use crate::weights::WeightFootprint;
use crate::workload::Workload;

/// The shortest context.
pub const FIRST_TOKENS: u64 = 1024;
/// The longest context of a plot.
const LAST_TOKENS: u64 = 1 << 24;

/// Totals by context and cache mode.
#[derive(Debug, Clone, PartialEq)]
pub struct Curves {
    /// Tokens, ascending; at least two.
    pub contexts: Vec<u64>,
    /// The modes that the model can take, each with a total in bytes per context.
    pub modes: Vec<(KvMode, Vec<u64>)>,
}

impl Curves {
    /// Estimates `spec` with `weights` on `machine`; batch, chunk and quantisation are those of
    /// `workload`. A mode that the model cannot take has no curve.
    ///
    /// # Errors
    /// Sizes beyond 64 bits.
    pub fn new(
        spec: &ModelSpec,
        weights: &WeightFootprint,
        workload: &Workload,
        machine: &Machine,
    ) -> Result<Self, EstimatorError> {
        let longest = workload.context_tokens().max(spec.max_context_tokens.unwrap_or(0));
        let contexts = contexts(longest);
        let mut modes = Vec::new();
        for mode in KvMode::ALL {
            let workload = workload.clone().with_kv_mode(mode);
            let totals = contexts.iter().map(|context| {
                let workload = workload.with_shape(*context, workload.batch());
                estimate_total_memory(spec, weights, &workload, machine).map(|e| e.total_bytes)
            });
            match totals.collect() {
                Ok(totals) => modes.push((mode, totals)),
                Err(EstimatorError::BadValue { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { contexts, modes })
    }

    /// The largest total, in bytes.
    #[must_use]
    pub fn largest_bytes(&self) -> u64 {
        self.modes.iter().flat_map(|(_, totals)| totals).copied().max().unwrap_or(0)
    }
}

/// Powers of two from [`FIRST_TOKENS`] on, and `last`.
fn contexts(last: u64) -> Vec<u64> {
    let last = last.clamp(FIRST_TOKENS.saturating_mul(2), LAST_TOKENS);
    let powers = std::iter::successors(Some(FIRST_TOKENS), |n| n.checked_mul(2));
    powers.take_while(|n| *n < last).chain([last]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Backend;

    const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 131072}"#;

    fn curves(config: &str) -> Curves {
        let spec = ModelSpec::from_config(config).unwrap();
        let weights = WeightFootprint::analytical(&spec).unwrap();
        let workload = Workload::uniform(8192, 1);
        Curves::new(&spec, &weights, &workload, &Machine::new(Backend::Cpu)).unwrap()
    }

    #[test]
    fn a_curve_per_mode_and_the_order_of_their_sizes() {
        let curves = curves(CONFIG);
        let ends: Vec<u64> = curves.modes.iter().map(|(_, t)| *t.last().unwrap()).collect();
        assert_eq!((ends.len(), curves.contexts.last()), (7, Some(&131_072)));
        assert!(ends[0] > ends[1] && ends[1] > ends[5], "fp16, int8, turbo4: {ends:?}");
        assert_eq!(curves.largest_bytes(), ends[0]);
    }

    #[test]
    fn a_mode_that_cannot_be_has_no_curve() {
        let odd = curves(&CONFIG.replace("\"head_dim\": 64", "\"head_dim\": 80"));
        assert_eq!(
            odd.modes.iter().map(|(m, _)| *m).collect::<Vec<_>>(),
            [KvMode::Fp16, KvMode::Int8]
        );
    }

    #[test]
    fn contexts_double_up_to_the_last() {
        assert_eq!(contexts(5000), [1024, 2048, 4096, 5000]);
        assert_eq!(contexts(0), [1024, 2048]);
        assert_eq!(contexts(u64::MAX).last(), Some(&LAST_TOKENS));
    }
}
