// Errors, types and handles.
#include "common.h"

namespace mlxcel {
namespace {
thread_local std::string last_error;

constexpr mx::Dtype kDtypes[] = {
    mx::bool_, mx::uint8, mx::uint16, mx::uint32, mx::uint64, mx::int8, mx::int16,
    mx::int32, mx::int64, mx::float16, mx::float32, mx::float64, mx::bfloat16, mx::complex64};

constexpr bool numbered_as_in_mlx() {
  int32_t i = 0;
  for (auto type : kDtypes) {
    if (static_cast<int32_t>(type.val()) != i++) {
      return false;
    }
  }
  return true;
}
static_assert(numbered_as_in_mlx(), "mlxcel_shim.h numbers the types as MLX does");
static_assert(std::size(kDtypes) == MLXCEL_COMPLEX64 + 1);
static_assert(static_cast<int32_t>(mx::Dtype::Val::bfloat16) == MLXCEL_BFLOAT16);
static_assert(static_cast<int32_t>(mx::Dtype::Val::float32) == MLXCEL_FLOAT32);
static_assert(static_cast<int32_t>(mx::Dtype::Val::int64) == MLXCEL_INT64);
} // namespace

void set_error(std::string_view message) noexcept {
  try {
    last_error.assign(message);
  } catch (...) {
    last_error.clear();
  }
}

mx::Dtype dtype(int32_t number) {
  if (number < 0 || static_cast<size_t>(number) >= std::size(kDtypes)) {
    throw std::invalid_argument("unknown dtype number " + std::to_string(number));
  }
  return kDtypes[number];
}

size_t checked_nbytes(const mx::Shape& shape, mx::Dtype type) {
  size_t bytes = type.size();
  for (auto dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(dim), &bytes)) {
      throw std::invalid_argument("the shape is negative or too large");
    }
  }
  return bytes;
}

mx::array allocated(mx::Shape shape, mx::Dtype type) {
  auto bytes = checked_nbytes(shape, type);
  mx::array out(mx::allocator::malloc(bytes), std::move(shape), type);
  if (bytes > 0 && out.data<char>() == nullptr) {
    throw std::runtime_error("out of memory: cannot allocate " + std::to_string(bytes) + " bytes");
  }
  return out;
}

void give_all(mlxcel_array** outs, std::vector<mx::array> values) {
  size_t done = 0;
  try {
    for (; done < values.size(); ++done) {
      outs[done] = give(std::move(values[done]));
    }
  } catch (...) {
    while (done > 0) {
      delete outs[--done];
    }
    throw;
  }
}

} // namespace mlxcel

const char* mlxcel_last_error(void) noexcept {
  return mlxcel::last_error.c_str();
}
