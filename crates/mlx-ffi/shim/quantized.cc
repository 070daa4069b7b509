// Quantised weights.
#include "mlx/version.h"

#include "common.h"

using namespace mlxcel;

mlxcel_status mlxcel_quantize(
    mlxcel_array** outs,
    size_t* outs_len,
    const mlxcel_array* w,
    mlxcel_quantization q) noexcept {
  return guard([&] {
    auto parts = mx::quantize(w->value, q.group_size, q.bits, q.mode);
    if (parts.size() != 2 && parts.size() != 3) {
      throw std::logic_error("quantize made neither 2 nor 3 arrays");
    }
    auto len = parts.size();
    give_all(outs, std::move(parts));
    *outs_len = len;
  });
}

mlxcel_status mlxcel_dequantize(
    mlxcel_array** out,
    const mlxcel_array* w,
    const mlxcel_array* scales,
    const mlxcel_array* biases,
    mlxcel_quantization q,
    int32_t type) noexcept {
  return make(out, [&] {
    auto result = type < 0 ? std::nullopt : std::optional<mx::Dtype>(dtype(type));
    return mx::dequantize(
        w->value, scales->value, optional(biases), q.group_size, q.bits, q.mode, std::nullopt, result);
  });
}

mlxcel_status mlxcel_quantized_matmul(
    mlxcel_array** out,
    const mlxcel_array* x,
    const mlxcel_array* w,
    const mlxcel_array* scales,
    const mlxcel_array* biases,
    bool transpose,
    mlxcel_quantization q) noexcept {
  return make(out, [&] {
    return mx::quantized_matmul(
        x->value, w->value, scales->value, optional(biases), transpose, q.group_size, q.bits, q.mode);
  });
}

mlxcel_status mlxcel_gather_qmm(
    mlxcel_array** out,
    const mlxcel_array* x,
    const mlxcel_array* w,
    const mlxcel_array* scales,
    const mlxcel_array* biases,
    const mlxcel_array* lhs,
    const mlxcel_array* rhs,
    bool transpose,
    mlxcel_quantization q,
    bool sorted) noexcept {
  return make(out, [&] {
#if MLX_VERSION_NUMERIC >= 32004
    return mx::gather_qmm(
        x->value, w->value, scales->value, optional(biases), optional(lhs), optional(rhs),
        transpose, q.group_size, q.bits, q.mode, std::nullopt, sorted);
#else
    return mx::gather_qmm(
        x->value, w->value, scales->value, optional(biases), optional(lhs), optional(rhs),
        transpose, q.group_size, q.bits, q.mode, sorted);
#endif
  });
}
