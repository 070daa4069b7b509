//! Runs products: prepares the activations once per kind of weights, then spreads rows over
//! the workers.

use super::coding::Quantised;
use super::dense::{DenseDot, DenseTiles};
use super::dot::CodeDot;
use super::input::{DigitLayout, Digits, Floats, Source, pad, quantize};
use super::panel::{CodePanel, PANEL_BYTES, PANEL_ROWS, TILE_FLOATS};
use super::task::{Out, RowRange};
use super::tile::CodeTiles;
use super::{FEW_TOKENS, Precision};
use crate::elementwise::{Glu, glu_serial};
use crate::error::{Result, check_len};
use crate::order::Order;
use crate::pool::Pool;
use crate::scratch::{self, BufferKind};
use crate::simd::LANES;
use crate::weights::{FloatType, Format, Mxfp4, WeightMatrix};
use std::ops::Range;

/// Bytes of weights that a worker takes at once when decoding.
const CHUNK_BYTES: usize = 32 << 10;
/// Chunks per thread that let the last one finish in time.
const CHUNKS_PER_THREAD: usize = 4;

/// A matrix and what is added to the products with it.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// `[rows, cols]`.
    pub weights: WeightMatrix<'a>,
    /// `[rows]`, where there are biases.
    pub bias: Option<&'a [f32]>,
}

impl<'a> Layer<'a> {
    /// A matrix without biases.
    #[must_use]
    pub fn plain(weights: WeightMatrix<'a>) -> Self {
        Self { weights, bias: None }
    }

    /// Errors unless there is a bias for each row, or none at all.
    pub(super) fn check(&self) -> Result<()> {
        let biases = self.bias.map_or(self.weights.rows(), <[f32]>::len);
        check_len("biases of a layer", biases, self.weights.rows())
    }

    /// Adds the biases of `rows` to the products of a token.
    fn add_bias(&self, rows: RowRange, products: &mut [f32]) {
        let Some(bias) = self.bias else { return };
        let biases = &bias[rows.first..rows.end];
        products.iter_mut().zip(biases).for_each(|(product, bias)| *product += bias);
    }
}

/// One product: a range of the prepared tokens with one layer, or with a gated pair.
pub(super) struct Job<'a> {
    pub(super) layer: Layer<'a>,
    pub(super) glu: Option<(Layer<'a>, Glu)>,
    pub(super) tokens: Range<usize>,
    pub(super) order: Order,
    pub(super) out: Out<'a>,
}

impl Job<'_> {
    /// The way its tokens are multiplied.
    fn way(&self) -> Way {
        match self.order {
            Order::Fastest if self.tokens.len() <= FEW_TOKENS => Way::Dots,
            Order::Fastest | Order::Fixed => Way::Tiles,
        }
    }
}

/// Way of multiplying tokens with a matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Row by row, up to [`FEW_TOKENS`] of them.
    Dots,
    /// Tile by tile.
    Tiles,
}

/// Form in which a matrix needs the activations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InputForm {
    Digits { group: usize },
    Floats,
}

impl InputForm {
    fn of(weights: &WeightMatrix<'_>) -> Self {
        match weights.format() {
            Format::Affine(affine) => Self::Digits { group: affine.group },
            Format::Mxfp4(_) => Self::Digits { group: Mxfp4::GROUP },
            Format::Dense(..) => Self::Floats,
        }
    }
}

/// Returns true if both matrices need the activations in one form.
pub(super) fn same_kind(a: &WeightMatrix<'_>, b: &WeightMatrix<'_>) -> bool {
    InputForm::of(a) == InputForm::of(b)
}

/// Activations prepared for one [`InputForm`].
#[derive(Clone, Copy)]
enum Prepared<'a> {
    Digits(Digits<'a>),
    /// The padded copy is only made for [`Way::Tiles`].
    Floats(Source<'a>, Option<Floats<'a>>),
}

