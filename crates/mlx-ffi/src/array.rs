//! Arrays: handles to nodes of MLX's graph, access to their elements, and evaluation.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use crate::bindings as sys;
use crate::call::check;
use crate::{Dtype, Element, Error, Result};

/// An n-dimensional array, evaluated or pending.
///
/// Cloning is cheap: both handles refer to the same array. Arrays are immutable; an operation creates a
/// new one. A handle stays on its thread because MLX's streams do.
pub struct Array {
    raw: NonNull<sys::mlxcel_array>,
    // MLX fails with "There is no Stream(cpu, N) in current thread" on any other thread.
    thread_bound: PhantomData<*mut ()>,
}

impl Array {
    /// Copies `data` into an array of `shape` (row-major).
    ///
    /// # Errors
    /// [`Error::WrongSize`] if the number of elements differs from that of `shape`.
    pub fn from_slice<T: Element>(data: &[T], shape: &[i32]) -> Result<Self> {
        Self::from_bytes(bytemuck::cast_slice(data), shape, T::DTYPE)
    }

    /// Copies `data`, which needs no alignment, into an array of `shape` (row-major).
    ///
    /// # Errors
    /// [`Error::WrongSize`] if the size differs from that of `shape` and `dtype`.
    pub fn from_bytes(data: &[u8], shape: &[i32], dtype: Dtype) -> Result<Self> {
        if dtype.nbytes(shape) != Some(data.len()) {
            return Err(Error::WrongSize { shape: shape.to_vec(), dtype, nbytes: data.len() });
        }
        Self::from_call("from_bytes", |out| {
            // SAFETY: both pointers come from slices that are borrowed for the call and are passed with
            // their lengths; the shim only reads them. `out` is the valid slot of `from_call`.
            unsafe {
                sys::mlxcel_array_from_bytes(
                    out,
                    data.as_ptr().cast(),
                    data.len(),
                    shape.as_ptr(),
                    shape.len(),
                    dtype.number(),
                )
            }
        })
    }

    /// Copies `data` into a boolean array of `shape`.
    ///
    /// # Errors
    /// [`Error::WrongSize`] as for [`Array::from_bytes`].
    pub fn from_bools(data: &[bool], shape: &[i32]) -> Result<Self> {
        let bytes: Vec<u8> = data.iter().map(|&value| u8::from(value)).collect();
        Self::from_bytes(&bytes, shape, Dtype::Bool)
    }

    /// Array of `shape` with every element set to `value`, rounded to `dtype`.
    ///
    /// # Errors
    /// [`Error::Mlx`] for a negative dimension.
    pub fn full(shape: &[i32], value: f64, dtype: Dtype) -> Result<Self> {
        Self::from_call("full", |out| {
            // SAFETY: the pointer comes from a slice that is borrowed for the call and is passed with its
            // length. `out` is the valid slot of `from_call`.
            unsafe { sys::mlxcel_full(out, shape.as_ptr(), shape.len(), value, dtype.number()) }
        })
    }

    /// Array of zeros.
    ///
    /// # Errors
    /// See [`Array::full`].
    pub fn zeros(shape: &[i32], dtype: Dtype) -> Result<Self> {
        Self::full(shape, 0.0, dtype)
    }

    /// Zero-dimensional array: `value`, rounded to `dtype`.
    ///
    /// # Errors
    /// None in practice; the call goes through the shim.
    pub fn scalar(value: f64, dtype: Dtype) -> Result<Self> {
        Self::full(&[], value, dtype)
    }

