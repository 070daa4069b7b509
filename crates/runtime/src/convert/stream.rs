//! Tensors from file to file, in blocks of rows on all threads: read, compute, write, each block at
//! its place, so that memory does not grow with the model.

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mlxcel_core::Pool;
use mlxcel_core::quantize::QuantizedRows;
use mlxcel_estimator::headers::Checkpoint;

use super::layout::{Item, Shard};
use super::plan::{Action, Planned, Stored};
use crate::{Error, Result};

/// Elements of a block, or one row.
const BLOCK_ELEMS: u64 = 1 << 20;

/// Blocks per thread between two reports of progress.
const BLOCKS_PER_REPORT: usize = 4;

/// A conversion under way.
pub(super) struct Stream<'a> {
    source: Source<'a>,
    pool: &'a Pool,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// The source's files, and what each thread works in.
struct Source<'a> {
    files: Vec<(&'a Path, File)>,
    workers: Vec<Mutex<Buffers>>,
}

/// Rows of one tensor, all from one source.
struct Block<'a> {
    tensor: &'a Planned,
    item: &'a Item,
    source: &'a Stored,
    /// Rows of the source that lie before.
    skipped: u64,
    /// Rows of the tensor.
    rows: Range<u64>,
}

/// What one thread works in.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    row: Vec<f32>,
    plain: Vec<u8>,
    quantized: QuantizedRows,
}

impl<'a> Stream<'a> {
    /// Opens the files of `checkpoint`.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        pool: &'a Pool,
        progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Self> {
        let open = |(path, _): &'a (PathBuf, _)| match File::open(path) {
            Ok(file) => Ok((path.as_path(), file)),
            Err(source) => Err(Error::Io { path: path.clone(), source }),
        };
        let files = checkpoint.files.iter().map(open).collect::<Result<_>>()?;
        let workers = (0..pool.threads()).map(|_| Mutex::default()).collect();
        let source = Source { files, workers };
        Ok(Self { source, pool, done: 0, total: checkpoint.total_bytes(), progress })
    }

    /// Writes one file of the new checkpoint into `folder`.
    pub(super) fn write(
        &mut self,
        shard: &Shard,
        tensors: &[Planned],
        folder: &Path,
    ) -> Result<()> {
        let path = folder.join(&shard.name);
        let failed = |source| Error::Io { path: path.clone(), source };
        let file = File::create(&path).map_err(failed)?;
        file.write_all_at(&shard.header, 0).map_err(failed)?;
        file.set_len(shard.file_bytes).map_err(failed)?;
        let blocks = blocks(shard, tensors);
        for some in blocks.chunks(BLOCKS_PER_REPORT * self.pool.threads()) {
            let (failure, source) = (Mutex::new(None), &self.source);
            self.pool.for_chunks(some.len(), 1, |worker, range| {
                for block in &some[range] {
                    if let Err(error) = source.convert(worker, block, &file, &path) {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
            if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Err(error);
            }
            self.done += some.iter().map(Block::source_bytes).sum::<u64>();
            if (self.progress)(self.done, self.total).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }
}

impl Source<'_> {
    fn convert(&self, worker: usize, block: &Block<'_>, out: &File, path: &Path) -> Result<()> {
        let mut buffers = self.workers[worker].lock().unwrap_or_else(PoisonError::into_inner);
        let (name, source) = &self.files[block.source.file];
        buffers
            .read(block, source)
            .map_err(|source| Error::Io { path: name.to_path_buf(), source })?;
        buffers.compute(block)?;
        for (part, bytes) in block.item.parts.iter().zip(buffers.parts(block.tensor)) {
            let at = part.offset + block.rows.start * part.row_bytes;
            out.write_all_at(bytes, at)
                .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        }
        Ok(())
    }
}

fn blocks<'a>(shard: &'a Shard, tensors: &'a [Planned]) -> Vec<Block<'a>> {
    let mut blocks = Vec::new();
    for item in &shard.items {
        let tensor = &tensors[item.tensor];
        let step = (BLOCK_ELEMS / tensor.columns().max(1)).max(1);
        let rows_of_source = tensor.rows() / (tensor.sources.len() as u64).max(1);
        let mut first = 0;
        for source in &tensor.sources {
            let mut skipped = 0;
            while skipped < rows_of_source {
                let count = step.min(rows_of_source - skipped);
                let start = first + skipped;
                blocks.push(Block { tensor, item, source, skipped, rows: start..start + count });
                skipped += count;
            }
            first += rows_of_source;
        }
    }
    blocks
}

impl Block<'_> {
    fn row_bytes(&self) -> u64 {
        let rows = self.tensor.rows() / (self.tensor.sources.len() as u64).max(1);
        (self.source.range.end - self.source.range.start) / rows.max(1)
    }

    fn source_bytes(&self) -> u64 {
        (self.rows.end - self.rows.start) * self.row_bytes()
    }
}

impl Buffers {
    #[expect(clippy::cast_possible_truncation, reason = "a block is a few megabytes, or one row")]
    fn read(&mut self, block: &Block<'_>, file: &File) -> std::io::Result<()> {
        self.source.resize(block.source_bytes() as usize, 0);
        let at = block.source.range.start + block.skipped * block.row_bytes();
        file.read_exact_at(&mut self.source, at)
    }

    /// From the source's bytes to those of the parts.
    #[expect(clippy::cast_possible_truncation, reason = "a row is in memory")]
    fn compute(&mut self, block: &Block<'_>) -> Result<()> {
        let columns = block.tensor.columns() as usize;
        self.row.resize(columns, 0.0);
        self.plain.clear();
        self.quantized.clear();
        let (from, bytes) = match block.tensor.action {
            Action::Copy => return Ok(()),
            Action::Cast(from, _) | Action::Quantize(from, ..) => (from, from.bytes()),
        };
        for source in self.source.chunks_exact((columns * bytes).max(1)) {
            from.read_all(source, &mut self.row);
            match block.tensor.action {
                Action::Quantize(_, quantizer, _) => quantizer
                    .push_row(&mut self.row, &mut self.quantized)
                    .map_err(mlxcel_core::Error::from)?,
                Action::Cast(_, to) => self.row.iter().for_each(|x| to.push(*x, &mut self.plain)),
                Action::Copy => {}
            }
        }
        Ok(())
    }

    fn parts(&self, tensor: &Planned) -> Vec<&[u8]> {
        match tensor.action {
            Action::Copy => vec![&self.source],
            Action::Cast(..) => vec![&self.plain],
            Action::Quantize(..) => {
                let QuantizedRows { codes, scales, biases } = &self.quantized;
                vec![codes, scales, biases]
            }
        }
    }
}
