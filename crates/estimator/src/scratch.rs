//! What a step needs for a moment: scores, activations, copies, logits.
//!
//! Which attention kernel runs decides everything, and is a table ([`RULES`]) keyed by kernel
//! set, backend, MLX version, phase and head width; a quantised cache is decoded before, so that it goes
//! through the same. Two mistakes have shipped elsewhere:
//! taking every head for fused under-estimates (MLX falls back at 192 and 256), and taking every
//! wide head for a materialised fp32 matrix over-estimates a thousandfold.

use crate::machine::{Backend, KernelSet, Machine, MlxVersion};
use crate::spec::Widths;

/// What a model is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading a prompt, a chunk at a time.
    Prefill,
    /// Making one token per sequence.
    Decode,
}

/// How an attention kernel treats its scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AttentionKernel {
    /// Tiles of known size; scores never leave them.
    Fused {
        /// Rows of a tile.
        tile_q: u64,
        /// Columns of a tile.
        tile_k: u64,
    },
    /// Tiles of rows, each over all keys.
    TiledRows {
        /// Rows of a tile.
        tile_q: u64,
    },
    /// A whole matrix of scores.
    Unfused,
}

/// One row of the table: the first that matches decides.
struct Rule {
    kernels: KernelSet,
    backend: Option<Backend>,
    /// From this version on, and before the second.
    versions: (MlxVersion, MlxVersion),
    phase: Option<Phase>,
    /// Head widths; every width where empty.
    head_dims: &'static [u64],
    kernel: AttentionKernel,
}

const FIRST: MlxVersion = MlxVersion(0, 0, 0);
const LAST: MlxVersion = MlxVersion(u32::MAX, 0, 0);
/// MLX 0.32.1 added 72 and 96 to the widths of the fused prefill kernel.
const WIDER: MlxVersion = MlxVersion(0, 32, 1);

/// MLX's steel attention kernel works in tiles of 32 × 16.
const STEEL: AttentionKernel = AttentionKernel::Fused { tile_q: 32, tile_k: 16 };
/// MLX's vector kernel keeps its scores in registers.
const VECTOR: AttentionKernel = AttentionKernel::Fused { tile_q: 1, tile_k: 32 };
/// Our own kernels work in tiles per thread.
const HOST: AttentionKernel = AttentionKernel::Fused { tile_q: 64, tile_k: 256 };

/// Read in MLX's sources (`scaled_dot_product_attention.cpp`, Metal) and, for 192 and 256,
/// confirmed by published peaks. CUDA counts as unfused until it is measured.
const RULES: [Rule; 5] = [
    Rule {
        kernels: KernelSet::Host,
        backend: None,
        versions: (FIRST, LAST),
        phase: None,
        head_dims: &[],
        kernel: HOST,
    },
    metal((FIRST, WIDER), Phase::Prefill, &[64, 80, 128], STEEL),
    metal((WIDER, LAST), Phase::Prefill, &[64, 72, 80, 96, 128], STEEL),
    metal((FIRST, LAST), Phase::Decode, &[64, 96, 128, 256], VECTOR),
    Rule {
        kernels: KernelSet::Mlx,
        backend: None,
        versions: (FIRST, LAST),
        phase: None,
        head_dims: &[],
        kernel: AttentionKernel::Unfused,
    },
];

const fn metal(
    versions: (MlxVersion, MlxVersion),
    phase: Phase,
    head_dims: &'static [u64],
    kernel: AttentionKernel,
) -> Rule {
    let (kernels, backend) = (KernelSet::Mlx, Some(Backend::Metal));
    Rule { kernels, backend, versions, phase: Some(phase), head_dims, kernel }
}

/// Queries up to which MLX takes its decode kernel.
const DECODE_QUERIES: u64 = 8;

