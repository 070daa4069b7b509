//! Transient memory of a step: scores, activations, copies, logits.
//!
//! The attention kernel decides. It is looked up in a table ([`RULES`]) by kernel set, backend, MLX
//! version, phase and head width; a quantised cache is decoded first and runs through the same kernel.
//! Two mistakes of other tools: treating every head as fused under-estimates (MLX falls back at 192 and
//! 256), and treating every wide head as a materialised fp32 matrix over-estimates a thousandfold.

use crate::machine::{Backend, KernelSet, Machine, MlxVersion};
use crate::spec::Widths;

/// Phase of inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Processing a prompt, a chunk at a time.
    Prefill,
    /// Generating one token per sequence.
    Decode,
}

/// Treatment of the scores by an attention kernel.
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

impl Rule {
    fn applies(&self, machine: &Machine, phase: Phase, head_dim: u64) -> bool {
        self.kernels == machine.kernels
            && self.backend.is_none_or(|backend| backend == machine.backend)
            && (self.versions.0..self.versions.1).contains(&machine.mlx_version)
            && self.phase.is_none_or(|known| known == phase)
            && (self.head_dims.is_empty() || self.head_dims.contains(&head_dim))
    }
}

const FIRST: MlxVersion = MlxVersion(0, 0, 0);
const LAST: MlxVersion = MlxVersion(u32::MAX, 0, 0);
/// MLX 0.32.1 added 72 and 96 to the widths of the fused prefill kernel.
const WIDER: MlxVersion = MlxVersion(0, 32, 1);

/// MLX's steel attention kernel works in tiles of 32 × 16.
const STEEL: AttentionKernel = AttentionKernel::Fused { tile_q: 32, tile_k: 16 };
/// MLX's vector kernel keeps its scores in registers.
const VECTOR: AttentionKernel = AttentionKernel::Fused { tile_q: 1, tile_k: 32 };
/// Host kernels work in tiles per thread.
const HOST: AttentionKernel = AttentionKernel::Fused { tile_q: 64, tile_k: 256 };

/// Taken from MLX's sources (`scaled_dot_product_attention.cpp`, Metal); 192 and 256 are confirmed by
/// published peaks. CUDA counts as unfused until it is measured.
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
    Rule {
        kernels: KernelSet::Mlx,
        backend: Some(Backend::Metal),
        versions,
        phase: Some(phase),
        head_dims,
        kernel,
    }
}

/// Most queries for which MLX takes its decode kernel.
const DECODE_QUERIES: u64 = 8;

/// One step of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Phase of inference.
    pub phase: Phase,
    /// Tokens computed at once: a chunk, or one per sequence.
    pub queries: u64,
    /// Keys that a query attends to, cached prefix included.
    pub keys: u64,
    /// Sequences.
    pub sequences: u64,
}

/// Looks the attention kernel up.
#[must_use]
pub fn attention_kernel(machine: &Machine, phase: Phase, head_dim: u64) -> AttentionKernel {
    let rule = RULES.iter().find(|rule| rule.applies(machine, phase, head_dim));
    rule.map_or(AttentionKernel::Unfused, |rule| rule.kernel)
}

/// Transient memory of a step by part, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scratch {
    /// The attention's output, fp32.
    pub output_bytes: u64,
    /// Scores, or a kernel's tiles.
    pub score_bytes: u64,
    /// Decoded layers of a quantised cache, and new rows while they are encoded.
    pub dequantised_bytes: u64,
    /// One layer's old buffer while a contiguous cache grows. Never at the same time as scores.
    pub growth_bytes: u64,
    /// Chunk-wide activations of one layer.
    pub activation_bytes: u64,
    /// One row of logits per sequence, fp32.
    pub logits_bytes: u64,
    /// Memory of the process independent of the model: threads, code, buffers kept for reuse.
    pub process_bytes: u64,
}

