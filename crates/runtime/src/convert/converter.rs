//! Streaming conversion: threads read, convert and write blocks of rows, each at its final position,
//! so that memory does not grow with the model.

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use mlxcel_core::Pool;
use mlxcel_core::quantize::QuantizedRows;
use mlxcel_estimator::headers::Checkpoint;

use super::conversion_plan::{Action, PlannedTensor, SourceRange};
use super::layout::{Shard, ShardEntry};
use crate::{Error, Result};

/// Largest number of elements in a block, unless a single row has more.
const BLOCK_ELEMS: u64 = 1 << 20;

/// Blocks per thread between two progress reports.
const BLOCKS_PER_REPORT: usize = 4;

/// A conversion in progress.
pub(super) struct Converter<'a> {
    source: SourceFiles<'a>,
    pool: &'a Pool,
    done_bytes: u64,
    total_bytes: u64,
    progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// Open files of the source, and the buffers of each thread.
struct SourceFiles<'a> {
    files: Vec<(&'a Path, File)>,
    buffers: Vec<Mutex<ThreadBuffers>>,
}

/// Rows of one tensor that come from one source tensor.
struct RowBlock<'a> {
    tensor: &'a PlannedTensor,
    entry: &'a ShardEntry,
    source: &'a SourceRange,
    /// Rows of the source tensor before this block.
    skipped: u64,
    /// Rows of the planned tensor.
    rows: Range<u64>,
}

/// Buffers of one thread.
#[derive(Default)]
struct ThreadBuffers {
    source: Vec<u8>,
    row: Vec<f32>,
    floats: Vec<u8>,
    quantized: QuantizedRows,
}

impl<'a> Converter<'a> {
    /// Opens the files of `checkpoint`.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        pool: &'a Pool,
        progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Self> {
        let mut files = Vec::with_capacity(checkpoint.files.len());
        for (path, _) in &checkpoint.files {
            let file = File::open(path).map_err(|error| Error::io(path, error))?;
            files.push((path.as_path(), file));
        }
        let buffers = (0..pool.threads()).map(|_| Mutex::default()).collect();
        let source = SourceFiles { files, buffers };
        let total_bytes = checkpoint.total_bytes();
        Ok(Self { source, pool, done_bytes: 0, total_bytes, progress })
    }

    /// Writes one shard of the new checkpoint into `folder`.
    pub(super) fn write(
        &mut self,
        shard: &Shard,
        tensors: &[PlannedTensor],
        folder: &Path,
    ) -> Result<()> {
        let path = folder.join(&shard.name);
        let file = create(&path, shard).map_err(|error| Error::io(&path, error))?;
        let blocks = blocks(shard, tensors);
        for group in blocks.chunks(BLOCKS_PER_REPORT * self.pool.threads()) {
            let failure = Mutex::new(None);
            let source = &self.source;
            self.pool.for_chunks(group.len(), 1, |thread, range| {
                for block in &group[range] {
                    if let Err(error) = source.convert(thread, block, &file, &path) {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
            if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Err(error);
            }
            self.done_bytes += group.iter().map(RowBlock::source_bytes).sum::<u64>();
            if (self.progress)(self.done_bytes, self.total_bytes).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }
}

/// Creates a shard's file with its header and final size.
fn create(path: &Path, shard: &Shard) -> std::io::Result<File> {
    let file = File::create(path)?;
    file.write_all_at(&shard.header, 0)?;
    file.set_len(shard.file_bytes)?;
    Ok(file)
}

impl SourceFiles<'_> {
    fn convert(&self, thread: usize, block: &RowBlock<'_>, out: &File, path: &Path) -> Result<()> {
        let mut buffers = self.buffers[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let (source_path, source) = &self.files[block.source.file];
        buffers.read(block, source).map_err(|error| Error::io(source_path, error))?;
        buffers.compute(block)?;
        for (output, bytes) in block.entry.outputs.iter().zip(buffers.outputs(block.tensor)) {
            let position = output.offset + block.rows.start * output.row_bytes;
            out.write_all_at(bytes, position).map_err(|error| Error::io(path, error))?;
        }
        Ok(())
    }
}

fn blocks<'a>(shard: &'a Shard, tensors: &'a [PlannedTensor]) -> Vec<RowBlock<'a>> {
    let mut blocks = Vec::new();
    for entry in &shard.entries {
        let tensor = &tensors[entry.tensor];
        let step = (BLOCK_ELEMS / tensor.columns().max(1)).max(1);
        let rows_per_source = tensor.rows() / (tensor.sources.len() as u64).max(1);
        let mut first = 0;
        for source in &tensor.sources {
            let mut skipped = 0;
            while skipped < rows_per_source {
                let count = step.min(rows_per_source - skipped);
                let start = first + skipped;
                blocks.push(RowBlock {
                    tensor,
                    entry,
                    source,
                    skipped,
                    rows: start..start + count,
                });
                skipped += count;
            }
            first += rows_per_source;
        }
    }
    blocks
}

impl RowBlock<'_> {
    fn row_bytes(&self) -> u64 {
        let rows = self.tensor.rows() / (self.tensor.sources.len() as u64).max(1);
        (self.source.bytes.end - self.source.bytes.start) / rows.max(1)
    }

    fn source_bytes(&self) -> u64 {
        (self.rows.end - self.rows.start) * self.row_bytes()
    }
}

impl ThreadBuffers {
    #[expect(clippy::cast_possible_truncation, reason = "a block is a few megabytes, or one row")]
    fn read(&mut self, block: &RowBlock<'_>, file: &File) -> std::io::Result<()> {
        self.source.resize(block.source_bytes() as usize, 0);
        let position = block.source.bytes.start + block.skipped * block.row_bytes();
        file.read_exact_at(&mut self.source, position)
    }

    /// Converts the source bytes to those of the outputs.
    fn compute(&mut self, block: &RowBlock<'_>) -> Result<()> {
        let from = match block.tensor.action {
            Action::Copy => return Ok(()),
            Action::Cast { from, .. } | Action::Quantize { from, .. } => from,
        };
        #[expect(clippy::cast_possible_truncation, reason = "a row is in memory")]
        let columns = block.tensor.columns() as usize;
        self.row.resize(columns, 0.0);
        self.floats.clear();
        self.quantized.clear();
        for source in self.source.chunks_exact((columns * from.bytes()).max(1)) {
            from.read_all(source, &mut self.row);
            match block.tensor.action {
                Action::Quantize { quantizer, .. } => quantizer
                    .push_row(&mut self.row, &mut self.quantized)
                    .map_err(mlxcel_core::Error::from)?,
                Action::Cast { to, .. } => {
                    self.row.iter().for_each(|x| to.push(*x, &mut self.floats));
                }
                Action::Copy => {}
            }
        }
        Ok(())
    }

    /// Bytes of each output of `tensor`.
    fn outputs(&self, tensor: &PlannedTensor) -> Vec<&[u8]> {
        match tensor.action {
            Action::Copy => vec![&self.source],
            Action::Cast { .. } => vec![&self.floats],
            Action::Quantize { .. } => {
                let QuantizedRows { codes, scales, biases } = &self.quantized;
                vec![codes, scales, biases]
            }
        }
    }
}
