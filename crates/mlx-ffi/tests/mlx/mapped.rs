//! Tensors over mapped files and over the program's own bytes.

use std::io::Write;

use crate::common::on_engine;
use mlx_ffi::{Array, Dtype, Error, MappedFile, eval, memory, ops};

const HEADER: usize = 16;
const ROWS: i32 = 256;
const COLS: i32 = 1024;
const TENSOR: usize = 256 * 1024 * 4;

#[repr(align(8))]
struct Aligned([u8; 24]);
static EMBEDDED: Aligned =
    Aligned([9, 9, 9, 9, 9, 9, 9, 9, 0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64, 7, 7, 7, 7]);

fn file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0xff; HEADER]).unwrap();
    let values: Vec<u8> = (0..ROWS * COLS).flat_map(|i| (i as f32).to_le_bytes()).collect();
    file.write_all(&values).unwrap();
    file.flush().unwrap();
    file
}

fn is_mapped(path: &std::path::Path) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.contains(path.to_str().unwrap())
}

#[test]
fn mapped_tensors_are_used_in_place() {
    on_engine(|| {
        let file = file();
        let before = memory::active_bytes().unwrap();
        let mapped = MappedFile::open(file.path()).unwrap();
        assert_eq!(mapped.bytes(0..HEADER).unwrap(), [0xff; HEADER]);
        let tensor = mapped.array(HEADER..HEADER + TENSOR, &[ROWS, COLS], Dtype::Float32).unwrap();
        assert!(tensor.in_place);
        assert!(tensor.array.is_row_contiguous());
        drop(mapped);
        // The allocator's counter moves by far less than the tensor.
        assert_eq!(memory::active_bytes().unwrap(), before);
        let row = ops::slice_axis(&tensor.array, 0, 255, 256).unwrap();
        let doubled = ops::add(&row, &row).unwrap();
        assert_eq!(doubled.to_vec::<f32>().unwrap()[1023], 2.0 * 262_143.0);
        assert!(is_mapped(file.path()));
    });
}

#[test]
fn dropping_the_last_array_unmaps_the_file() {
    on_engine(|| {
        let file = file();
        let mapped = MappedFile::open(file.path()).unwrap();
        let a = mapped.array(HEADER..HEADER + 8, &[2], Dtype::Float32).unwrap().array;
        let b = mapped.array(HEADER + 8..HEADER + 16, &[2], Dtype::Float32).unwrap().array;
        drop(mapped);
        // An evaluated node drops its inputs.
        let sum = ops::add(&a, &b).unwrap();
        drop(a);
        assert_eq!(sum.to_vec::<f32>().unwrap(), [2.0, 4.0]);
        assert!(is_mapped(file.path()));
        drop(b);
        mlx_ffi::device::synchronize().unwrap();
        assert!(!is_mapped(file.path()));
    });
}

#[test]
fn mlx_never_reuses_a_mapped_buffer() {
    on_engine(|| {
        let file = file();
        let mapped = MappedFile::open(file.path()).unwrap();
        let range = HEADER..HEADER + TENSOR;
        for _ in 0..4 {
            let mut a = mapped.array(range.clone(), &[ROWS, COLS], Dtype::Float32).unwrap().array;
            for _ in 0..3 {
                a = ops::negative(&a).unwrap();
            }
            eval(&[&a]).unwrap();
            let update = Array::zeros(&[1, 1], Dtype::Float32).unwrap();
            let b = mapped.array(range.clone(), &[ROWS, COLS], Dtype::Float32).unwrap().array;
            ops::slice_update(&b, &update, &[3, 3], &[4, 4]).unwrap().eval().unwrap();
        }
        let expected: Vec<u8> = std::fs::read(file.path()).unwrap();
        assert!(mapped.bytes(0..expected.len()).unwrap() == expected);
    });
}

#[test]
fn misaligned_and_first_bytes_are_copied() {
    on_engine(|| {
        let file = file();
        let mapped = MappedFile::open(file.path()).unwrap();
        let odd = mapped.array(HEADER + 1..HEADER + 5, &[4], Dtype::Uint8).unwrap();
        assert!(odd.in_place);
        let misaligned = mapped.array(HEADER + 2..HEADER + 6, &[1], Dtype::Float32).unwrap();
        assert!(!misaligned.in_place);
        let bits = misaligned.array.item::<f32>().unwrap().to_bits();
        assert_eq!(bits.to_le_bytes(), mapped.bytes(HEADER + 2..HEADER + 6).unwrap());
        let first = mapped.array(0..4, &[4], Dtype::Uint8).unwrap();
        assert!(!first.in_place);
        assert_eq!(first.array.to_vec::<u8>().unwrap(), [0xff; 4]);
    });
}

#[test]
fn resident_files_are_used_in_place() {
    on_engine(|| {
        let file = file();
        let before = memory::active_bytes().unwrap();
        let read = MappedFile::resident(file.path()).unwrap();
        let tensor = read.array(HEADER..HEADER + TENSOR, &[ROWS, COLS], Dtype::Float32).unwrap();
        drop(read);
        assert!(tensor.in_place);
        assert_eq!(memory::active_bytes().unwrap(), before);
        let values = ops::negative(&tensor.array).unwrap().to_vec::<f32>().unwrap();
        assert!(values.iter().enumerate().all(|(i, value)| *value == -(i as f32)));
        let read = MappedFile::resident(file.path()).unwrap();
        file.as_file().set_len(HEADER as u64).unwrap();
        let shorter = read.array(HEADER..HEADER + TENSOR, &[ROWS, COLS], Dtype::Float32);
        assert!(matches!(shorter, Err(Error::Read { .. })));
        assert!(matches!(MappedFile::resident("/no/such/file"), Err(Error::Map { .. })));
    });
}

#[test]
fn static_bytes_are_used_in_place() {
    on_engine(|| {
        let mapped = MappedFile::from_static(&EMBEDDED.0);
        let tensor = mapped.array(8..20, &[3], Dtype::Float32).unwrap();
        assert!(tensor.in_place);
        assert_eq!(ops::square(&tensor.array).unwrap().to_vec::<f32>().unwrap(), [1.0, 4.0, 9.0]);
    });
}

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "the test is that they are rejected")]
fn ranges_outside_the_file_are_rejected() {
    on_engine(|| {
        let mapped = MappedFile::from_static(&EMBEDDED.0);
        let out_of_file = |result| matches!(result, Err(Error::OutOfFile { len: 24, .. }));
        assert!(out_of_file(mapped.array(20..28, &[2], Dtype::Float32)));
        assert!(out_of_file(mapped.array(20..8, &[3], Dtype::Float32)));
        assert!(out_of_file(mapped.array(8..usize::MAX, &[3], Dtype::Float32)));
        let wrong_size = |result| matches!(result, Err(Error::WrongSize { .. }));
        assert!(wrong_size(mapped.array(8..20, &[4], Dtype::Float32)));
        assert!(wrong_size(mapped.array(8..20, &[i32::MAX, i32::MAX, i32::MAX], Dtype::Float32)));
        assert!(matches!(MappedFile::open("/no/such/file"), Err(Error::Map { .. })));
    });
}
