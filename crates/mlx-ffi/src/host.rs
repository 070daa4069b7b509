//! Host calls: Rust functions over the memory of arrays, run at once on the calling thread.
//!
//! Inputs that MLX has still to compute are computed first; the outputs are evaluated arrays, which
//! MLX's operations and further calls take like any others. A chain of calls therefore never enters
//! MLX's graph: a call costs less than a microsecond (see the ignored test `cost_per_call`), and what
//! nobody holds any more is freed at once.
//!
//! What the slices handed out here rely on: an evaluated array never changes, the caller keeps the
//! inputs alive, and the outputs' memory, fresh from MLX's allocator, belongs to this call alone.

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::array::handles;
use crate::bindings as sys;
use crate::call::check;
use crate::{Array, Dtype, Element, Error, Result};

/// The shape and type of an output.
pub type Spec<'a> = (&'a [i32], Dtype);

/// Computes `outputs` from `inputs` by calling `function`; `name` is for messages.
///
/// Inputs must be row-contiguous: pass what may not be through
/// [`ops::contiguous`](crate::ops::contiguous), which costs nothing if it already is. Elements of an
/// input whose evaluation has failed before are unspecified, as in [`eval`](crate::eval).
///
/// # Errors
/// What `function` fails with, [`Error::Panicked`] if it panics; an impossible output shape, an
/// input that is not row-contiguous or cannot be computed, memory that cannot be had.
pub fn call<F, E>(
    name: &'static str,
    inputs: &[&Array],
    outputs: &[Spec<'_>],
    function: F,
) -> std::result::Result<Vec<Array>, E>
where
    F: FnOnce(HostInputs<'_>, HostOutputs<'_>) -> std::result::Result<(), E>,
    E: From<Error>,
{
    let read = read(name, inputs)?;
    let mut arrays = Vec::with_capacity(outputs.len());
    let mut written = Vec::with_capacity(outputs.len());
    for &spec in outputs {
        let (array, buffer) = allocate(name, spec)?;
        arrays.push(array);
        written.push(buffer);
    }
    let result = catch_unwind(AssertUnwindSafe(|| {
        let outputs = HostOutputs { buffers: &written, taken: 0, exclusive: PhantomData };
        function(HostInputs { buffers: &read }, outputs)
    }));
    match result {
        Ok(result) => result.map(|()| arrays),
        Err(panic) => Err(Error::Panicked { name, message: message_of(panic.as_ref()) }.into()),
    }
}

/// [`call`] with one output.
///
/// # Errors
/// As for [`call`].
pub fn call_one<F, E>(
    name: &'static str,
    inputs: &[&Array],
    output: Spec<'_>,
    function: F,
) -> std::result::Result<Array, E>
where
    F: FnOnce(HostInputs<'_>, HostOutputs<'_>) -> std::result::Result<(), E>,
    E: From<Error>,
{
    let mut outputs = call(name, inputs, &[output], function)?;
    Ok(outputs.pop().expect("there is an array for each spec"))
}

/// What a host call reads.
#[derive(Debug, Clone, Copy)]
pub struct HostInputs<'a> {
    buffers: &'a [sys::mlxcel_buffer],
}

impl<'a> HostInputs<'a> {
    /// The number of inputs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// The size of each dimension of input `index`.
    ///
    /// # Errors
    /// [`Error::NoBuffer`].
    pub fn shape(&self, index: usize) -> Result<&'a [i32]> {
        self.buffer(index).map(shape)
    }

    /// The element type of input `index`.
    ///
    /// # Errors
    /// [`Error::NoBuffer`].
    pub fn dtype(&self, index: usize) -> Result<Dtype> {
        Ok(Dtype::from_number(self.buffer(index)?.dtype))
    }

    /// The elements of input `index`, row-major.
    ///
    /// # Errors
    /// [`Error::NoBuffer`], [`Error::WrongDtype`], [`Error::Misaligned`].
    pub fn slice<T: Element>(&self, index: usize) -> Result<&'a [T]> {
        expect_dtype(self.buffer(index)?, T::DTYPE)?;
        match self.bytes(index)? {
            // No bytes may lie at any address.
            [] => Ok(&[]),
            bytes => bytemuck::try_cast_slice(bytes)
                .map_err(|_| Error::Misaligned { index, dtype: T::DTYPE }),
        }
    }

    /// [`HostInputs::slice`] of `f32`.
    ///
    /// # Errors
    /// As for [`HostInputs::slice`].
    pub fn f32(&self, index: usize) -> Result<&'a [f32]> {
        self.slice(index)
    }

    /// The bytes of input `index`, whatever its type.
    ///
    /// # Errors
    /// [`Error::NoBuffer`].
    pub fn bytes(&self, index: usize) -> Result<&'a [u8]> {
        let buffer = self.buffer(index)?;
        if buffer.nbytes == 0 {
            return Ok(&[]);
        }
        // SAFETY: the shim gives `nbytes` bytes of an evaluated, row-contiguous array, which its
        // handle keeps and nobody writes during this call (see the module's text).
        Ok(unsafe { std::slice::from_raw_parts(buffer.data.cast_const().cast(), buffer.nbytes) })
    }

    fn buffer(&self, index: usize) -> Result<&'a sys::mlxcel_buffer> {
        self.buffers.get(index).ok_or(Error::NoBuffer { side: "input", index })
    }
}

