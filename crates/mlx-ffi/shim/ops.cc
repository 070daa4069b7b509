// Array operations: the regular ones from ops.def, the others one by one.
#include "common.h"

using namespace mlxcel;

#define MLXCEL_UNARY(name)                                                       \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a) noexcept { \
    return make(out, [&] { return mx::name(a->value); });                        \
  }
#define MLXCEL_BINARY(name)                                                                              \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, const mlxcel_array* b) noexcept { \
    return make(out, [&] { return mx::name(a->value, b->value); });                                      \
  }
#define MLXCEL_REDUCE(name)                                                                                \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, int32_t axis, bool keep) noexcept { \
    return make(out, [&] { return mx::name(a->value, axis, keep); });                                      \
  }
#define MLXCEL_WITH_INT(name)                                                                \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, int32_t n) noexcept { \
    return make(out, [&] { return mx::name(a->value, n); });                                 \
  }
#define MLXCEL_WITH_INTS2(name)                                                                         \
  mlxcel_status mlxcel_##name(mlxcel_array** out, const mlxcel_array* a, int32_t m, int32_t n) noexcept { \
    return make(out, [&] { return mx::name(a->value, m, n); });                                         \
  }
#define MLXCEL_BINARY_AXIS(name)                                                            \
  mlxcel_status mlxcel_##name(                                                              \
      mlxcel_array** out, const mlxcel_array* a, const mlxcel_array* b, int32_t axis) noexcept { \
    return make(out, [&] { return mx::name(a->value, b->value, axis); });                   \
  }
#define MLXCEL_SCAN(name)                                                                           \
  mlxcel_status mlxcel_##name(                                                                      \
      mlxcel_array** out, const mlxcel_array* a, int32_t axis, bool reverse, bool inclusive) noexcept { \
    return make(out, [&] { return mx::name(a->value, axis, reverse, inclusive); });                 \
  }
#define MLXCEL_WITH_SHAPE(name)                                                             \
  mlxcel_status mlxcel_##name(                                                              \
      mlxcel_array** out, const mlxcel_array* a, const int32_t* values, size_t len) noexcept { \
    return make(out, [&] { return mx::name(a->value, shape(values, len)); });               \
  }
#include "ops.def"

mlxcel_status mlxcel_astype(mlxcel_array** out, const mlxcel_array* a, int32_t type) noexcept {
  return make(out, [&] { return mx::astype(a->value, dtype(type)); });
}

mlxcel_status mlxcel_view(mlxcel_array** out, const mlxcel_array* a, int32_t type) noexcept {
  return make(out, [&] { return mx::view(a->value, dtype(type)); });
}

mlxcel_status mlxcel_contiguous(mlxcel_array** out, const mlxcel_array* a) noexcept {
  return make(out, [&] { return mx::contiguous(a->value); });
}

mlxcel_status
mlxcel_transpose(mlxcel_array** out, const mlxcel_array* a, const int32_t* axes, size_t len) noexcept {
  return make(out, [&] { return mx::transpose(a->value, ints(axes, len)); });
}

mlxcel_status mlxcel_concatenate(
    mlxcel_array** out,
    const mlxcel_array* const* handles,
    size_t len,
    int32_t axis) noexcept {
  return make(out, [&] { return mx::concatenate(arrays(handles, len), axis); });
}

mlxcel_status mlxcel_stack(
    mlxcel_array** out,
    const mlxcel_array* const* handles,
    size_t len,
    int32_t axis) noexcept {
  return make(out, [&] { return mx::stack(arrays(handles, len), axis); });
}

mlxcel_status mlxcel_split(
    mlxcel_array** outs,
    const mlxcel_array* a,
    const int32_t* indices,
    size_t len,
    int32_t axis) noexcept {
  return guard([&] {
    auto parts = mx::split(a->value, shape(indices, len), axis);
    if (parts.size() != len + 1) {
      throw std::logic_error("split made another number of parts");
    }
    give_all(outs, std::move(parts));
  });
}

mlxcel_status mlxcel_slice(
    mlxcel_array** out,
    const mlxcel_array* a,
    const int32_t* start,
    const int32_t* stop,
    const int32_t* strides,
    size_t len) noexcept {
  return make(out, [&] {
    return mx::slice(a->value, shape(start, len), shape(stop, len), shape(strides, len));
  });
}

mlxcel_status mlxcel_slice_update(
    mlxcel_array** out,
    const mlxcel_array* a,
    const mlxcel_array* update,
    const int32_t* start,
    const int32_t* stop,
    const int32_t* strides,
    size_t len) noexcept {
  return make(out, [&] {
    return mx::slice_update(
        a->value, update->value, shape(start, len), shape(stop, len), shape(strides, len));
  });
}

mlxcel_status mlxcel_put_along_axis(
    mlxcel_array** out,
    const mlxcel_array* a,
    const mlxcel_array* indices,
    const mlxcel_array* values,
    int32_t axis) noexcept {
  return make(out, [&] { return mx::put_along_axis(a->value, indices->value, values->value, axis); });
}

mlxcel_status mlxcel_pad(
    mlxcel_array** out,
    const mlxcel_array* a,
    const int32_t* low,
    const int32_t* high,
    size_t len,
    double value) noexcept {
  return make(out, [&] {
    std::vector<std::pair<int, int>> widths;
    for (size_t i = 0; i < len; ++i) {
      widths.emplace_back(low[i], high[i]);
    }
    return mx::pad(a->value, widths, mx::array(value, a->value.dtype()));
  });
}

mlxcel_status mlxcel_where(
    mlxcel_array** out,
    const mlxcel_array* condition,
    const mlxcel_array* a,
    const mlxcel_array* b) noexcept {
  return make(out, [&] { return mx::where(condition->value, a->value, b->value); });
}

mlxcel_status
mlxcel_softmax(mlxcel_array** out, const mlxcel_array* a, int32_t axis, bool precise) noexcept {
  return make(out, [&] { return mx::softmax(a->value, axis, precise); });
}

mlxcel_status mlxcel_addmm(
    mlxcel_array** out,
    const mlxcel_array* c,
    const mlxcel_array* a,
    const mlxcel_array* b) noexcept {
  return make(out, [&] { return mx::addmm(c->value, a->value, b->value); });
}

mlxcel_status mlxcel_conv1d(
    mlxcel_array** out,
    const mlxcel_array* input,
    const mlxcel_array* weight,
    int32_t stride,
    int32_t padding,
    int32_t dilation,
    int32_t groups) noexcept {
  return make(out, [&] {
    return mx::conv1d(input->value, weight->value, stride, padding, dilation, groups);
  });
}

mlxcel_status mlxcel_gather_mm(
    mlxcel_array** out,
    const mlxcel_array* a,
    const mlxcel_array* b,
    const mlxcel_array* lhs,
    const mlxcel_array* rhs,
    bool sorted) noexcept {
  return make(out, [&] {
    return mx::gather_mm(a->value, b->value, optional(lhs), optional(rhs), sorted);
  });
}