    /// The size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &[i32] {
        let mut dims = ptr::null();
        let mut len = 0;
        // SAFETY: `self` owns a live handle, and both pointers refer to locals. The shim writes the locals
        // only when it succeeds.
        let status = unsafe { sys::mlxcel_array_shape(&mut dims, &mut len, self.raw()) };
        if status != 0 || len == 0 {
            return &[];
        }
        // SAFETY: the shim returned a pointer to `len` dimensions inside the array's descriptor. `self`
        // keeps the descriptor alive for the returned lifetime, and MLX never changes an array's shape.
        unsafe { std::slice::from_raw_parts(dims, len) }
    }

    /// The size of dimension `axis`; negative axes count from the end. `None` if out of range.
    #[must_use]
    pub fn dim(&self, axis: i32) -> Option<i32> {
        let shape = self.shape();
        let axis = isize::try_from(axis).ok()?;
        let index =
            if axis < 0 { shape.len().checked_add_signed(axis)? } else { axis.unsigned_abs() };
        shape.get(index).copied()
    }

    /// The number of dimensions.
    #[must_use]
    pub fn ndim(&self) -> usize {
        self.shape().len()
    }

    /// The number of elements.
    #[must_use]
    pub fn size(&self) -> usize {
        self.nbytes() / self.dtype().size_bytes()
    }

    /// The size of the elements in bytes; a view may occupy less memory.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.dtype().nbytes(self.shape()).expect("MLX checked the size when it created the array")
    }

    /// The type of the elements.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        let mut number = 0;
        // SAFETY: `self` owns a live handle, and the pointer refers to a local. This call cannot fail.
        unsafe { sys::mlxcel_array_dtype(&mut number, self.raw()) };
        Dtype::from_number(number)
    }

    /// True if the array is evaluated and its elements lie in row-major order without gaps, as
    /// [`host`](crate::host) calls require.
    #[must_use]
    pub fn is_row_contiguous(&self) -> bool {
        let mut contiguous = false;
        // SAFETY: `self` owns a live handle, and the pointer refers to a local, which keeps `false` on
        // failure.
        unsafe { sys::mlxcel_array_is_row_contiguous(&mut contiguous, self.raw()) };
        contiguous
    }

    /// Computes this array and waits for the result.
    ///
    /// # Errors
    /// The failure of any node that it depends on.
    pub fn eval(&self) -> Result<()> {
        eval(&[self])
    }

    /// The array's only element, after evaluation.
    ///
    /// # Errors
    /// [`Error::WrongDtype`], [`Error::WrongSize`] unless there is exactly one element, or a failed
    /// evaluation.
    pub fn item<T: Element>(&self) -> Result<T> {
        match self.to_vec::<T>()?.as_slice() {
            [value] => Ok(*value),
            _ => Err(self.wrong_size(T::DTYPE.size_bytes())),
        }
    }

    /// The elements in row-major order, after evaluating the array.
    ///
    /// # Errors
    /// [`Error::WrongDtype`] (nothing is converted), or a failed evaluation.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype() != T::DTYPE {
            return Err(Error::WrongDtype { expected: T::DTYPE, found: self.dtype() });
        }
        let mut values = vec![T::zeroed(); self.size()];
        self.copy_to(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The elements of a boolean array in row-major order, after evaluating it.
    ///
    /// # Errors
    /// [`Error::WrongDtype`], or a failed evaluation.
    pub fn to_bools(&self) -> Result<Vec<bool>> {
        if self.dtype() != Dtype::Bool {
            return Err(Error::WrongDtype { expected: Dtype::Bool, found: self.dtype() });
        }
        Ok(self.to_bytes()?.into_iter().map(|byte| byte != 0).collect())
    }

    /// The bytes of the elements in row-major order, after evaluating the array.
    ///
    /// # Errors
    /// A failed evaluation.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.nbytes()];
        self.copy_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Evaluates the array and copies its elements in row-major order to `dest`, which must be
    /// [`Array::nbytes`] long.
    fn copy_to(&self, dest: &mut [u8]) -> Result<()> {
        if dest.len() != self.nbytes() {
            return Err(self.wrong_size(dest.len()));
        }
        // SAFETY: the pointer comes from an exclusively borrowed slice and is passed with its length, which
        // the shim compares with the array's. `self` owns a live handle.
        let status =
            unsafe { sys::mlxcel_array_read(dest.as_mut_ptr().cast(), dest.len(), self.raw()) };
        check("eval", status)
    }

    fn wrong_size(&self, nbytes: usize) -> Error {
        Error::WrongSize { shape: self.shape().to_vec(), dtype: self.dtype(), nbytes }
    }

    pub(crate) fn raw(&self) -> *const sys::mlxcel_array {
        self.raw.as_ptr()
    }

    /// Returns the array that `call` writes through its pointer, or the error that it reports.
    pub(crate) fn from_call(
        op: &'static str,
        call: impl FnOnce(*mut *mut sys::mlxcel_array) -> sys::mlxcel_status,
    ) -> Result<Self> {
        let mut raw = ptr::null_mut();
        check(op, call(&raw mut raw))?;
        Ok(Self::from_raw(raw))
    }

    /// Returns the arrays that `call` writes to its `len` slots; slots may stay null.
    pub(crate) fn many_from_call(
        op: &'static str,
        len: usize,
        call: impl FnOnce(*mut *mut sys::mlxcel_array) -> sys::mlxcel_status,
    ) -> Result<Vec<Self>> {
        let mut raw = vec![ptr::null_mut(); len];
        check(op, call(raw.as_mut_ptr()))?;
        Ok(raw.into_iter().filter(|slot| !slot.is_null()).map(Self::from_raw).collect())
    }

    fn from_raw(raw: *mut sys::mlxcel_array) -> Self {
        let raw = NonNull::new(raw).expect("the shim writes a handle if it succeeds");
        Self { raw, thread_bound: PhantomData }
    }
}

impl Clone for Array {
    fn clone(&self) -> Self {
        // SAFETY: `self` owns a live handle, and `out` is the valid slot of `from_call`.
        Self::from_call("clone", |out| unsafe { sys::mlxcel_array_clone(out, self.raw()) })
            .expect("cloning allocates a handle of two words")
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // SAFETY: `self` owns the handle, which the shim allocated, and is never used again. The shim's
        // destructor does not throw.
        unsafe { sys::mlxcel_array_free(self.raw.as_ptr()) }
    }
}

impl fmt::Debug for Array {
    /// Formats type and shape only: elements would need an evaluation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({} {:?})", self.dtype(), self.shape())
    }
}

/// Computes `arrays` in one evaluation and waits for the results.
///
/// # Errors
/// The failure of the first failing node. Elements of arrays that depend on it are then unspecified:
/// drop them.
pub fn eval(arrays: &[&Array]) -> Result<()> {
    let handles = handles(arrays);
    // SAFETY: the vector holds handles that `arrays` keeps alive, and is passed with its length.
    check("eval", unsafe { sys::mlxcel_eval(handles.as_ptr(), handles.len()) })
}

/// Starts computing `arrays`; a later [`eval`], or reading their elements, waits for the results.
///
/// # Errors
/// Failures that are known before anything runs. A node that fails later makes the wait fail. Each
/// failure is reported once.
pub fn async_eval(arrays: &[&Array]) -> Result<()> {
    let handles = handles(arrays);
    // SAFETY: the vector holds handles that `arrays` keeps alive, and is passed with its length.
    check("async_eval", unsafe { sys::mlxcel_async_eval(handles.as_ptr(), handles.len()) })
}

/// The raw handles of `arrays`, valid while `arrays` is borrowed.
pub(crate) fn handles(arrays: &[&Array]) -> Vec<*const sys::mlxcel_array> {
    arrays.iter().map(|array| array.raw()).collect()
}

/// The raw handle of `array`, null for `None`.
pub(crate) fn optional(array: Option<&Array>) -> *const sys::mlxcel_array {
    array.map_or(ptr::null(), Array::raw)
}