/// One step of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What the model is doing.
    pub phase: Phase,
    /// Tokens computed at once: a chunk, or one per sequence.
    pub queries: u64,
    /// Keys that a query sees, cached prefix included.
    pub keys: u64,
    /// Sequences.
    pub sequences: u64,
}

/// The kernel that the table gives.
#[must_use]
pub fn attention_kernel(machine: &Machine, phase: Phase, head_dim: u64) -> AttentionKernel {
    let applies = |rule: &&Rule| {
        rule.kernels == machine.kernels
            && rule.backend.is_none_or(|backend| backend == machine.backend)
            && (rule.versions.0..rule.versions.1).contains(&machine.mlx_version)
            && rule.phase.is_none_or(|known| known == phase)
            && (rule.head_dims.is_empty() || rule.head_dims.contains(&head_dim))
    };
    RULES.iter().find(applies).map_or(AttentionKernel::Unfused, |rule| rule.kernel)
}

/// What a step needs for a moment, by part. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scratch {
    /// The attention's output, fp32.
    pub output_bytes: u64,
    /// Scores, or a kernel's tiles.
    pub score_bytes: u64,
    /// Where a quantised cache is decoded before attention: layers, decoded, and new rows on their way
    /// to codes.
    pub dequantised_bytes: u64,
    /// One layer's old buffer while a contiguous cache grows. Never at the same time as scores.
    pub growth_bytes: u64,
    /// Chunk-wide activations of one layer.
    pub activation_bytes: u64,
    /// One row of logits per sequence, fp32.
    pub logits_bytes: u64,
    /// What running takes whatever the model: threads, code, buffers kept for reuse.
    pub process_bytes: u64,
}

impl Scratch {
    /// The worst moment.
    #[must_use]
    pub fn total(&self) -> u64 {
        let moment = self.score_bytes.saturating_add(self.dequantised_bytes).max(self.growth_bytes);
        let others = [self.output_bytes, self.activation_bytes, self.logits_bytes];
        others.into_iter().fold(moment.saturating_add(self.process_bytes), u64::saturating_add)
    }
}

/// Bytes of an fp32 element.
const SINGLE: u64 = 4;
/// Bytes of an fp16 or bf16 element.
const HALF: u64 = 2;

/// Threads with their working memory, the code that runs, and small buffers that MLX keeps for
/// reuse, with host kernels: 7 to 14 MiB over the matrix of `docs/calibration.md`. Other
/// backends' published peaks leave it out.
const HOST_PROCESS_BYTES: u64 = 8 << 20;

/// What MLX may have decoded of small layers ahead of the one that attends: it waits for no layer of
/// less than 16 MiB, and fp32 copies make three times as much of it. Two more layers at most.
const DECODED_AHEAD_BYTES: u64 = 48 << 20;

/// What the MLX kernel set copies of one sequence's largest layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerCopies {
    /// Its cache, unquantised: the old buffer while a contiguous one grows.
    pub growth_bytes: u64,
    /// Decoding its codes.
    pub decoded_bytes: u64,
    /// Making codes of one token.
    pub coding_bytes_per_token: u64,
}

impl LayerCopies {
    fn dequantised_bytes(&self, tokens: u64) -> u64 {
        let ahead = self.decoded_bytes.saturating_mul(2).min(DECODED_AHEAD_BYTES);
        let coding = self.coding_bytes_per_token.saturating_mul(tokens);
        self.decoded_bytes.saturating_add(ahead).saturating_add(coding)
    }
}