/// What a host call writes. Each output is taken once.
///
/// Its content is unspecified (fresh memory, not zeroed: that would cost a pass over it), so write
/// every element. Reading it before is no undefined behaviour: the shim marks the memory as written
/// by something that neither compiler can see, and an [`Element`] is valid whatever its bytes are.
#[derive(Debug)]
pub struct HostOutputs<'a> {
    buffers: &'a [sys::mlxcel_buffer],
    /// Bit `i`: output `i` was handed out.
    taken: u64,
    exclusive: PhantomData<&'a mut [u8]>,
}

impl<'a> HostOutputs<'a> {
    /// The number of outputs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// The elements of output `index`, row-major, to be written.
    ///
    /// # Errors
    /// [`Error::NoBuffer`], also when the output was taken before; [`Error::WrongDtype`].
    pub fn take<T: Element>(&mut self, index: usize) -> Result<&'a mut [T]> {
        if let Some(buffer) = self.buffers.get(index) {
            expect_dtype(buffer, T::DTYPE)?;
        }
        match self.take_bytes(index)? {
            // No bytes may lie at any address.
            [] => Ok(&mut []),
            // MLX's allocators align to 8 bytes or more, which no element type exceeds.
            bytes => Ok(bytemuck::cast_slice_mut(bytes)),
        }
    }

    /// [`HostOutputs::take`] of `f32`.
    ///
    /// # Errors
    /// As for [`HostOutputs::take`].
    pub fn f32(&mut self, index: usize) -> Result<&'a mut [f32]> {
        self.take(index)
    }

    /// The bytes of output `index`, whatever its type, to be written.
    ///
    /// # Errors
    /// [`Error::NoBuffer`], also when the output was taken before.
    pub fn take_bytes(&mut self, index: usize) -> Result<&'a mut [u8]> {
        let missing = Error::NoBuffer { side: "output", index };
        let bit = u32::try_from(index).ok().and_then(|shift| 1_u64.checked_shl(shift));
        let (Some(buffer), Some(bit)) = (self.buffers.get(index), bit) else {
            return Err(missing);
        };
        if self.taken & bit != 0 {
            return Err(missing);
        }
        self.taken |= bit;
        if buffer.nbytes == 0 {
            return Ok(&mut []);
        }
        // SAFETY: the shim allocated `nbytes` bytes for this call alone and settled their content;
        // the bit makes sure that this is the only slice over them.
        Ok(unsafe { std::slice::from_raw_parts_mut(buffer.data.cast(), buffer.nbytes) })
    }
}

/// Where the elements of `inputs` lie, computed first where they are not yet.
fn read(name: &'static str, inputs: &[&Array]) -> Result<Vec<sys::mlxcel_buffer>> {
    let handles = handles(inputs);
    let mut buffers = vec![NOWHERE; handles.len()];
    // SAFETY: a slice of live handles with its length, and a slot for each.
    let status =
        unsafe { sys::mlxcel_host_read(buffers.as_mut_ptr(), handles.as_ptr(), handles.len()) };
    check(name, status)?;
    Ok(buffers)
}

/// An array to be written, and where its elements lie.
fn allocate(name: &'static str, (shape, dtype): Spec<'_>) -> Result<(Array, sys::mlxcel_buffer)> {
    if dtype.nbytes(shape).is_none() {
        return Err(Error::WrongSize { shape: shape.to_vec(), dtype, nbytes: 0 });
    }
    let mut buffer = NOWHERE;
    let array = Array::from_call(name, |out| {
        // SAFETY: `shape` is a borrowed slice with its length; `out` and `buffer` are slots.
        unsafe {
            let (dims, ndim) = (shape.as_ptr(), shape.len());
            sys::mlxcel_host_allocate(out, &raw mut buffer, dims, ndim, dtype.number())
        }
    })?;
    Ok((array, buffer))
}

const NOWHERE: sys::mlxcel_buffer =
    sys::mlxcel_buffer { data: ptr::null_mut(), nbytes: 0, shape: ptr::null(), ndim: 0, dtype: 0 };

fn shape(buffer: &sys::mlxcel_buffer) -> &[i32] {
    if buffer.ndim == 0 {
        return &[];
    }
    // SAFETY: the shim gives `ndim` dimensions, which live as long as the buffers.
    unsafe { std::slice::from_raw_parts(buffer.shape, buffer.ndim) }
}

fn expect_dtype(buffer: &sys::mlxcel_buffer, expected: Dtype) -> Result<()> {
    let found = Dtype::from_number(buffer.dtype);
    if found == expected { Ok(()) } else { Err(Error::WrongDtype { expected, found }) }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
