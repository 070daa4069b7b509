//! Tensors used in place: in a mapped file, in a file read on demand, or in the program's own data.
//!
//! Nothing is read or copied, and MLX counts nothing, until an operation touches a tensor. On Metal, MLX
//! keeps page-aligned tensors in place and copies others. CUDA copies.
//!
//! # Files that change while they are mapped
//!
//! A mapping shows the file's current content. If another process writes to the file, tensors over it
//! change as well, which neither MLX nor Rust's `&[u8]` allows for: by the letter of the language it is
//! undefined behaviour, and in practice the values are unspecified. If the file is truncated, reading
//! beyond its new end terminates the process (`SIGBUS`). No portable API excludes either, so this crate
//! documents the risk instead of hiding it: map only files that nobody modifies, as every program that
//! maps weights does, and use [`MappedFile::resident`], which copies, for all others.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};

use crate::bindings as sys;
use crate::resident::ResidentFile;
use crate::{Array, Dtype, Error, Result};

/// Size of the word that MLX's CPU allocator keeps before the data. MLX never interprets it for
/// memory that it does not own, but it must be readable.
const WORD_BYTES: usize = 8;

/// Bytes of a file, mapped or read, or of the program, that arrays can use without a copy.
///
/// Cloning is cheap. The memory lives as long as a clone of this, or an array over it.
#[derive(Clone)]
pub struct MappedFile {
    bytes: Arc<Bytes>,
}

enum Bytes {
    Mapped(MmapMut),
    Resident(PathBuf, ResidentFile),
    Static(&'static [u8]),
}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Self::Mapped(map) => map.len(),
            Self::Resident(_, file) => file.len(),
            Self::Static(bytes) => bytes.len(),
        }
    }

    fn get(&self, range: Range<usize>) -> Result<&[u8]> {
        let Range { start, end } = range;
        let len = self.len();
        if start > end || end > len {
            return Err(Error::OutOfFile { start, end, len });
        }
        match self {
            Self::Mapped(map) => Ok(&map[range]),
            Self::Static(bytes) => Ok(&bytes[range]),
            Self::Resident(path, file) => {
                file.bytes(range).map_err(|source| Error::Read { path: path.clone(), source })
            }
        }
    }
}

/// An array over the bytes of a [`MappedFile`].
#[derive(Debug)]
pub struct MappedArray {
    /// The tensor.
    pub array: Array,
    /// False if the bytes were copied because they are misaligned, at the very start of the file, or
    /// on a device that cannot use them.
    pub in_place: bool,
}

impl MappedFile {
    /// Maps `path` privately: nothing is ever written to the file through the mapping.
    ///
    /// Nobody may modify or truncate the file while the mapping, or an array over it, is alive; the
    /// module's documentation says what happens otherwise.
    ///
    /// # Errors
    /// [`Error::Map`] if the file cannot be opened or mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| map_error(path, source))?;
        // SAFETY: the mapping is private, so this process cannot change the bytes. The operating system
        // offers no way to exclude changes by others: that nobody makes any is the documented condition
        // for calling this function. Every consumer treats the bytes as plain numbers, for which all
        // bit patterns are valid, so a change cannot break an invariant of a type.
        let map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(&file) };
        let map = map.map_err(|source| map_error(path, source))?;
        Ok(Self { bytes: Arc::new(Bytes::Mapped(map)) })
    }

    /// Opens `path` for reading into anonymous memory, in huge pages where the system supports them.
    /// Each part is read when it is first used. Slower to load than a mapping, faster to compute with,
    /// and independent of later changes to parts that have been read.
    ///
    /// # Errors
    /// [`Error::Map`] if the file cannot be opened or no address space is left for it.
    pub fn resident(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = ResidentFile::open(path).map_err(|source| map_error(path, source))?;
        Ok(Self { bytes: Arc::new(Bytes::Resident(path.to_owned(), file)) })
    }

    /// Wraps bytes that live as long as the program, such as those of `include_bytes!`.
    #[must_use]
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self { bytes: Arc::new(Bytes::Static(bytes)) }
    }

    /// The bytes in `range`.
    ///
    /// Over a file opened with [`MappedFile::open`], the slice shows later changes to the file; see the
    /// module's documentation.
    ///
    /// # Errors
    /// [`Error::OutOfFile`]; [`Error::Read`] if a resident file cannot be read.
    pub fn bytes(&self, range: Range<usize>) -> Result<&[u8]> {
        self.bytes.get(range)
    }

    /// The tensor of `shape` (row-major) and `dtype` in the bytes `range`.
    ///
    /// # Errors
    /// See [`Self::bytes`]; also [`Error::WrongSize`] if the range has a different size.
    pub fn array(&self, range: Range<usize>, shape: &[i32], dtype: Dtype) -> Result<MappedArray> {
        let data = self.checked(&range, shape, dtype)?;
        let aligned = data.as_ptr().addr().is_multiple_of(dtype.size_bytes());
        if data.is_empty() || range.start < WORD_BYTES || !aligned {
            return Ok(MappedArray {
                array: Array::from_bytes(data, shape, dtype)?,
                in_place: false,
            });
        }
        let mut in_place = false;
        let context = Arc::into_raw(Arc::clone(&self.bytes)).cast_mut().cast();
        let array = Array::from_call("from_foreign", |out| {
            // SAFETY: `checked` made sure that `data` has the size of `shape` and `dtype`; it is aligned,
            // and the test of `range.start` above leaves 8 readable bytes before it. `context` keeps all
            // of them alive until the shim calls `release`, which it does exactly once, also on failure.
            // MLX never writes there, because it reuses only buffers that it owns. `shape` is borrowed
            // for the call and passed with its length; the out pointers are valid.
            unsafe {
                sys::mlxcel_array_from_foreign(
                    out,
                    &mut in_place,
                    data.as_ptr().cast_mut().cast(),
                    shape.as_ptr(),
                    shape.len(),
                    dtype.number(),
                    context,
                    Some(release),
                )
            }
        })?;
        Ok(MappedArray { array, in_place })
    }

    fn checked(&self, range: &Range<usize>, shape: &[i32], dtype: Dtype) -> Result<&[u8]> {
        let data = self.bytes(range.clone())?;
        if dtype.nbytes(shape) != Some(data.len()) {
            return Err(Error::WrongSize { shape: shape.to_vec(), dtype, nbytes: data.len() });
        }
        Ok(data)
    }
}

fn map_error(path: &Path, source: std::io::Error) -> Error {
    Error::Map { path: path.to_owned(), source }
}

/// Drops the `Arc<Bytes>` of one array. MLX calls it after the last use, on any thread.
///
/// # Safety
/// `context` comes from `Arc::<Bytes>::into_raw`, and this is the only call for it.
unsafe extern "C" fn release(context: *mut std::ffi::c_void) {
    // SAFETY: the caller guarantees the origin of `context` and that it is released once. `Bytes` is
    // `Send + Sync`, so any thread may drop it; the drop unmaps memory and does not panic.
    drop(unsafe { Arc::from_raw(context.cast::<Bytes>().cast_const()) });
}