/// What `step` needs. `elem_bytes` is the size of an activation.
#[must_use]
pub fn scratch(
    widths: &Widths,
    step: &Step,
    machine: &Machine,
    elem_bytes: u64,
    copies: &LayerCopies,
) -> Scratch {
    let tokens = step.queries.saturating_mul(step.sequences);
    let mlx = machine.kernels == KernelSet::Mlx;
    let kernel = match step.phase {
        Phase::Decode if mlx && !takes_decode_kernel(step.queries, widths.group) => {
            AttentionKernel::Unfused
        }
        phase => attention_kernel(machine, phase, widths.head_dim),
    };
    let attends = widths.query_heads > 0;
    let only = |wanted: bool, bytes: u64| if wanted { bytes } else { 0 };
    Scratch {
        output_bytes: product(&[widths.query_heads, tokens, widths.head_dim, SINGLE]),
        score_bytes: score_bytes(kernel, widths.query_heads, step, elem_bytes),
        dequantised_bytes: only(mlx && attends, copies.dequantised_bytes(tokens)),
        growth_bytes: only(mlx && attends, copies.growth_bytes),
        activation_bytes: match machine.kernels {
            KernelSet::Host => host_activation_bytes(widths, tokens),
            KernelSet::Mlx => activation_bytes(widths, tokens, elem_bytes),
        },
        logits_bytes: product(&[step.sequences, widths.vocabulary, SINGLE]),
        process_bytes: only(!mlx, HOST_PROCESS_BYTES),
    }
}

fn score_bytes(kernel: AttentionKernel, heads: u64, step: &Step, elem_bytes: u64) -> u64 {
    match kernel {
        AttentionKernel::Fused { tile_q, tile_k } => {
            product(&[heads, step.queries.min(tile_q), step.keys.min(tile_k), SINGLE])
        }
        AttentionKernel::TiledRows { tile_q } => {
            product(&[heads, step.queries.min(tile_q), step.keys, step.sequences, elem_bytes])
        }
        AttentionKernel::Unfused => {
            let scores = product(&[heads, step.queries, step.keys, step.sequences]);
            unfused_bytes(scores, elem_bytes)
        }
    }
}

/// Unfused scores take 2.2 bytes an element in 16 bits (2.1 to 2.2 measured), 4.4 in fp32: the
/// matrix, its softmax in place, and a tenth for masks and partial results.
fn unfused_bytes(scores: u64, elem_bytes: u64) -> u64 {
    let tenths = scores.saturating_mul(elem_bytes.max(HALF));
    tenths.saturating_add(tenths.checked_div(10).unwrap_or(0))
}

/// The residual stream and its norm, and the wider of attention (queries, their rotation, the
/// output) and feed-forward (gate, up, their product).
fn activation_bytes(widths: &Widths, tokens: u64, elem_bytes: u64) -> u64 {
    let attention = product(&[widths.query_heads, widths.head_dim, 3]);
    let inner = widths.inner.max(widths.recurrent).saturating_mul(3).max(attention);
    let per_token = widths.hidden.saturating_mul(2).saturating_add(inner);
    product(&[tokens, per_token, elem_bytes])
}

/// Host kernels compute in fp32 and free what nobody holds any more, so the widest part of a layer
/// decides. Attention (its output is a part of its own): the stream, its norm and the projected
/// output; queries twice, since a rotation and a projection copy them; keys and values.
/// Feed-forward: the stream before and after attention, its norm and the output; the gated product
/// and the copy of it that a matrix product reads. A recurrent layer: the stream, its norm and the
/// output; its projections, what the convolution and the scan make of them, and a copy, six times
/// its width together. What experts need, the gated product, its copy and an output for each, is
/// working memory that kernels keep while the other parts run.
fn host_activation_bytes(widths: &Widths, tokens: u64) -> u64 {
    let kv_heads = widths.query_heads.checked_div(widths.group).unwrap_or(0);
    let heads = widths.query_heads.saturating_add(kv_heads);
    let gated = widths.inner.saturating_mul(2);
    let (passing, kept) = match widths.active_experts {
        0 => (gated, 0),
        active => (0, gated.saturating_add(active.saturating_mul(widths.hidden))),
    };
    let attention = (3, product(&[heads, widths.head_dim, 2]));
    let recurrent = (3, widths.recurrent.saturating_mul(6));
    let width = |(streams, own): (u64, u64)| product(&[widths.hidden, streams]).saturating_add(own);
    let widest = [attention, (4, passing), recurrent].map(width).into_iter().fold(0, u64::max);
    product(&[tokens, widest.saturating_add(kept), SINGLE])
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |n, factor| n.saturating_mul(*factor))
}

