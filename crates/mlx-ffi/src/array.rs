//! Arrays: handles to nodes of MLX's graph, their elements, and evaluation.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use crate::bindings as sys;
use crate::call::check;
use crate::{Dtype, Element, Error, Result};

/// An n-dimensional array, evaluated or still to be computed.
///
/// Cloning is cheap: both handles mean the same array. Arrays do not change; an operation makes a
/// new one. A handle stays on its thread, because the streams on which MLX computes do.
pub struct Array {
    raw: NonNull<sys::mlxcel_array>,
    // MLX: "There is no Stream(cpu, N) in current thread."
    thread_bound: PhantomData<*mut ()>,
}

impl Array {
    /// An array of `shape` (row-major) with a copy of `data`.
    ///
    /// # Errors
    /// [`Error::WrongSize`] when `data` has another number of elements than `shape`.
    pub fn from_slice<T: Element>(data: &[T], shape: &[i32]) -> Result<Self> {
        Self::from_bytes(bytemuck::cast_slice(data), shape, T::DTYPE)
    }

    /// An array of `shape` (row-major) with a copy of `data`, which may lie anywhere.
    ///
    /// # Errors
    /// [`Error::WrongSize`] when `data` has another size than `shape` and `dtype`.
    pub fn from_bytes(data: &[u8], shape: &[i32], dtype: Dtype) -> Result<Self> {
        if dtype.nbytes(shape) != Some(data.len()) {
            return Err(Error::WrongSize { shape: shape.to_vec(), dtype, nbytes: data.len() });
        }
        Self::from_call("from_bytes", |out| {
            // SAFETY: `data` and `shape` are borrowed slices, given with their lengths; the shim
            // copies them. `out` is a slot to write.
            unsafe {
                let number = dtype.number();
                let data_ptr = data.as_ptr().cast();
                let dims = shape.as_ptr();
                sys::mlxcel_array_from_bytes(out, data_ptr, data.len(), dims, shape.len(), number)
            }
        })
    }

    /// A boolean array of `shape`.
    ///
    /// # Errors
    /// [`Error::WrongSize`] as for [`Array::from_bytes`].
    pub fn from_bools(data: &[bool], shape: &[i32]) -> Result<Self> {
        let bytes: Vec<u8> = data.iter().map(|&value| u8::from(value)).collect();
        Self::from_bytes(&bytes, shape, Dtype::Bool)
    }

    /// `value`, rounded to `dtype`, in every element.
    ///
    /// # Errors
    /// A shape with a negative dimension.
    pub fn full(shape: &[i32], value: f64, dtype: Dtype) -> Result<Self> {
        Self::from_call("full", |out| {
            // SAFETY: `shape` is a borrowed slice with its length; `out` is a slot to write.
            unsafe { sys::mlxcel_full(out, shape.as_ptr(), shape.len(), value, dtype.number()) }
        })
    }

    /// Zeros.
    ///
    /// # Errors
    /// As for [`Array::full`].
    pub fn zeros(shape: &[i32], dtype: Dtype) -> Result<Self> {
        Self::full(shape, 0.0, dtype)
    }

