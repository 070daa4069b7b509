//! Writes the tensors of a checkpoint in blocks of rows, on all cores, each at its offset in the file,
//! so that memory stays at a few megabytes for a model of any size.

use super::Dtype;
use super::layout::{Affine, Coding, Shard, StoredTensor, Tensor};
use super::random::{fill_row, tensor_key};
use crate::{Result, TestingError};
use mlxcel_kernels::quantize::{QuantizedRows, Quantizer, push_mxfp4_row};
use mlxcel_kernels::weights::FloatType;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Elements per write.
const BLOCK_ELEMS: usize = 1 << 20;

/// Rows of one tensor.
struct RowBlock<'a> {
    tensor: &'a Tensor,
    rows: Range<u64>,
}

/// Creates the file of `shard` in `folder` and fills it; floats are stored as `dtype`.
pub(super) fn write_shard(shard: &Shard, folder: &Path, dtype: Dtype, seed: u64) -> Result<()> {
    let path = folder.join(&shard.file_name);
    create(shard, &path).map_err(|error| TestingError::io(&path, error))?;
    let blocks = row_blocks(&shard.tensors);
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for _ in 0..threads {
            handles.push(scope.spawn(|| {
                let mut worker = FillWorker::open(&path, dtype, seed)?;
                while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    worker.fill(block, &path)?;
                }
                Ok(())
            }));
        }
        handles.into_iter().try_for_each(|handle| handle.join().expect("workers do not panic"))
    })
}

/// Creates the file with its header and its full size.
fn create(shard: &Shard, path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&shard.header)?;
    file.set_len(shard.file_bytes)
}

fn row_blocks(tensors: &[Tensor]) -> Vec<RowBlock<'_>> {
    let mut blocks = Vec::new();
    for tensor in tensors {
        let step = (BLOCK_ELEMS / tensor.columns.max(1)).max(1) as u64;
        let mut start = 0;
        while start < tensor.rows {
            let end = tensor.rows.min(start + step);
            blocks.push(RowBlock { tensor, rows: start..end });
            start = end;
        }
    }
    blocks
}

struct FillWorker {
    file: File,
    dtype: Dtype,
    seed: u64,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    row: Vec<f32>,
    plain: Vec<u8>,
    quantized: QuantizedRows,
}

impl FillWorker {
    fn open(path: &Path, dtype: Dtype, seed: u64) -> Result<Self> {
        let file = File::options().write(true).open(path);
        let file = file.map_err(|error| TestingError::io(path, error))?;
        Ok(Self { file, dtype, seed, buffers: Buffers::default() })
    }

    /// Generates the rows of `block` and writes them to the file at `path`.
    fn fill(&mut self, block: &RowBlock<'_>, path: &Path) -> Result<()> {
        let RowBlock { tensor, rows } = block;
        let key = tensor_key(self.seed, &tensor.name);
        self.buffers.clear(tensor.columns);
        for index in rows.clone() {
            fill_row(key, index, tensor.normal, &mut self.buffers.row);
            match tensor.coding {
                Coding::Floats => self.buffers.push_plain(self.dtype.into()),
                Coding::Affine(affine) => self.buffers.push_affine(affine, self.dtype.into())?,
                Coding::Mxfp4 => {
                    let QuantizedRows { codes, scales, .. } = &mut self.buffers.quantized;
                    push_mxfp4_row(&self.buffers.row, codes, scales)?;
                }
            }
        }
        let QuantizedRows { codes, scales, biases } = &self.buffers.quantized;
        let parts = match tensor.coding {
            Coding::Floats => vec![&self.buffers.plain],
            Coding::Affine(_) => vec![codes, scales, biases],
            Coding::Mxfp4 => vec![codes, scales],
        };
        for (part, bytes) in tensor.parts.iter().zip(parts) {
            write_rows(&mut self.file, part, rows.start, bytes)
                .map_err(|error| TestingError::io(path, error))?;
        }
        Ok(())
    }
}

impl Buffers {
    fn clear(&mut self, columns: usize) {
        self.row.resize(columns, 0.0);
        self.plain.clear();
        self.quantized.clear();
    }

    fn push_plain(&mut self, dtype: FloatType) {
        self.row.iter().for_each(|x| dtype.push(*x, &mut self.plain));
    }

    fn push_affine(&mut self, affine: Affine, dtype: FloatType) -> Result<()> {
        let quantizer = Quantizer::new(affine.bits, affine.group_size, dtype)?;
        Ok(quantizer.push_row(&mut self.row, &mut self.quantized)?)
    }
}

impl From<Dtype> for FloatType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
        }
    }
}

fn write_rows(
    file: &mut File,
    part: &StoredTensor,
    first_row: u64,
    bytes: &[u8],
) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(part.offset + first_row * part.row_bytes))?;
    file.write_all(bytes)
}