impl Scratch {
    /// Peak of the step.
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

/// Threads with their working memory, code, and small buffers that MLX keeps for reuse, with host
/// kernels: 7 to 14 MiB over the matrix of `docs/calibration.md`. Published peaks of other backends
/// leave it out.
const HOST_PROCESS_BYTES: u64 = 8 << 20;

/// Most bytes of small layers that MLX decodes ahead of the one that attends: it waits for no layer of
/// less than 16 MiB, of which fp32 copies make three times as much. Two more layers at most.
const DECODED_AHEAD_BYTES: u64 = 48 << 20;

/// Copies that the MLX kernel set makes of one sequence's largest layer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerCopies {
    /// The old buffer, unquantised, while a contiguous cache grows.
    pub growth_bytes: u64,
    /// Decoded codes.
    pub decoded_bytes: u64,
    /// Encoding one token.
    pub coding_bytes_per_token: u64,
}

impl LayerCopies {
    fn dequantised_bytes(&self, tokens: u64) -> u64 {
        let ahead = self.decoded_bytes.saturating_mul(2).min(DECODED_AHEAD_BYTES);
        let coding = self.coding_bytes_per_token.saturating_mul(tokens);
        self.decoded_bytes.saturating_add(ahead).saturating_add(coding)
    }
}

/// Computes the transient memory of `step`. `elem_bytes` is the size of an activation.
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
    // Only MLX's attention copies the cache; only the host kernels' process is counted.
    let copies = if mlx && widths.query_heads > 0 { *copies } else { LayerCopies::default() };
    Scratch {
        output_bytes: product(&[widths.query_heads, tokens, widths.head_dim, SINGLE]),
        score_bytes: score_bytes(kernel, widths.query_heads, step, elem_bytes),
        dequantised_bytes: copies.dequantised_bytes(tokens),
        growth_bytes: copies.growth_bytes,
        activation_bytes: match machine.kernels {
            KernelSet::Host => host_activation_bytes(widths, tokens),
            KernelSet::Mlx => activation_bytes(widths, tokens, elem_bytes),
        },
        logits_bytes: product(&[step.sequences, widths.vocabulary, SINGLE]),
        process_bytes: if mlx { 0 } else { HOST_PROCESS_BYTES },
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

/// Host kernels compute in fp32 and free buffers after their last use, so the widest part of a layer
/// decides. Attention (its output is counted separately): the residual stream, its norm and the
/// projected output; queries twice, since rotation and projection copy them; keys and values.
/// Feed-forward: the stream before and after attention, its norm and the output; the gated product
/// and the copy that a matrix product reads. A recurrent layer: the stream, its norm and the output;
/// projections, the outputs of convolution and scan, and a copy, six times its width together.
/// Buffers of experts (the gated product, its copy and an output for each) are working memory that
/// kernels keep while the other parts run.
fn host_activation_bytes(widths: &Widths, tokens: u64) -> u64 {
    let kv_heads = widths.query_heads.checked_div(widths.group).unwrap_or(0);
    let heads = widths.query_heads.saturating_add(kv_heads);
    let gated = widths.inner.saturating_mul(2);
    let (passing, held) = match widths.active_experts {
        0 => (gated, 0),
        active => (0, gated.saturating_add(active.saturating_mul(widths.hidden))),
    };
    let three_streams = widths.hidden.saturating_mul(3);
    let four_streams = widths.hidden.saturating_mul(4);
    let attention = three_streams.saturating_add(product(&[heads, widths.head_dim, 2]));
    let feed_forward = four_streams.saturating_add(passing);
    let recurrent = three_streams.saturating_add(widths.recurrent.saturating_mul(6));
    let widest = attention.max(feed_forward).max(recurrent);
    product(&[tokens, widest.saturating_add(held), SINGLE])
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |n, factor| n.saturating_mul(*factor))
}

/// Reports whether MLX takes its decode kernel: few queries, and few of them per key head.
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