/// Runs `jobs` over the `tokens` rows of `source`. The two matrices of a gated pair must be of
/// the same kind.
///
/// # Errors
/// [`crate::KernelError::OutOfMemory`].
pub(super) fn run_jobs(
    pool: &Pool,
    source: Source<'_>,
    tokens: usize,
    jobs: &[Job<'_>],
    precision: Precision,
) -> Result<()> {
    let mut rest: Vec<&Job<'_>> = jobs.iter().filter(|job| !job.tokens.is_empty()).collect();
    while let Some(first) = rest.first() {
        let kind = InputForm::of(&first.layer.weights);
        let (same, other) =
            rest.into_iter().partition(|job| InputForm::of(&job.layer.weights) == kind);
        rest = other;
        let same: Vec<&Job<'_>> = same;
        let dots = same.iter().all(|job| job.way() == Way::Dots);
        match kind {
            InputForm::Digits { group } => {
                let digits = precision.digits();
                let layout = if dots { DigitLayout::flat } else { DigitLayout::blocked };
                let layout = layout(tokens, source.cols, group, digits);
                scratch::with(BufferKind::Input, layout.bytes(), |buf| {
                    let input = Prepared::Digits(quantize(pool, source, layout, buf));
                    run_region(pool, &same, input)
                })??;
            }
            InputForm::Floats if dots => run_region(pool, &same, Prepared::Floats(source, None))?,
            InputForm::Floats => {
                scratch::with(BufferKind::Input, Floats::bytes(tokens, source.cols), |buf| {
                    let floats = pad(pool, source, tokens, buf);
                    run_region(pool, &same, Prepared::Floats(source, Some(floats)))
                })??;
            }
        }
    }
    Ok(())
}

/// The chunks of one job's rows.
struct Chunks {
    /// Number of chunks of all jobs up to and including this one.
    end: usize,
    rows: usize,
}

/// Runs jobs that share prepared activations, in one parallel region.
fn run_region(pool: &Pool, jobs: &[&Job<'_>], input: Prepared<'_>) -> Result<()> {
    let mut chunks: Vec<Chunks> = Vec::with_capacity(jobs.len());
    let mut end = 0;
    let total_bytes: usize = jobs.iter().map(|job| job.layer.weights.bytes()).sum();
    let share = total_bytes / (pool.threads() * CHUNKS_PER_THREAD);
    for job in jobs {
        let rows = chunk_rows(job, share);
        end += job.layer.weights.rows().div_ceil(rows);
        chunks.push(Chunks { end, rows });
    }
    let failure = std::sync::Mutex::new(None);
    pool.for_chunks(end, 1, |_, items| {
        for item in items {
            let index = chunks.partition_point(|chunks| chunks.end <= item);
            let before = if index == 0 { 0 } else { chunks[index - 1].end };
            let first = (item - before) * chunks[index].rows;
            let end = jobs[index].layer.weights.rows().min(first + chunks[index].rows);
            if let Err(error) = run_chunk(pool, jobs[index], input, RowRange { first, end }) {
                *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            }
        }
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Rows of a chunk of `job`: whole tiles, about [`CHUNK_BYTES`] and at most `share` bytes when
/// decoding, at most a panel otherwise.
fn chunk_rows(job: &Job<'_>, share: usize) -> usize {
    let row_bytes = job.layer.weights.bytes() / job.layer.weights.rows();
    let bytes = if job.way() == Way::Dots { share.min(CHUNK_BYTES) } else { share };
    let rows = bytes / row_bytes.max(1) / LANES * LANES;
    rows.clamp(LANES, PANEL_ROWS)
}

/// Computes rows `rows` of a job, with its gate if it has one.
fn run_chunk(pool: &Pool, job: &Job<'_>, input: Prepared<'_>, rows: RowRange) -> Result<()> {
    let tokens = job.tokens.clone();
    let way = job.way();
    let part = ProductPart { tokens: tokens.clone(), way, rows, out: job.out };
    run_rows(pool, &job.layer.weights, input, part)?;
    // SAFETY: these rows of the output belong to this chunk.
    let products = |token| unsafe {
        std::slice::from_raw_parts_mut(job.out.at(token, rows.first), rows.len())
    };
    let Some((up, activation)) = &job.glu else {
        if job.layer.bias.is_some() {
            tokens.for_each(|token| job.layer.add_bias(rows, products(token)));
        }
        return Ok(());
    };
    let len = tokens.len() * rows.len();
    scratch::with(BufferKind::Output, len * size_of::<f32>(), |buf| {
        let buf = &mut bytemuck::cast_slice_mut::<u8, f32>(buf)[..len];
        let out = Out::chunk(buf, tokens.start, rows);
        let part = ProductPart { tokens: tokens.clone(), way, rows, out };
        run_rows(pool, &up.weights, input, part)?;
        for (token, other) in tokens.zip(buf.chunks_exact_mut(rows.len())) {
            let gate = products(token);
            job.layer.add_bias(rows, gate);
            up.add_bias(rows, other);
            glu_serial(pool.cpu(), *activation, gate, other);
        }
        Ok(())
    })?
}

/// Some rows of a product for some of the prepared tokens.
struct ProductPart<'a> {
    tokens: Range<usize>,
    way: Way,
    rows: RowRange,
    out: Out<'a>,
}

/// Computes `part` of the products with `weights`.
fn run_rows(
    pool: &Pool,
    weights: &WeightMatrix<'_>,
    input: Prepared<'_>,
    part: ProductPart<'_>,
) -> Result<()> {
    match (weights.format(), &input) {
        (Format::Affine(weights), Prepared::Digits(input)) => {
            code_rows(pool, Quantised::Affine(weights), input, part)
        }
        (Format::Mxfp4(weights), Prepared::Digits(input)) => {
            code_rows(pool, Quantised::Mxfp4(weights), input, part)
        }
        (&Format::Dense(ty, weights), Prepared::Floats(source, floats)) => {
            dense_rows(pool, Dense { ty, weights }, *source, floats.as_ref(), part)
        }
        _ => unreachable!("jobs are grouped by the kind of their weights"),
    }
}

/// A matrix of floats.
#[derive(Clone, Copy)]
struct Dense<'a> {
    ty: FloatType,
    weights: &'a [u8],
}

fn dense_rows(
    pool: &Pool,
    matrix: Dense<'_>,
    source: Source<'_>,
    floats: Option<&Floats<'_>>,
    part: ProductPart<'_>,
) -> Result<()> {
    let Dense { ty, weights } = matrix;
    let ProductPart { tokens, way, rows, out } = part;
    let first_token = tokens.start;
    let count = tokens.len();
    match (way, floats) {
        (Way::Tiles, Some(input)) => {
            scratch::with(BufferKind::Panel, PANEL_ROWS / LANES * TILE_FLOATS * 4, |buf| {
                let tokens = count;
                let panel = bytemuck::cast_slice_mut(buf);
                let mut tiles =
                    DenseTiles { ty, weights, input, first_token, tokens, rows, out, panel };
                // SAFETY: these rows of the output belong to this chunk alone.
                unsafe { tiles.dispatch(pool.cpu()) };
            })
        }
        _ => {
            let mut x: [&[f32]; FEW_TOKENS] = [&[]; FEW_TOKENS];
            tokens.zip(&mut x).for_each(|(token, x)| *x = source.row(token));
            let x = &x[..count];
            let dots = DenseDot { ty, weights, x, first_token, rows, out };
            // SAFETY: these rows of the output belong to this chunk alone.
            unsafe { dots.dispatch(pool.cpu()) };
            Ok(())
        }
    }
}

fn code_rows(
    pool: &Pool,
    weights: Quantised<'_>,
    input: &Digits<'_>,
    part: ProductPart<'_>,
) -> Result<()> {
    let ProductPart { tokens, way, rows, out } = part;
    let first_token = tokens.start;
    let tokens = tokens.len();
    if way == Way::Dots {
        let dots = CodeDot { weights, input, first_token, tokens, rows, out };
        // SAFETY: these rows of the output belong to this chunk alone.
        unsafe { dots.dispatch(pool.cpu()) };
        return Ok(());
    }
    scratch::with(BufferKind::Panel, PANEL_BYTES, |buf| {
        let panel = CodePanel::new(buf);
        let tiles = CodeTiles { weights, input, first_token, tokens, rows, out, panel };
        // SAFETY: these rows of the output belong to this chunk alone, and the panel to this thread.
        unsafe { tiles.dispatch(pool.cpu()) };
    })
}
