//! Host primitives: graph nodes whose evaluation is a Rust function over the raw buffers.
//!
//! A node runs on the CPU stream of the thread that made it, after the nodes that it depends on and
//! before those that depend on it, on a thread that belongs to MLX. It costs about 2 µs (see the
//! ignored test `cost_per_node`).
//!
//! What MLX guarantees, and the slices handed out here rely on: from the start of the function to
//! its end the inputs' memory is kept and not written, and the outputs' memory, fresh from MLX's
//! allocator, belongs to this node alone.

use std::any::Any;
use std::ffi::c_void;
use std::fmt::Display;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::array::handles;
use crate::bindings as sys;
use crate::{Array, Dtype, Element, Error, Result};

/// The shape and type of an output.
pub type Spec<'a> = (&'a [i32], Dtype);

/// Makes a node that computes `outputs` from `inputs` by calling `function`, once, when evaluated.
///
/// Inputs must be row-contiguous when the node is evaluated, or the evaluation fails: pass what may
/// not be through [`ops::contiguous`](crate::ops::contiguous), which costs nothing if it already is.
/// What `function` captured is dropped when the node has run, or dies unused.
///
/// If `function` returns an error or panics, the evaluation (the one that waits for the node, or
/// the next one on this thread, whichever MLX tells first) fails once with an [`Error::Mlx`] whose
/// message begins ``host primitive `name`:``. The outputs are then zeros, and nodes that depend on
/// them may have run or not: drop the whole graph.
///
/// # Errors
/// An impossible output shape.
pub fn call<F, E>(
    name: &'static str,
    inputs: &[&Array],
    outputs: &[Spec<'_>],
    function: F,
) -> Result<Vec<Array>>
where
    F: FnOnce(HostInputs<'_>, HostOutputs<'_>) -> std::result::Result<(), E> + Send + 'static,
    E: Display,
{
    for &(shape, dtype) in outputs {
        if dtype.nbytes(shape).is_none() {
            return Err(Error::WrongSize { shape: shape.to_vec(), dtype, nbytes: 0 });
        }
    }
    let specs: Vec<_> = outputs.iter().map(|&(shape, dtype)| spec(shape, dtype)).collect();
    let handles = handles(inputs);
    let context = Box::into_raw(Box::new(Some(function))).cast::<c_void>();
    Array::many_from_call("host call", specs.len(), |outs| {
        // SAFETY: slices are given with their lengths and `outs` has a slot for each spec. `context`
        // is a `Box<Option<F>>`, which is what `run::<F, E>` and `discard::<F>` expect, and the
        // shim calls `discard` exactly once, after any `run`. `F: Send`, so that may be any thread.
        unsafe {
            let (ins, out_specs) = (handles.as_ptr(), specs.as_ptr());
            sys::mlxcel_host_call(
                outs,
                name.as_ptr().cast(),
                name.len(),
                ins,
                handles.len(),
                out_specs,
                specs.len(),
                context,
                Some(run::<F, E>),
                Some(discard::<F>),
            )
        }
    })
}

/// [`call`] for a node with one output.
///
/// # Errors
/// As for [`call`].
pub fn call_one<F, E>(
    name: &'static str,
    inputs: &[&Array],
    output: Spec<'_>,
    function: F,
) -> Result<Array>
where
    F: FnOnce(HostInputs<'_>, HostOutputs<'_>) -> std::result::Result<(), E> + Send + 'static,
    E: Display,
{
    let mut outputs = call(name, inputs, &[output], function)?;
    Ok(outputs.pop().expect("the shim makes one array for each spec"))
}

/// What a host primitive reads.
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
        // SAFETY: the shim gives `nbytes` bytes of an evaluated, row-contiguous array, which MLX
        // keeps and nobody writes during this call (see the module's text).
        Ok(unsafe { std::slice::from_raw_parts(buffer.data.cast_const().cast(), buffer.nbytes) })
    }

    fn buffer(&self, index: usize) -> Result<&'a sys::mlxcel_buffer> {
        self.buffers.get(index).ok_or(Error::NoBuffer { side: "input", index })
    }
}

/// What a host primitive writes. Each output is taken once.
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
        // SAFETY: the shim allocated `nbytes` bytes for this node alone and settled their content;
        // the bit makes sure that this is the only slice over them.
        Ok(unsafe { std::slice::from_raw_parts_mut(buffer.data.cast(), buffer.nbytes) })
    }
}

fn spec(shape: &[i32], dtype: Dtype) -> sys::mlxcel_spec {
    sys::mlxcel_spec { shape: shape.as_ptr(), ndim: shape.len(), dtype: dtype.number() }
}

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

/// Called by the shim on the stream's thread; returns 0, or 1 with the message set.
///
/// # Safety
/// - `context` is a live `Box<Option<F>>` that nobody else uses now.
/// - The buffers are valid as the module's text says, for the duration of the call.
unsafe extern "C" fn run<F, E>(
    context: *mut c_void,
    inputs: *const sys::mlxcel_buffer,
    inputs_len: usize,
    outputs: *const sys::mlxcel_buffer,
    outputs_len: usize,
) -> sys::mlxcel_status
where
    F: FnOnce(HostInputs<'_>, HostOutputs<'_>) -> std::result::Result<(), E>,
    E: Display,
{
    // SAFETY: the caller's promise; nobody else uses the context during this call.
    let function = unsafe { (*context.cast::<Option<F>>()).take() };
    // SAFETY: the caller's promise. A list without entries may have a null pointer.
    let (inputs, outputs) = unsafe { (list(inputs, inputs_len), list(outputs, outputs_len)) };
    let result = catch_unwind(AssertUnwindSafe(|| {
        let function = function.expect("MLX evaluates a node once");
        let outputs = HostOutputs { buffers: outputs, taken: 0, exclusive: PhantomData };
        function(HostInputs { buffers: inputs }, outputs).map_err(|error| error.to_string())
    }));
    match result.unwrap_or_else(|panic| Err(panic_message(panic.as_ref()))) {
        Ok(()) => 0,
        Err(message) => {
            // SAFETY: the pointer and length of a string, which the shim copies.
            unsafe { sys::mlxcel_set_last_error(message.as_ptr().cast(), message.len()) };
            1
        }
    }
}

/// # Safety
/// `data` points to `len` buffers that live for `'a`, or `len` is 0.
unsafe fn list<'a>(data: *const sys::mlxcel_buffer, len: usize) -> &'a [sys::mlxcel_buffer] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data, len) }
}

/// Called by the shim once, on whichever thread lets go of the node last.
///
/// # Safety
/// `context` is a `Box<Option<F>>` that is not used again.
unsafe extern "C" fn discard<F>(context: *mut c_void) {
    // SAFETY: the caller's promise; the box came from `Box::into_raw` of this type.
    let function = unsafe { Box::from_raw(context.cast::<Option<F>>()) };
    // A captured value whose drop panics has said so on stderr; unwinding further would abort.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(function)));
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("no message"))
}
