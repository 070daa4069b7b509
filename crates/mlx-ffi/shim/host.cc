// Host calls: access to the memory of arrays for Rust functions.
#include "mlx/transforms.h"

#include "common.h"

using namespace mlxcel;

namespace {

void evaluate_pending(const mlxcel_array* const* handles, size_t len) {
  std::vector<mx::array> pending;
  for (size_t i = 0; i < len; ++i) {
    if (!handles[i]->value.is_available()) {
      pending.push_back(handles[i]->value);
    }
  }
  if (!pending.empty()) {
    mx::eval(std::move(pending));
  }
}

mlxcel_buffer buffer(const mx::array& a) {
  auto* data = a.nbytes() == 0 ? nullptr : const_cast<char*>(a.data<char>());
  return {data, a.nbytes(), a.shape().data(), a.ndim(), number(a.dtype())};
}

// Fresh memory has no defined content. This makes both compilers assume that it has been written, so
// that reading it yields unspecified bytes instead of being undefined.
void mark_written(const mlxcel_buffer& buffer) {
  __asm__ volatile("" : : "r"(buffer.data) : "memory");
}

} // namespace

mlxcel_status mlxcel_host_read(
    mlxcel_buffer* buffers,
    const mlxcel_array* const* handles,
    size_t len) noexcept {
  return guard([&] {
    evaluate_pending(handles, len);
    for (size_t i = 0; i < len; ++i) {
      const auto& value = handles[i]->value;
      if (!value.flags().row_contiguous) {
        throw std::invalid_argument(
            "input " + std::to_string(i) + " is not row-contiguous; pass it through ops::contiguous");
      }
      buffers[i] = buffer(value);
      mark_written(buffers[i]);
    }
  });
}

mlxcel_status mlxcel_host_allocate(
    mlxcel_array** out,
    mlxcel_buffer* memory,
    const int32_t* dims,
    size_t ndim,
    int32_t type) noexcept {
  return make(out, [&] {
    auto value = allocated(shape(dims, ndim), dtype(type));
    *memory = buffer(value);
    mark_written(*memory);
    return value;
  });
}
