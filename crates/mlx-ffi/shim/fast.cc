// MLX's fused operations.
#include <cmath>

#include "mlx/fast.h"

#include "common.h"

using namespace mlxcel;

mlxcel_status mlxcel_fast_rms_norm(
    mlxcel_array** out,
    const mlxcel_array* x,
    const mlxcel_array* weight,
    float eps) noexcept {
  return make(out, [&] { return mx::fast::rms_norm(x->value, optional(weight), eps); });
}

mlxcel_status mlxcel_fast_layer_norm(
    mlxcel_array** out,
    const mlxcel_array* x,
    const mlxcel_array* weight,
    const mlxcel_array* bias,
    float eps) noexcept {
  return make(out, [&] {
    return mx::fast::layer_norm(x->value, optional(weight), optional(bias), eps);
  });
}

mlxcel_status mlxcel_fast_rope(
    mlxcel_array** out,
    const mlxcel_array* x,
    int32_t dims,
    bool traditional,
    float base,
    float scale,
    int32_t offset,
    const mlxcel_array* freqs) noexcept {
  return make(out, [&] {
    auto maybe_base = std::isnan(base) ? std::nullopt : std::optional<float>(base);
    return mx::fast::rope(
        x->value, dims, traditional, maybe_base, scale, offset, optional(freqs));
  });
}

mlxcel_status mlxcel_fast_scaled_dot_product_attention(
    mlxcel_array** out,
    const mlxcel_array* queries,
    const mlxcel_array* keys,
    const mlxcel_array* values,
    float scale,
    const char* mask_mode,
    const mlxcel_array* mask,
    const mlxcel_array* sinks) noexcept {
  return make(out, [&] {
    return mx::fast::scaled_dot_product_attention(
        queries->value, keys->value, values->value, scale, mask_mode, optional(mask), optional(sinks));
  });
}
