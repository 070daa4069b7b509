//! The C ABI of the shim. Generated from `shim/mlxcel_shim.h` by `cargo xtask bindgen`; do not edit.

pub type mlxcel_status = i32;
#[repr(C)]
#[derive(Debug)]
pub struct mlxcel_array {
    _unused: [u8; 0],
}
pub const MLXCEL_BOOL: _bindgen_ty_1 = 0;
pub const MLXCEL_UINT8: _bindgen_ty_1 = 1;
pub const MLXCEL_UINT16: _bindgen_ty_1 = 2;
pub const MLXCEL_UINT32: _bindgen_ty_1 = 3;
pub const MLXCEL_UINT64: _bindgen_ty_1 = 4;
pub const MLXCEL_INT8: _bindgen_ty_1 = 5;
pub const MLXCEL_INT16: _bindgen_ty_1 = 6;
pub const MLXCEL_INT32: _bindgen_ty_1 = 7;
pub const MLXCEL_INT64: _bindgen_ty_1 = 8;
pub const MLXCEL_FLOAT16: _bindgen_ty_1 = 9;
pub const MLXCEL_FLOAT32: _bindgen_ty_1 = 10;
pub const MLXCEL_FLOAT64: _bindgen_ty_1 = 11;
pub const MLXCEL_BFLOAT16: _bindgen_ty_1 = 12;
pub const MLXCEL_COMPLEX64: _bindgen_ty_1 = 13;
pub type _bindgen_ty_1 = ::core::ffi::c_uint;
pub const MLXCEL_CPU: _bindgen_ty_2 = 0;
pub const MLXCEL_GPU: _bindgen_ty_2 = 1;
pub type _bindgen_ty_2 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct mlxcel_buffer {
    pub data: *mut ::core::ffi::c_void,
    pub nbytes: usize,
    pub shape: *const i32,
    pub ndim: usize,
    pub dtype: i32,
}
pub type mlxcel_drop_fn =
    ::core::option::Option<unsafe extern "C" fn(context: *mut ::core::ffi::c_void)>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct mlxcel_quantization {
    pub mode: *const ::core::ffi::c_char,
    pub group_size: i32,
    pub bits: i32,
}
unsafe extern "C" {
    pub fn mlxcel_last_error() -> *const ::core::ffi::c_char;
    pub fn mlxcel_array_clone(out: *mut *mut mlxcel_array, a: *const mlxcel_array)
    -> mlxcel_status;
    pub fn mlxcel_array_free(a: *mut mlxcel_array);
    pub fn mlxcel_array_from_bytes(
        out: *mut *mut mlxcel_array,
        data: *const ::core::ffi::c_void,
        nbytes: usize,
        shape: *const i32,
        ndim: usize,
        dtype: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_array_from_foreign(
        out: *mut *mut mlxcel_array,
        in_place: *mut bool,
        data: *mut ::core::ffi::c_void,
        shape: *const i32,
        ndim: usize,
        dtype: i32,
        context: *mut ::core::ffi::c_void,
        drop: mlxcel_drop_fn,
    ) -> mlxcel_status;
    pub fn mlxcel_full(
        out: *mut *mut mlxcel_array,
        shape: *const i32,
        ndim: usize,
        value: f64,
        dtype: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_arange(
        out: *mut *mut mlxcel_array,
        start: f64,
        stop: f64,
        step: f64,
        dtype: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_array_shape(
        shape: *mut *const i32,
        ndim: *mut usize,
        a: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_array_dtype(dtype: *mut i32, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_array_is_row_contiguous(out: *mut bool, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_array_read(
        data: *mut ::core::ffi::c_void,
        nbytes: usize,
        a: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_eval(arrays: *const *const mlxcel_array, len: usize) -> mlxcel_status;
    pub fn mlxcel_async_eval(arrays: *const *const mlxcel_array, len: usize) -> mlxcel_status;
    pub fn mlxcel_abs(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_ceil(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_cos(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_erf(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_exp(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_expm1(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_floor(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_hadamard_transform(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_isfinite(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_isnan(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_log(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_log1p(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_logical_not(out: *mut *mut mlxcel_array, a: *const mlxcel_array)
    -> mlxcel_status;
    pub fn mlxcel_negative(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_reciprocal(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_round(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_rsqrt(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_sigmoid(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_sign(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_sin(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_sqrt(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_square(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_stop_gradient(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_tanh(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_add(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_bitwise_and(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_bitwise_or(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_bitwise_xor(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_divide(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_equal(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_floor_divide(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_greater(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_greater_equal(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_left_shift(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_less(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_less_equal(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_logaddexp(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_logical_and(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_logical_or(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_matmul(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_maximum(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_minimum(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_multiply(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_not_equal(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_power(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_remainder(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_right_shift(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_subtract(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_all(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_any(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_argmax(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_argmin(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_logsumexp(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_max(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_mean(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_min(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_prod(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_sum(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_var(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        keep_dims: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_argsort(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_expand_dims(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_sort(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_squeeze(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_tril(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_triu(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_argpartition(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        m: i32,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_flatten(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        m: i32,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_moveaxis(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        m: i32,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_partition(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        m: i32,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_repeat(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        m: i32,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_swapaxes(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        m: i32,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_topk(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        m: i32,
        n: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_take(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
        axis: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_take_along_axis(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
        axis: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_cumsum(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        reverse: bool,
        inclusive: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_cumprod(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        reverse: bool,
        inclusive: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_cummax(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        reverse: bool,
        inclusive: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_broadcast_to(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        ints: *const i32,
        len: usize,
    ) -> mlxcel_status;
    pub fn mlxcel_reshape(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        ints: *const i32,
        len: usize,
    ) -> mlxcel_status;
    pub fn mlxcel_astype(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        dtype: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_view(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        dtype: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_contiguous(out: *mut *mut mlxcel_array, a: *const mlxcel_array) -> mlxcel_status;
    pub fn mlxcel_transpose(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axes: *const i32,
        len: usize,
    ) -> mlxcel_status;
    pub fn mlxcel_concatenate(
        out: *mut *mut mlxcel_array,
        arrays: *const *const mlxcel_array,
        len: usize,
        axis: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_stack(
        out: *mut *mut mlxcel_array,
        arrays: *const *const mlxcel_array,
        len: usize,
        axis: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_split(
        outs: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        indices: *const i32,
        indices_len: usize,
        axis: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_slice(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        start: *const i32,
        stop: *const i32,
        strides: *const i32,
        len: usize,
    ) -> mlxcel_status;
    pub fn mlxcel_slice_update(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        update: *const mlxcel_array,
        start: *const i32,
        stop: *const i32,
        strides: *const i32,
        len: usize,
    ) -> mlxcel_status;
    pub fn mlxcel_put_along_axis(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        indices: *const mlxcel_array,
        values: *const mlxcel_array,
        axis: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_pad(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        low: *const i32,
        high: *const i32,
        len: usize,
        value: f64,
    ) -> mlxcel_status;
    pub fn mlxcel_where(
        out: *mut *mut mlxcel_array,
        condition: *const mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_softmax(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        axis: i32,
        precise: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_addmm(
        out: *mut *mut mlxcel_array,
        c: *const mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_conv1d(
        out: *mut *mut mlxcel_array,
        input: *const mlxcel_array,
        weight: *const mlxcel_array,
        stride: i32,
        padding: i32,
        dilation: i32,
        groups: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_gather_mm(
        out: *mut *mut mlxcel_array,
        a: *const mlxcel_array,
        b: *const mlxcel_array,
        lhs_indices: *const mlxcel_array,
        rhs_indices: *const mlxcel_array,
        sorted: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_quantize(
        outs: *mut *mut mlxcel_array,
        outs_len: *mut usize,
        w: *const mlxcel_array,
        quantization: mlxcel_quantization,
    ) -> mlxcel_status;
    pub fn mlxcel_dequantize(
        out: *mut *mut mlxcel_array,
        w: *const mlxcel_array,
        scales: *const mlxcel_array,
        biases: *const mlxcel_array,
        quantization: mlxcel_quantization,
        dtype: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_quantized_matmul(
        out: *mut *mut mlxcel_array,
        x: *const mlxcel_array,
        w: *const mlxcel_array,
        scales: *const mlxcel_array,
        biases: *const mlxcel_array,
        transpose: bool,
        quantization: mlxcel_quantization,
    ) -> mlxcel_status;
    pub fn mlxcel_gather_qmm(
        out: *mut *mut mlxcel_array,
        x: *const mlxcel_array,
        w: *const mlxcel_array,
        scales: *const mlxcel_array,
        biases: *const mlxcel_array,
        lhs_indices: *const mlxcel_array,
        rhs_indices: *const mlxcel_array,
        transpose: bool,
        quantization: mlxcel_quantization,
        sorted: bool,
    ) -> mlxcel_status;
    pub fn mlxcel_fast_rms_norm(
        out: *mut *mut mlxcel_array,
        x: *const mlxcel_array,
        weight: *const mlxcel_array,
        eps: f32,
    ) -> mlxcel_status;
    pub fn mlxcel_fast_layer_norm(
        out: *mut *mut mlxcel_array,
        x: *const mlxcel_array,
        weight: *const mlxcel_array,
        bias: *const mlxcel_array,
        eps: f32,
    ) -> mlxcel_status;
    pub fn mlxcel_fast_rope(
        out: *mut *mut mlxcel_array,
        x: *const mlxcel_array,
        dims: i32,
        traditional: bool,
        base: f32,
        scale: f32,
        offset: i32,
        freqs: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_fast_scaled_dot_product_attention(
        out: *mut *mut mlxcel_array,
        queries: *const mlxcel_array,
        keys: *const mlxcel_array,
        values: *const mlxcel_array,
        scale: f32,
        mask_mode: *const ::core::ffi::c_char,
        mask: *const mlxcel_array,
        sinks: *const mlxcel_array,
    ) -> mlxcel_status;
    pub fn mlxcel_host_read(
        buffers: *mut mlxcel_buffer,
        arrays: *const *const mlxcel_array,
        len: usize,
    ) -> mlxcel_status;
    pub fn mlxcel_host_allocate(
        out: *mut *mut mlxcel_array,
        memory: *mut mlxcel_buffer,
        shape: *const i32,
        ndim: usize,
        dtype: i32,
    ) -> mlxcel_status;
    pub fn mlxcel_memory_active(bytes: *mut usize) -> mlxcel_status;
    pub fn mlxcel_memory_peak(bytes: *mut usize) -> mlxcel_status;
    pub fn mlxcel_memory_cache(bytes: *mut usize) -> mlxcel_status;
    pub fn mlxcel_memory_limit(bytes: *mut usize) -> mlxcel_status;
    pub fn mlxcel_memory_set_limit(previous: *mut usize, bytes: usize) -> mlxcel_status;
    pub fn mlxcel_memory_set_cache_limit(previous: *mut usize, bytes: usize) -> mlxcel_status;
    pub fn mlxcel_memory_set_wired_limit(previous: *mut usize, bytes: usize) -> mlxcel_status;
    pub fn mlxcel_memory_reset_peak() -> mlxcel_status;
    pub fn mlxcel_memory_clear_cache() -> mlxcel_status;
    pub fn mlxcel_device_default(device: *mut i32) -> mlxcel_status;
    pub fn mlxcel_device_set_default(device: i32) -> mlxcel_status;
    pub fn mlxcel_device_is_available(available: *mut bool, device: i32) -> mlxcel_status;
    pub fn mlxcel_synchronize() -> mlxcel_status;
    pub fn mlxcel_version() -> *const ::core::ffi::c_char;
}