/// Whether MLX takes its decode kernel: few queries, few of them per key head.
#[must_use]
pub fn takes_decode_kernel(queries: u64, group: u64) -> bool {
    queries <= DECODE_QUERIES && queries.saturating_mul(group) <= 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(backend: Backend, version: &str, phase: Phase, head_dim: u64, unfused: bool) {
        let machine = Machine::new(backend).with_mlx_version(MlxVersion::parse(version).unwrap());
        let kernel = attention_kernel(&machine, phase, head_dim);
        assert_eq!(
            kernel == AttentionKernel::Unfused,
            unfused,
            "{backend:?} {version} {phase:?} {head_dim}"
        );
    }

    #[test]
    fn the_table() {
        use Backend::{Cpu, Cuda, Metal};
        use Phase::{Decode, Prefill};
        for (version, head_dim, unfused) in [
            ("0.32.0", 128, false),
            ("0.32.0", 96, true),
            ("0.32.1", 96, false),
            ("0.32.1", 72, false),
            ("0.32.4", 192, true),
            ("0.32.4", 256, true),
            ("0.32.4", 512, true),
        ] {
            check(Metal, version, Prefill, head_dim, unfused);
        }
        check(Metal, "0.32.4", Decode, 256, false);
        check(Metal, "0.32.4", Decode, 80, true);
        check(Cuda, "0.32.4", Prefill, 128, true);
        check(Cpu, "0.32.4", Prefill, 512, false);
        assert!(
            takes_decode_kernel(4, 8) && !takes_decode_kernel(8, 8) && !takes_decode_kernel(9, 1)
        );
    }

    #[test]
    fn unfused_scores_span_the_cached_prefix() {
        let widths = Widths {
            hidden: 4096,
            vocabulary: 1000,
            query_heads: 32,
            group: 4,
            head_dim: 256,
            inner: 12288,
            recurrent: 0,
            active_experts: 0,
        };
        let step = Step { phase: Phase::Prefill, queries: 1000, keys: 100_000, sequences: 1 };
        let metal = Machine::new(Backend::Metal);
        let scores = scratch(&widths, &step, &metal, 2, &LayerCopies::default()).score_bytes;
        assert_eq!(scores, 32 * 1000 * 100_000 * 22 / 10);
        let single = scratch(&widths, &step, &metal, 4, &LayerCopies::default()).score_bytes;
        assert_eq!(single, 2 * scores);
    }

    /// Floats per token of Llama-3.2-1B, OLMoE-1B-7B, Mamba2-1.3B and a hybrid of both, by hand.
    #[test]
    fn host_kernels_hold_the_widest_part_of_a_layer() {
        let llama = Widths {
            hidden: 2048,
            vocabulary: 128_256,
            query_heads: 32,
            group: 4,
            head_dim: 64,
            inner: 8192,
            ..Widths::default()
        };
        let mixture = Widths { group: 2, inner: 8 * 1024, active_experts: 8, ..llama };
        let recurrent = Widths { hidden: 2048, recurrent: 4096, ..Widths::default() };
        let hybrid = Widths { recurrent: 4096, ..mixture };
        let floats = |widths: &Widths| host_activation_bytes(widths, 10) / 40;
        assert_eq!(floats(&llama), 4 * 2048 + 2 * 8192);
        let experts = 2 * 8 * 1024 + 8 * 2048;
        assert_eq!(floats(&mixture), 3 * 2048 + 2 * (32 + 16) * 64 + experts);
        assert_eq!(floats(&recurrent), 3 * 2048 + 6 * 4096);
        assert_eq!(floats(&hybrid), 3 * 2048 + 6 * 4096 + experts);
    }
}
