// What every part of the shim shares: the handle, and the guard that no exception passes.
#pragma once

#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/ops.h"

#include "mlxcel_shim.h"

namespace mx = mlx::core;

struct mlxcel_array {
  mx::array value;
};

namespace mlxcel {

// Stores `message` for mlxcel_last_error. Does not throw; the message is lost if memory runs out.
void set_error(std::string_view message) noexcept;

// Runs `body` and converts exceptions to a status.
template <typename Body>
mlxcel_status guard(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    set_error(error.what());
  } catch (...) {
    set_error("an exception of unknown type");
  }
  return 1;
}

// Transfers ownership of an array to the caller.
inline mlxcel_array* give(mx::array value) {
  return new mlxcel_array{std::move(value)};
}

// Guards an op that creates one array.
template <typename Body>
mlxcel_status make(mlxcel_array** out, Body&& body) noexcept {
  return guard([&] { *out = give(body()); });
}

// Transfers all of `values` to the caller, or none if it throws.
void give_all(mlxcel_array** outs, std::vector<mx::array> values);

inline std::optional<mx::array> optional(const mlxcel_array* a) {
  return a ? std::optional<mx::array>(a->value) : std::nullopt;
}

inline mx::Shape shape(const int32_t* ints, size_t len) {
  return mx::Shape(ints, ints + len);
}

inline std::vector<int> ints(const int32_t* values, size_t len) {
  return std::vector<int>(values, values + len);
}

inline std::vector<mx::array> arrays(const mlxcel_array* const* handles, size_t len) {
  std::vector<mx::array> values;
  values.reserve(len);
  for (size_t i = 0; i < len; ++i) {
    values.push_back(handles[i]->value);
  }
  return values;
}

// The MLX type of one of the MLXCEL_* numbers; throws on any other.
mx::Dtype dtype(int32_t number);

inline int32_t number(mx::Dtype type) {
  return static_cast<int32_t>(type.val());
}

// The size of an array in bytes; throws on an impossible shape.
size_t checked_nbytes(const mx::Shape& shape, mx::Dtype type);

// An evaluated array with undefined content. Throws if the allocation fails, which MLX does not report
// on the CPU (it writes through a null pointer).
mx::array allocated(mx::Shape shape, mx::Dtype type);

// Owns a context and calls its drop function once.
class Context {
 public:
  Context(void* pointer, mlxcel_drop_fn drop) noexcept : pointer_(pointer), drop_(drop) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() {
    drop_(pointer_);
  }
  void* get() const noexcept {
    return pointer_;
  }

 private:
  void* pointer_;
  mlxcel_drop_fn drop_;
};

} // namespace mlxcel
