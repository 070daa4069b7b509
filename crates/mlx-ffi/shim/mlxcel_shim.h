/* C ABI over the MLX C++ API, the only interface between Rust and C++.
 *
 * Contract of every function:
 *  - it never throws; it returns 0, or 1 after setting `mlxcel_last_error` for this thread;
 *  - it writes its out-parameters (the leading ones) only when it returns 0;
 *  - the caller owns a returned `mlxcel_array*` and passes it to `mlxcel_array_free`;
 *  - other handles are borrowed for the call; those documented as optional may be NULL;
 *  - ops run on the default stream of the default device.
 *
 * `src/bindings.rs` is generated from this file (see the crate's README for the exact command) and
 * committed; `cargo xtask bindgen` regenerates it.
 */
#ifndef MLXCEL_SHIM_H
#define MLXCEL_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define MLXCEL_FN noexcept
extern "C" {
#else
#define MLXCEL_FN
#endif

/* 0: success. 1: failure; `mlxcel_last_error` has the reason. */
typedef int32_t mlxcel_status;

/* A reference to an MLX array: a node of the graph, evaluated or pending. */
typedef struct mlxcel_array mlxcel_array;

/* Element types, numbered as in MLX. */
enum {
  MLXCEL_BOOL = 0,
  MLXCEL_UINT8 = 1,
  MLXCEL_UINT16 = 2,
  MLXCEL_UINT32 = 3,
  MLXCEL_UINT64 = 4,
  MLXCEL_INT8 = 5,
  MLXCEL_INT16 = 6,
  MLXCEL_INT32 = 7,
  MLXCEL_INT64 = 8,
  MLXCEL_FLOAT16 = 9,
  MLXCEL_FLOAT32 = 10,
  MLXCEL_FLOAT64 = 11,
  MLXCEL_BFLOAT16 = 12,
  MLXCEL_COMPLEX64 = 13,
};

/* Devices. */
enum { MLXCEL_CPU = 0, MLXCEL_GPU = 1 };

/* The memory of an array: row-major, `nbytes` long. */
typedef struct mlxcel_buffer {
  void* data;
  size_t nbytes;
  const int32_t* shape;
  size_t ndim;
  int32_t dtype;
} mlxcel_buffer;

/* Frees a context. Called exactly once, on any thread. Must not unwind. */
typedef void (*mlxcel_drop_fn)(void* context);

/* -- errors ------------------------------------------------------------------------------- */

/* Reason of this thread's last failure; valid until its next call. */
const char* mlxcel_last_error(void) MLXCEL_FN;

/* -- arrays ------------------------------------------------------------------------------- */

mlxcel_status mlxcel_array_clone(mlxcel_array** out, const mlxcel_array* a) MLXCEL_FN;
void mlxcel_array_free(mlxcel_array* a) MLXCEL_FN;

/* Copies `nbytes` bytes, which must be the size of `shape` and `dtype`. */
mlxcel_status mlxcel_array_from_bytes(
    mlxcel_array** out,
    const void* data,
    size_t nbytes,
    const int32_t* shape,
    size_t ndim,
    int32_t dtype) MLXCEL_FN;
/* An array over memory that MLX does not own. It is used in place if MLX can (`*in_place`) and
 * released through `drop(context)` after its last use; otherwise it is copied and released
 * immediately. `data` must be aligned for `dtype`, and the 8 bytes before it must be readable. `drop`
 * is called on failure as well. */
mlxcel_status mlxcel_array_from_foreign(
    mlxcel_array** out,
    bool* in_place,
    void* data,
    const int32_t* shape,
    size_t ndim,
    int32_t dtype,
    void* context,
    mlxcel_drop_fn drop) MLXCEL_FN;
/* Every element is `value`, converted to `dtype`. */
mlxcel_status mlxcel_full(
    mlxcel_array** out,
    const int32_t* shape,
    size_t ndim,
    double value,
    int32_t dtype) MLXCEL_FN;
mlxcel_status mlxcel_arange(
    mlxcel_array** out,
    double start,
    double stop,
    double step,
    int32_t dtype) MLXCEL_FN;

/* The shape has a fixed address while the array lives. */
mlxcel_status mlxcel_array_shape(
    const int32_t** shape,
    size_t* ndim,
    const mlxcel_array* a) MLXCEL_FN;
mlxcel_status mlxcel_array_dtype(int32_t* dtype, const mlxcel_array* a) MLXCEL_FN;
/* True if the array is evaluated and its elements lie in row-major order without gaps. */
mlxcel_status mlxcel_array_is_row_contiguous(bool* out, const mlxcel_array* a) MLXCEL_FN;
/* Evaluates the array and copies its elements in row-major order to `data`, `nbytes` long. */
mlxcel_status mlxcel_array_read(void* data, size_t nbytes, const mlxcel_array* a) MLXCEL_FN;
/* Evaluates arrays and waits for them. */
mlxcel_status mlxcel_eval(const mlxcel_array* const* arrays, size_t len) MLXCEL_FN;
/* Starts evaluating arrays. */
mlxcel_status mlxcel_async_eval(const mlxcel_array* const* arrays, size_t len) MLXCEL_FN;

/* -- ops with a regular signature: see ops.def ---------------------------------------------- */

#define MLXCEL_UNARY(name) mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a) MLXCEL_FN;
#define MLXCEL_BINARY(name) \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, const mlxcel_array* b) MLXCEL_FN;
#define MLXCEL_REDUCE(name) \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, int32_t axis, bool keep_dims) MLXCEL_FN;
#define MLXCEL_WITH_INT(name) \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, int32_t n) MLXCEL_FN;
#define MLXCEL_WITH_INTS2(name) \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, int32_t m, int32_t n) MLXCEL_FN;
#define MLXCEL_BINARY_AXIS(name) \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, const mlxcel_array* b, int32_t axis) MLXCEL_FN;
#define MLXCEL_SCAN(name) \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, int32_t axis, bool reverse, bool inclusive) MLXCEL_FN;
#define MLXCEL_WITH_SHAPE(name) \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, const int32_t* ints, size_t len) MLXCEL_FN;
#include "ops.def"

/* -- other ops ------------------------------------------------------------------------------ */

mlxcel_status mlxcel_astype(mlxcel_array** out, const mlxcel_array* a, int32_t dtype) MLXCEL_FN;
mlxcel_status mlxcel_view(mlxcel_array** out, const mlxcel_array* a, int32_t dtype) MLXCEL_FN;
mlxcel_status mlxcel_contiguous(mlxcel_array** out, const mlxcel_array* a) MLXCEL_FN;
mlxcel_status mlxcel_transpose(
    mlxcel_array** out,
    const mlxcel_array* a,
    const int32_t* axes,
    size_t len) MLXCEL_FN;
mlxcel_status mlxcel_concatenate(
    mlxcel_array** out,
    const mlxcel_array* const* arrays,
    size_t len,
    int32_t axis) MLXCEL_FN;
mlxcel_status mlxcel_stack(
    mlxcel_array** out,
    const mlxcel_array* const* arrays,
    size_t len,
    int32_t axis) MLXCEL_FN;
/* Splits before each of `indices`; `outs` has room for `indices_len + 1` arrays. */
mlxcel_status mlxcel_split(
    mlxcel_array** outs,
    const mlxcel_array* a,
    const int32_t* indices,
    size_t indices_len,
    int32_t axis) MLXCEL_FN;
/* `start`, `stop` and `strides` have `len` entries, one per dimension. */
mlxcel_status mlxcel_slice(
    mlxcel_array** out,
    const mlxcel_array* a,
    const int32_t* start,
    const int32_t* stop,
    const int32_t* strides,
    size_t len) MLXCEL_FN;
mlxcel_status mlxcel_slice_update(
    mlxcel_array** out,
    const mlxcel_array* a,
    const mlxcel_array* update,
    const int32_t* start,
    const int32_t* stop,
    const int32_t* strides,
    size_t len) MLXCEL_FN;
mlxcel_status mlxcel_put_along_axis(
    mlxcel_array** out,
    const mlxcel_array* a,
    const mlxcel_array* indices,
    const mlxcel_array* values,
    int32_t axis) MLXCEL_FN;
/* Constant padding: `low` and `high` have `len` entries, one per dimension. */
mlxcel_status mlxcel_pad(
    mlxcel_array** out,
    const mlxcel_array* a,
    const int32_t* low,
    const int32_t* high,
    size_t len,
    double value) MLXCEL_FN;
mlxcel_status mlxcel_where(
    mlxcel_array** out,
    const mlxcel_array* condition,
    const mlxcel_array* a,
    const mlxcel_array* b) MLXCEL_FN;
mlxcel_status mlxcel_softmax(
    mlxcel_array** out,
    const mlxcel_array* a,
    int32_t axis,
    bool precise) MLXCEL_FN;
mlxcel_status mlxcel_addmm(
    mlxcel_array** out,
    const mlxcel_array* c,
    const mlxcel_array* a,
    const mlxcel_array* b) MLXCEL_FN;
mlxcel_status mlxcel_conv1d(
    mlxcel_array** out,
    const mlxcel_array* input,
    const mlxcel_array* weight,
    int32_t stride,
    int32_t padding,
    int32_t dilation,
    int32_t groups) MLXCEL_FN;
/* `lhs_indices` and `rhs_indices` are optional. */
mlxcel_status mlxcel_gather_mm(
    mlxcel_array** out,
    const mlxcel_array* a,
    const mlxcel_array* b,
    const mlxcel_array* lhs_indices,
    const mlxcel_array* rhs_indices,
    bool sorted) MLXCEL_FN;

/* -- quantisation --------------------------------------------------------------------------- */

/* Parameters of a quantisation: `mode` is MLX's name ("affine", "mxfp4", ...). */
typedef struct mlxcel_quantization {
  const char* mode;
  int32_t group_size;
  int32_t bits;
} mlxcel_quantization;

/* `outs` has room for 3 arrays; `*outs_len` of them are written (2 if the mode has no biases). */
mlxcel_status mlxcel_quantize(
    mlxcel_array** outs,
    size_t* outs_len,
    const mlxcel_array* w,
    mlxcel_quantization quantization) MLXCEL_FN;
/* `biases` is optional; a `dtype` of -1 means the type of the scales. */
mlxcel_status mlxcel_dequantize(
    mlxcel_array** out,
    const mlxcel_array* w,
    const mlxcel_array* scales,
    const mlxcel_array* biases,
    mlxcel_quantization quantization,
    int32_t dtype) MLXCEL_FN;
/* `biases` is optional. */
mlxcel_status mlxcel_quantized_matmul(
    mlxcel_array** out,
    const mlxcel_array* x,
    const mlxcel_array* w,
    const mlxcel_array* scales,
    const mlxcel_array* biases,
    bool transpose,
    mlxcel_quantization quantization) MLXCEL_FN;
/* `biases`, `lhs_indices` and `rhs_indices` are optional. */
mlxcel_status mlxcel_gather_qmm(
    mlxcel_array** out,
    const mlxcel_array* x,
    const mlxcel_array* w,
    const mlxcel_array* scales,
    const mlxcel_array* biases,
    const mlxcel_array* lhs_indices,
    const mlxcel_array* rhs_indices,
    bool transpose,
    mlxcel_quantization quantization,
    bool sorted) MLXCEL_FN;

/* -- fused ops ------------------------------------------------------------------------------ */

/* `weight` is optional. */
mlxcel_status mlxcel_fast_rms_norm(
    mlxcel_array** out,
    const mlxcel_array* x,
    const mlxcel_array* weight,
    float eps) MLXCEL_FN;
/* `weight` and `bias` are optional. */
mlxcel_status mlxcel_fast_layer_norm(
    mlxcel_array** out,
    const mlxcel_array* x,
    const mlxcel_array* weight,
    const mlxcel_array* bias,
    float eps) MLXCEL_FN;
/* Exactly one of `base` (a number, not NaN) and `freqs` gives the angles. */
mlxcel_status mlxcel_fast_rope(
    mlxcel_array** out,
    const mlxcel_array* x,
    int32_t dims,
    bool traditional,
    float base,
    float scale,
    int32_t offset,
    const mlxcel_array* freqs) MLXCEL_FN;
/* `mask_mode` is "", "causal" or "array"; `mask` and `sinks` are optional. */
mlxcel_status mlxcel_fast_scaled_dot_product_attention(
    mlxcel_array** out,
    const mlxcel_array* queries,
    const mlxcel_array* keys,
    const mlxcel_array* values,
    float scale,
    const char* mask_mode,
    const mlxcel_array* mask,
    const mlxcel_array* sinks) MLXCEL_FN;

/* -- host calls ----------------------------------------------------------------------------- */

/* Evaluates the pending ones of `arrays` and returns the memory of each, valid while it lives. Fails if
 * one is not row-contiguous. */
mlxcel_status mlxcel_host_read(
    mlxcel_buffer* buffers,
    const mlxcel_array* const* arrays,
    size_t len) MLXCEL_FN;
/* An evaluated array of unspecified content, and its memory, which the caller must fill. */
mlxcel_status mlxcel_host_allocate(
    mlxcel_array** out,
    mlxcel_buffer* memory,
    const int32_t* shape,
    size_t ndim,
    int32_t dtype) MLXCEL_FN;

/* -- memory and devices --------------------------------------------------------------------- */

mlxcel_status mlxcel_memory_active(size_t* bytes) MLXCEL_FN;
mlxcel_status mlxcel_memory_peak(size_t* bytes) MLXCEL_FN;
mlxcel_status mlxcel_memory_cache(size_t* bytes) MLXCEL_FN;
mlxcel_status mlxcel_memory_limit(size_t* bytes) MLXCEL_FN;
mlxcel_status mlxcel_memory_set_limit(size_t* previous, size_t bytes) MLXCEL_FN;
mlxcel_status mlxcel_memory_set_cache_limit(size_t* previous, size_t bytes) MLXCEL_FN;
mlxcel_status mlxcel_memory_set_wired_limit(size_t* previous, size_t bytes) MLXCEL_FN;
mlxcel_status mlxcel_memory_reset_peak(void) MLXCEL_FN;
mlxcel_status mlxcel_memory_clear_cache(void) MLXCEL_FN;

mlxcel_status mlxcel_device_default(int32_t* device) MLXCEL_FN;
mlxcel_status mlxcel_device_set_default(int32_t device) MLXCEL_FN;
mlxcel_status mlxcel_device_is_available(bool* available, int32_t device) MLXCEL_FN;
/* Waits until the default stream of the default device is idle. */
mlxcel_status mlxcel_synchronize(void) MLXCEL_FN;
/* A static string such as "0.32.4". */
const char* mlxcel_version(void) MLXCEL_FN;

#ifdef __cplusplus
}
#endif

#endif
