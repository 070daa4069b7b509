// Memory counters and devices.
#include "mlx/memory.h"
#include "mlx/version.h"

#include "common.h"

using namespace mlxcel;

mlxcel_status mlxcel_memory_active(size_t* bytes) noexcept {
  return guard([&] { *bytes = mx::get_active_memory(); });
}

mlxcel_status mlxcel_memory_peak(size_t* bytes) noexcept {
  return guard([&] { *bytes = mx::get_peak_memory(); });
}

mlxcel_status mlxcel_memory_cache(size_t* bytes) noexcept {
  return guard([&] { *bytes = mx::get_cache_memory(); });
}

mlxcel_status mlxcel_memory_limit(size_t* bytes) noexcept {
  return guard([&] { *bytes = mx::get_memory_limit(); });
}

mlxcel_status mlxcel_memory_set_limit(size_t* previous, size_t bytes) noexcept {
  return guard([&] { *previous = mx::set_memory_limit(bytes); });
}

mlxcel_status mlxcel_memory_set_cache_limit(size_t* previous, size_t bytes) noexcept {
  return guard([&] { *previous = mx::set_cache_limit(bytes); });
}

mlxcel_status mlxcel_memory_set_wired_limit(size_t* previous, size_t bytes) noexcept {
  return guard([&] { *previous = mx::set_wired_limit(bytes); });
}

mlxcel_status mlxcel_memory_reset_peak(void) noexcept {
  return guard([] { mx::reset_peak_memory(); });
}

mlxcel_status mlxcel_memory_clear_cache(void) noexcept {
  return guard([] { mx::clear_cache(); });
}

namespace {
mx::Device::DeviceType device_type(int32_t device) {
  return device == MLXCEL_GPU ? mx::Device::gpu : mx::Device::cpu;
}
} // namespace

mlxcel_status mlxcel_device_default(int32_t* device) noexcept {
  return guard([&] {
    *device = mx::default_device() == mx::Device::gpu ? MLXCEL_GPU : MLXCEL_CPU;
  });
}

mlxcel_status mlxcel_device_set_default(int32_t device) noexcept {
  return guard([&] { mx::set_default_device(device_type(device)); });
}

mlxcel_status mlxcel_device_is_available(bool* available, int32_t device) noexcept {
  return guard([&] { *available = mx::is_available(device_type(device)); });
}

mlxcel_status mlxcel_synchronize(void) noexcept {
  return guard([] { mx::synchronize(); });
}

const char* mlxcel_version(void) noexcept {
  return mx::version();
}
