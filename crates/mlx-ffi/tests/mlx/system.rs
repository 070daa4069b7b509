//! Memory counters and devices.

use crate::common::on_engine;
use mlx_ffi::device::{self, Device};
use mlx_ffi::{Array, Dtype, memory};

const MIB: usize = 1 << 20;

#[test]
fn counters_follow_an_array() {
    on_engine(|| {
        memory::clear_cache().unwrap();
        let cache = memory::set_cache_limit_bytes(64 * MIB).unwrap();
        let before = memory::active_bytes().unwrap();
        memory::reset_peak().unwrap();
        let a = Array::from_bytes(&vec![0; 8 * MIB], &[8 << 20], Dtype::Uint8).unwrap();
        assert_eq!(memory::active_bytes().unwrap() - before, 8 * MIB);
        drop(a);
        assert_eq!(memory::active_bytes().unwrap(), before);
        assert!(memory::peak_bytes().unwrap() >= before + 8 * MIB);
        assert!(memory::cache_bytes().unwrap() >= 8 * MIB);
        memory::clear_cache().unwrap();
        assert_eq!(memory::cache_bytes().unwrap(), 0);
        assert_eq!(memory::set_cache_limit_bytes(cache).unwrap(), 64 * MIB);
    });
}

#[test]
fn the_limit_is_stored() {
    on_engine(|| {
        let old = memory::set_limit_bytes(1 << 30).unwrap();
        assert_eq!(memory::limit_bytes().unwrap(), 1 << 30);
        memory::set_limit_bytes(old).unwrap();
    });
}

#[test]
fn cpu_device_and_version() {
    on_engine(|| {
        assert!(Device::Cpu.is_available().unwrap());
        device::set_default_device(Device::Cpu).unwrap();
        assert_eq!(device::default_device().unwrap(), Device::Cpu);
        if !Device::Gpu.is_available().unwrap() {
            assert!(device::set_default_device(Device::Gpu).is_err());
        }
        assert!(device::mlx_version().starts_with("0.32."), "{}", device::mlx_version());
        device::synchronize().unwrap();
    });
}
