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

// Keeps `message` for mlxcel_last_error; does not throw, at worst the message is lost.
void set_error(std::string_view message) noexcept;

// Runs `body` and turns whatever it throws into a status.
template <typename Body>
mlxcel_status guard(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    set_error(error.what());
  } catch (...) {
    set_error("an exception that is no std::exception");
  }
  return 1;
}

// Hands an array to the caller.
inline mlxcel_array* give(mx::array value) {
  return new mlxcel_array{std::move(value)};
}

// Guards an op that makes one array.
template <typename Body>
mlxcel_status make(mlxcel_array** out, Body&& body) noexcept {
  return guard([&] { *out = give(body()); });
}

// Guards an op that makes several: all of them are handed over, or none.
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

// An evaluated array whose content is not defined. MLX reports no failed allocation on the CPU (it
// writes through a null pointer instead); this throws.
mx::array allocated(mx::Shape shape, mx::Dtype type);

// A C++ object around a context and its drop function, called once.
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