    /// An array without dimensions, of one element: `value` rounded to `dtype`.
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
        // SAFETY: the handle is live and both slots are written; on failure they stay as they are.
        let status = unsafe { sys::mlxcel_array_shape(&mut dims, &mut len, self.raw()) };
        if status != 0 || len == 0 {
            return &[];
        }
        // SAFETY: the shim gives a pointer to `len` dimensions inside the array's description. MLX
        // never changes the shape of an array, and `self` keeps the description alive.
        unsafe { std::slice::from_raw_parts(dims, len) }
    }

    /// The size of dimension `axis`, counted from the end when negative; `None` if there is none.
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

    /// The size of the elements in bytes, whatever memory they take.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.dtype().nbytes(self.shape()).expect("MLX has no array of an impossible size")
    }

    /// The type of the elements.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        let mut number = 0;
        // SAFETY: the handle is live and the slot is written; this call cannot fail.
        unsafe { sys::mlxcel_array_dtype(&mut number, self.raw()) };
        Dtype::from_number(number)
    }

    /// Whether the array is evaluated and lies in memory in row-major order without gaps, as
    /// [`host`](crate::host) calls want it.
    #[must_use]
    pub fn is_row_contiguous(&self) -> bool {
        let mut answer = false;
        // SAFETY: the handle is live; on failure the slot keeps `false`.
        unsafe { sys::mlxcel_array_is_row_contiguous(&mut answer, self.raw()) };
        answer
    }

    /// Computes this array and waits for it.
    ///
    /// # Errors
    /// Whatever a node that it depends on failed with.
    pub fn eval(&self) -> Result<()> {
        eval(&[self])
    }

    /// The only element, after evaluating the array.
    ///
    /// # Errors
    /// [`Error::WrongDtype`], [`Error::WrongSize`] when there is not exactly one element, or a
    /// failed evaluation.
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

    /// Evaluates, and copies the elements in row-major order to `dest`, [`Array::nbytes`] long.
    ///
    /// # Errors
    /// [`Error::WrongSize`], or a failed evaluation.
    pub fn copy_to(&self, dest: &mut [u8]) -> Result<()> {
        if dest.len() != self.nbytes() {
            return Err(self.wrong_size(dest.len()));
        }
        // SAFETY: `dest` is a mutably borrowed slice with its length; the handle is live.
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

    /// The array that `call` writes to its slot, or the error that it leaves behind.
    pub(crate) fn from_call(
        op: &'static str,
        call: impl FnOnce(*mut *mut sys::mlxcel_array) -> sys::mlxcel_status,
    ) -> Result<Self> {
        let mut raw = ptr::null_mut();
        check(op, call(&raw mut raw))?;
        Ok(Self::from_raw(raw))
    }

    /// The arrays that `call` writes to its `len` slots.
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
        let raw = NonNull::new(raw).expect("the shim writes a handle when it succeeds");
        Self { raw, thread_bound: PhantomData }
    }
}

impl Clone for Array {
    fn clone(&self) -> Self {
        // SAFETY: the handle is live and `out` is a slot to write.
        Self::from_call("clone", |out| unsafe { sys::mlxcel_array_clone(out, self.raw()) })
            .expect("cloning allocates a handle of two words")
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // SAFETY: this handle owns the object, and is not used again. The shim's destructor does
        // not throw.
        unsafe { sys::mlxcel_array_free(self.raw.as_ptr()) }
    }
}

impl fmt::Debug for Array {
    /// Type and shape; elements would need an evaluation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({} {:?})", self.dtype(), self.shape())
    }
}

/// Computes `arrays` in one go and waits for them.
///
/// # Errors
/// What the first failing node failed with. Elements of arrays that depend on it are then
/// unspecified: drop them.
pub fn eval(arrays: &[&Array]) -> Result<()> {
    let handles = handles(arrays);
    // SAFETY: `handles` is a slice of live handles, given with its length.
    check("eval", unsafe { sys::mlxcel_eval(handles.as_ptr(), handles.len()) })
}

/// Starts to compute `arrays`; a later [`eval`] of them, or reading their elements, waits.
///
/// # Errors
/// What can be refused before anything runs, or a node that has failed already; one that fails later
/// makes the wait fail. Each failure is told once.
pub fn async_eval(arrays: &[&Array]) -> Result<()> {
    let handles = handles(arrays);
    // SAFETY: `handles` is a slice of live handles, given with its length.
    check("async_eval", unsafe { sys::mlxcel_async_eval(handles.as_ptr(), handles.len()) })
}

pub(crate) fn handles(arrays: &[&Array]) -> Vec<*const sys::mlxcel_array> {
    arrays.iter().map(|array| array.raw()).collect()
}

pub(crate) fn optional(array: Option<&Array>) -> *const sys::mlxcel_array {
    array.map_or(ptr::null(), Array::raw)
}
