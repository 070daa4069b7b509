//! Tensors that are used where they lie: in a file that is mapped or has been read, or in the
//! program itself.
//!
//! Nothing is read, copied, or counted by MLX until an operation touches it. On Metal MLX decides:
//! page-aligned tensors stay in place, others are copied. CUDA copies.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};

use crate::bindings as sys;
use crate::resident::ResidentFile;
use crate::{Array, Dtype, Error, Result};

/// MLX's CPU allocator has a size word before the data; ours is whatever the file holds there, but
/// it must be readable.
const WORD_BYTES: usize = 8;

/// A file's bytes, mapped or read, or bytes of the program, of which arrays can be made without a
/// copy.
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
        let (start, end, len) = (range.start, range.end, self.len());
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

/// An array over mapped bytes, and whether it really lies there.
#[derive(Debug)]
pub struct MappedArray {
    /// The tensor.
    pub array: Array,
    /// False when the bytes had to be copied: misaligned, at the very start of the file, or on a
    /// device that cannot use them.
    pub in_place: bool,
}

impl MappedFile {
    /// Maps `path`, privately: the file never changes through the mapping.
    ///
    /// The file must not be truncated while it is mapped; reading beyond its new end ends the
    /// process (`SIGBUS`).
    ///
    /// # Errors
    /// [`Error::Map`] when it cannot be opened or mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |source| Error::Map { path: PathBuf::from(path), source };
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the mapping is private, so nothing is written to the file, and the writes of
        // others to it are as unspecified as bytes read from a file that someone edits: every use
        // of them treats them as plain data. Truncation is documented above.
        let map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(&file) };
        Ok(Self { bytes: Arc::new(Bytes::Mapped(map.map_err(failed)?)) })
    }

    /// Takes memory of its own for `path`, in huge pages where the system has them: each part is read
    /// when an array over it is first made. Takes longer than mapping, and is faster to use.
    ///
    /// # Errors
    /// [`Error::Map`] when it cannot be opened, or there are no addresses for it.
    pub fn resident(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        match ResidentFile::open(&path) {
            Ok(file) => Ok(Self { bytes: Arc::new(Bytes::Resident(path, file)) }),
            Err(source) => Err(Error::Map { path, source }),
        }
    }

    /// Bytes that live as long as the program, such as an `include_bytes!`.
    #[must_use]
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self { bytes: Arc::new(Bytes::Static(bytes)) }
    }

    /// The bytes `range`.
    ///
    /// # Errors
    /// [`Error::OutOfFile`]; [`Error::Read`] when they had to be read and could not.
    pub fn bytes(&self, range: Range<usize>) -> Result<&[u8]> {
        self.bytes.get(range)
    }

    /// The tensor of `shape` (row-major) and `dtype` in bytes `range`.
    ///
    /// # Errors
    /// As [`Self::bytes`], and [`Error::WrongSize`] when the range has another size.
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
            // SAFETY: `data` is aligned and has `shape` times `dtype` bytes, with 8 readable ones
            // before it, all kept alive by `context`, an `Arc` that `release` gives back exactly
            // once. MLX never writes there: it reuses only buffers that it owns. `shape` is a
            // slice with its length; the other pointers are slots to write.
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

/// Gives back the `Arc<Bytes>` of one array; MLX calls it after the last use, on any thread.
unsafe extern "C" fn release(context: *mut std::ffi::c_void) {
    // SAFETY: `context` came from `Arc::into_raw` of this type, and is given back once. `Bytes` is
    // `Send + Sync`, so this may be any thread; dropping it unmaps or does nothing, no panic.
    drop(unsafe { Arc::from_raw(context.cast::<Bytes>().cast_const()) });
}
