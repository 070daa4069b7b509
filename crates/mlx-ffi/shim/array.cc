// Creating, reading and evaluating arrays.
#include <cstring>

#include "mlx/transforms.h"
#include "mlx/version.h"

#include "common.h"

using namespace mlxcel;

namespace {

#if MLX_VERSION_NUMERIC >= 32004
// True if a Buffer points to a size word followed by the data, as in MLX's CPU allocator. Tested on
// the loaded library, so that one with a different allocator falls back to copying.
bool buffer_is_size_word_and_data() {
  static const bool matches = [] {
    constexpr size_t kProbe = 4096 + 64;
    auto data = mx::allocator::malloc(kProbe);
    auto buffer = data.buffer();
    auto* start = static_cast<char*>(buffer.ptr());
    return start != nullptr && buffer.raw_ptr() == start + sizeof(size_t) &&
        mx::allocator::allocator().size(buffer) >= kProbe &&
        *reinterpret_cast<size_t*>(start) == mx::allocator::allocator().size(buffer);
  }();
  return matches;
}

// An array over foreign memory: MLX neither copies nor counts it, and never reuses the buffer for an
// output, because it does not own it (array::is_donatable).
std::optional<mx::array>
in_place_array(void* data, const mx::Shape& shape, mx::Dtype type, const std::shared_ptr<Context>& context) {
  if (mx::is_available(mx::Device::gpu) || !buffer_is_size_word_and_data()) {
    return std::nullopt;
  }
  mx::allocator::Buffer buffer(static_cast<char*>(data) - sizeof(size_t));
  mx::allocator::Data unowned(buffer, [context](mx::allocator::Buffer) {});
  return mx::array(std::move(unowned), shape, type);
}
#else
std::optional<mx::array>
in_place_array(void*, const mx::Shape&, mx::Dtype, const std::shared_ptr<Context>&) {
  return std::nullopt;
}
#endif

} // namespace

mlxcel_status mlxcel_array_clone(mlxcel_array** out, const mlxcel_array* a) noexcept {
  return make(out, [&] { return a->value; });
}

void mlxcel_array_free(mlxcel_array* a) noexcept {
  delete a;
}

mlxcel_status mlxcel_array_from_bytes(
    mlxcel_array** out,
    const void* data,
    size_t nbytes,
    const int32_t* dims,
    size_t ndim,
    int32_t type) noexcept {
  return make(out, [&] {
    auto array = allocated(shape(dims, ndim), dtype(type));
    if (array.nbytes() != nbytes) {
      throw std::invalid_argument(
          "the shape needs " + std::to_string(array.nbytes()) + " bytes, not " + std::to_string(nbytes));
    }
    if (nbytes > 0) {
      std::memcpy(array.data<char>(), data, nbytes);
    }
    return array;
  });
}

mlxcel_status mlxcel_array_from_foreign(
    mlxcel_array** out,
    bool* in_place,
    void* data,
    const int32_t* dims,
    size_t ndim,
    int32_t type,
    void* pointer,
    mlxcel_drop_fn drop) noexcept {
  std::shared_ptr<Context> context;
  auto status = guard([&] {
    try {
      context = std::make_shared<Context>(pointer, drop);
    } catch (...) {
      drop(pointer);
      throw;
    }
  });
  if (status != 0) {
    return status;
  }
  return guard([&] {
    auto dims_ = shape(dims, ndim);
    auto type_ = dtype(type);
    checked_nbytes(dims_, type_);
    auto direct = in_place_array(data, dims_, type_, context);
    if (direct) {
      *out = give(std::move(*direct));
      *in_place = true;
      return;
    }
    // Metal uses page-aligned memory in place; everything else is copied here.
    mx::array array(data, dims_, type_, [context](void*) {});
    *in_place = context.use_count() > 1;
    *out = give(std::move(array));
  });
}

mlxcel_status
mlxcel_full(mlxcel_array** out, const int32_t* dims, size_t ndim, double value, int32_t type) noexcept {
  return make(out, [&] {
    auto scalar = mx::array(value, dtype(type));
    return ndim == 0 ? scalar : mx::full(shape(dims, ndim), scalar);
  });
}

mlxcel_status
mlxcel_arange(mlxcel_array** out, double start, double stop, double step, int32_t type) noexcept {
  return make(out, [&] { return mx::arange(start, stop, step, dtype(type)); });
}

mlxcel_status mlxcel_array_shape(const int32_t** dims, size_t* ndim, const mlxcel_array* a) noexcept {
  return guard([&] {
    *dims = a->value.shape().data();
    *ndim = a->value.ndim();
  });
}

mlxcel_status mlxcel_array_dtype(int32_t* type, const mlxcel_array* a) noexcept {
  *type = number(a->value.dtype());
  return 0;
}

mlxcel_status mlxcel_array_is_row_contiguous(bool* out, const mlxcel_array* a) noexcept {
  return guard([&] {
    *out = a->value.status() != mx::array::Status::unscheduled && a->value.flags().row_contiguous;
  });
}

mlxcel_status mlxcel_array_read(void* data, size_t nbytes, const mlxcel_array* a) noexcept {
  return guard([&] {
    auto value = a->value;
    value.eval();
    if (!value.flags().row_contiguous) {
      value = mx::contiguous(value);
      value.eval();
    }
    if (value.nbytes() != nbytes) {
      throw std::invalid_argument("the destination has the wrong size");
    }
    if (nbytes > 0) {
      std::memcpy(data, value.data<char>(), nbytes);
    }
  });
}

mlxcel_status mlxcel_eval(const mlxcel_array* const* handles, size_t len) noexcept {
  return guard([&] { mx::eval(arrays(handles, len)); });
}

mlxcel_status mlxcel_async_eval(const mlxcel_array* const* handles, size_t len) noexcept {
  return guard([&] { mx::async_eval(arrays(handles, len)); });
}
