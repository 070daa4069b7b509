//! Passes on where `libmlx` is, so that binaries and tests of this crate find it at run time.

#[path = "../mlx-ffi/build/rpath.rs"]
mod rpath;

fn main() {
    rpath::forward();
}
