//! Host calls: Rust functions over the memory of arrays, run immediately on the calling thread.
//!
//! Pending inputs are evaluated first; the outputs are evaluated arrays that MLX's operations and
//! further calls accept like any others. A chain of calls therefore never enters MLX's graph: a call
//! costs less than a microsecond (see the ignored test `cost_per_call`), and arrays are freed as soon
//! as their last handle is dropped.
//!
//! Soundness of the slices handed out here: an evaluated array never changes, the caller keeps the
//! inputs alive, and the memory of the outputs is fresh from MLX's allocator and known to this call
//! alone.

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::array::handles;
use crate::bindings as sys;
use crate::call::check;
use crate::{Array, Dtype, Element, Error, Result};

/// Shape and type of an output.
pub type Spec<'a> = (&'a [i32], Dtype);

/// Computes `outputs` from `inputs` by calling `function`; error messages contain `name`.
///
/// Inputs must be row-contiguous: pass others through [`ops::contiguous`](crate::ops::contiguous),
/// which is free for arrays that already are. Elements of an input whose evaluation failed earlier are
/// unspecified, as in [`eval`](crate::eval). A function can write 64 outputs at most.
///
/// # Errors
/// The error of `function`, or [`Error::Panicked`] if it panics; an invalid output shape, an input that
/// is not row-contiguous or cannot be evaluated, a failed allocation.
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
    let input_buffers = evaluated(name, inputs)?;
    let mut arrays = Vec::with_capacity(outputs.len());
    let mut output_buffers = Vec::with_capacity(outputs.len());
    for &spec in outputs {
        let (array, buffer) = allocate(name, spec)?;
        arrays.push(array);
        output_buffers.push(buffer);
    }
    let result = catch_unwind(AssertUnwindSafe(|| {
        let outputs = HostOutputs { buffers: &output_buffers, taken: 0, exclusive: PhantomData };
        function(HostInputs { buffers: &input_buffers }, outputs)
    }));
    match result {
        Ok(result) => result.map(|()| arrays),
        Err(panic) => Err(Error::Panicked { name, message: message_of(panic.as_ref()) }.into()),
    }
}

/// [`call`] with one output.
///
/// # Errors
/// See [`call`].
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

/// Inputs of a host call.
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

    /// True if there are none.
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
            // An empty slice may have any address, aligned or not.
            [] => Ok(&[]),
            bytes => bytemuck::try_cast_slice(bytes)
                .map_err(|_| Error::Misaligned { index, dtype: T::DTYPE }),
        }
    }

    /// [`HostInputs::slice`] of `f32`.
    ///
    /// # Errors
    /// See [`HostInputs::slice`].
    pub fn f32(&self, index: usize) -> Result<&'a [f32]> {
        self.slice(index)
    }

    /// The bytes of input `index`, of any type.
    ///
    /// # Errors
    /// [`Error::NoBuffer`].
    pub fn bytes(&self, index: usize) -> Result<&'a [u8]> {
        let buffer = self.buffer(index)?;
        if buffer.nbytes == 0 {
            return Ok(&[]);
        }
        // SAFETY: `evaluated` filled the buffer with the address and size of an evaluated,
        // row-contiguous array. `call` borrows the array for longer than `'a`, and nothing writes to an
        // evaluated array (see the module's documentation).
        Ok(unsafe { std::slice::from_raw_parts(buffer.data.cast_const().cast(), buffer.nbytes) })
    }

    fn buffer(&self, index: usize) -> Result<&'a sys::mlxcel_buffer> {
        self.buffers.get(index).ok_or(Error::NoBuffer { side: "input", index })
    }
}

/// Outputs of a host call; each can be taken once.
///
/// The memory is fresh and not zeroed, which would cost a pass over it: write every element. Reading it
/// first yields unspecified values but is not undefined behaviour: the shim makes the memory opaque to
/// both compilers, and every bit pattern of an [`Element`] is valid.
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

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// The elements of output `index` for writing, row-major.
    ///
    /// # Errors
    /// [`Error::NoBuffer`], also if the output was already taken; [`Error::WrongDtype`].
    pub fn take<T: Element>(&mut self, index: usize) -> Result<&'a mut [T]> {
        if let Some(buffer) = self.buffers.get(index) {
            expect_dtype(buffer, T::DTYPE)?;
        }
        match self.take_bytes(index)? {
            // An empty slice may have any address, aligned or not.
            [] => Ok(&mut []),
            // MLX's allocators align to 8 bytes or more, the most that an element type needs.
            bytes => Ok(bytemuck::cast_slice_mut(bytes)),
        }
    }

    /// [`HostOutputs::take`] of `f32`.
    ///
    /// # Errors
    /// See [`HostOutputs::take`].
    pub fn f32(&mut self, index: usize) -> Result<&'a mut [f32]> {
        self.take(index)
    }

    /// The bytes of output `index`, of any type, for writing.
    ///
    /// # Errors
    /// [`Error::NoBuffer`], also if the output was already taken.
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
        // SAFETY: `allocate` filled the buffer with the address and size of memory that no other array
        // shares, and made its content opaque. `call` keeps the array alive for longer than `'a`, and
        // `taken` guarantees that this is the only slice over it.
        Ok(unsafe { std::slice::from_raw_parts_mut(buffer.data.cast(), buffer.nbytes) })
    }
}

/// Evaluates the pending ones of `inputs` and returns the memory of all.
fn evaluated(name: &'static str, inputs: &[&Array]) -> Result<Vec<sys::mlxcel_buffer>> {
    let handles = handles(inputs);
    let mut buffers = vec![EMPTY_BUFFER; handles.len()];
    // SAFETY: both vectors have the length that is passed; `inputs` keeps the handles alive.
    let status =
        unsafe { sys::mlxcel_host_read(buffers.as_mut_ptr(), handles.as_ptr(), handles.len()) };
    check(name, status)?;
    Ok(buffers)
}

/// Allocates an output and returns its memory.
fn allocate(name: &'static str, spec: Spec<'_>) -> Result<(Array, sys::mlxcel_buffer)> {
    let (shape, dtype) = spec;
    if dtype.nbytes(shape).is_none() {
        return Err(Error::WrongSize { shape: shape.to_vec(), dtype, nbytes: 0 });
    }
    let mut buffer = EMPTY_BUFFER;
    let array = Array::from_call(name, |out| {
        // SAFETY: the pointer to the dimensions comes from a slice that is borrowed for the call and is
        // passed with its length. `out` is the valid slot of `from_call`, `buffer` a local.
        unsafe {
            sys::mlxcel_host_allocate(
                out,
                &raw mut buffer,
                shape.as_ptr(),
                shape.len(),
                dtype.number(),
            )
        }
    })?;
    Ok((array, buffer))
}

const EMPTY_BUFFER: sys::mlxcel_buffer =
    sys::mlxcel_buffer { data: ptr::null_mut(), nbytes: 0, shape: ptr::null(), ndim: 0, dtype: 0 };

fn shape(buffer: &sys::mlxcel_buffer) -> &[i32] {
    if buffer.ndim == 0 {
        return &[];
    }
    // SAFETY: the shim filled in a pointer to `ndim` dimensions inside the array's descriptor, which
    // `call` keeps alive for longer than it lends the buffer.
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
