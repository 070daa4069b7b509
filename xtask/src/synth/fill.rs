//! Writes the tensors of a checkpoint: blocks of rows, on all cores, each at its place in the
//! file, so that memory stays at a few megabytes whatever the size of the model.

use super::Dtype;
use super::affine::quantize_group;
use super::layout::{Affine, Shard, Stored, Tensor};
use super::random::{fill_row, tensor_key};
use anyhow::{Context, Result};
use half::{bf16, f16};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Elements that a worker makes before it writes.
const BLOCK_ELEMS: usize = 1 << 20;

/// Rows of one tensor.
struct Job<'a> {
    tensor: &'a Tensor,
    rows: Range<u64>,
}

/// Creates the file of `shard` in `folder` and fills it; floats are stored as `dtype`.
pub(super) fn write_shard(shard: &Shard, folder: &Path, dtype: Dtype, seed: u64) -> Result<()> {
    let path = folder.join(&shard.file_name);
    let create = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(&shard.header)?;
        file.set_len(shard.file_bytes)
    };
    create().with_context(|| format!("writing {}", path.display()))?;
    let jobs = jobs(&shard.tensors);
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let work = || -> Result<()> {
        let file = File::options().write(true).open(&path)?;
        let mut worker = Worker { file, dtype, seed, buffers: Buffers::default() };
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            worker.run(job).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().try_for_each(|handle| handle.join().expect("workers do not panic"))
    })
}

fn jobs(tensors: &[Tensor]) -> Vec<Job<'_>> {
    let mut jobs = Vec::new();
    for tensor in tensors {
        let step = (BLOCK_ELEMS / tensor.columns.max(1)).max(1) as u64;
        let mut start = 0;
        while start < tensor.rows {
            let end = tensor.rows.min(start + step);
            jobs.push(Job { tensor, rows: start..end });
            start = end;
        }
    }
    jobs
}

struct Worker {
    file: File,
    dtype: Dtype,
    seed: u64,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    row: Vec<f32>,
    /// The weight or its codes, scales, biases: as in [`Tensor::parts`].
    parts: [Vec<u8>; 3],
}

impl Worker {
    fn run(&mut self, job: &Job<'_>) -> Result<()> {
        let Job { tensor, rows } = job;
        let key = tensor_key(self.seed, &tensor.name);
        self.buffers.clear(tensor.columns);
        for index in rows.clone() {
            fill_row(key, index, tensor.normal, &mut self.buffers.row);
            match tensor.affine {
                None => self.buffers.push_plain(self.dtype),
                Some(affine) => self.buffers.push_affine(affine, self.dtype),
            }
        }
        for (part, bytes) in tensor.parts.iter().zip(&self.buffers.parts) {
            write_rows(&mut self.file, part, rows.start, bytes)?;
        }
        Ok(())
    }
}

impl Buffers {
    fn clear(&mut self, columns: usize) {
        self.row.resize(columns, 0.0);
        self.parts.iter_mut().for_each(Vec::clear);
    }

    fn push_plain(&mut self, dtype: Dtype) {
        let row = self.row.iter();
        let weight = &mut self.parts[0];
        match dtype {
            Dtype::F32 => weight.extend(row.flat_map(|x| x.to_le_bytes())),
            Dtype::Bf16 => weight.extend(row.flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
            Dtype::F16 => weight.extend(row.flat_map(|x| f16::from_f32(*x).to_le_bytes())),
        }
    }

    /// Quantises the row as mlx-lm does: the checkpoint's dtype first, then the codes.
    fn push_affine(&mut self, affine: Affine, dtype: Dtype) {
        for element in &mut self.row {
            *element = rounded(*element, dtype);
        }
        let [codes, scales, biases] = &mut self.parts;
        for weights in self.row.chunks_exact(affine.group_size.into()) {
            let group = quantize_group(weights, affine.bits, codes);
            push_float(scales, group.scale, dtype);
            push_float(biases, group.bias, dtype);
        }
    }
}

fn rounded(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
    }
}

fn push_float(bytes: &mut Vec<u8>, value: f32, dtype: Dtype) {
    match dtype {
        Dtype::F32 => bytes.extend_from_slice(&value.to_le_bytes()),
        Dtype::Bf16 => bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
        Dtype::F16 => bytes.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
    }
}

fn write_rows(file: &mut File, part: &Stored, first_row: u64, bytes: &[u8]) -> Result<()> {
    file.seek(SeekFrom::Start(part.offset + first_row * part.row_bytes))?;
    file.write_all(bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// Made by `xtask/golden/affine.py` with `mx.quantize`.
    const GOLDEN: &[u8] = include_bytes!("../../golden/affine.safetensors");

    fn check(bits: u8, group_size: u16, dtype: Dtype, label: &str) {
        let golden = SafeTensors::deserialize(GOLDEN).unwrap();
        let weights = golden.tensor("weights").unwrap();
        let row: Vec<f32> = weights
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        let mut buffers = Buffers { row, ..Buffers::default() };
        buffers.push_affine(Affine { bits, group_size }, dtype);
        for (part, bytes) in ["codes", "scales", "biases"].iter().zip(&buffers.parts) {
            let name = format!("{label}.{bits}.{group_size}.{part}");
            assert_eq!(bytes, golden.tensor(&name).unwrap().data(), "{name}");
        }
    }

    #[test]
    fn codes_scales_and_biases_are_those_of_mlx() {
        for bits in super::super::affine::BITS {
            for group_size in super::super::affine::GROUP_SIZES {
                check(bits, group_size, Dtype::F32, "f32");
                check(bits, group_size, Dtype::Bf16, "bf16");
                check(bits, group_size, Dtype::F16, "f16");
            }
        }
    }
}
