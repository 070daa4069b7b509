//! Operations on rows: host kernels do what MLX's do.

use mlx_ffi::Array;

use crate::{ComputeDtype, KernelSet, Ops, OpsConfig, Precision};

fn both() -> [Ops; 2] {
    [KernelSet::Host, KernelSet::Mlx].map(|kernels| {
        let (precision, dtype) = (Precision::Exact, ComputeDtype::Checkpoint);
        Ops::new(&OpsConfig { kernels, threads: Some(1), precision, dtype }).unwrap()
    })
}

/// `[rows, cols]` of different numbers.
fn counted(rows: u16, cols: u16) -> Array {
    let values: Vec<f32> = (0..rows * cols).map(f32::from).collect();
    Array::from_slice(&values, &[i32::from(rows), i32::from(cols)]).unwrap()
}

fn values(array: &Array) -> Vec<f32> {
    mlx_ffi::ops::contiguous(array).unwrap().to_vec().unwrap()
}

#[test]
fn rows_are_taken_in_any_order() {
    for ops in both() {
        let taken = ops.rows(&counted(3, 2), &[2, 0, 2]).unwrap();
        assert_eq!((taken.shape(), values(&taken)), (&[3, 2][..], vec![4., 5., 0., 1., 4., 5.]));
        assert!(ops.rows(&counted(3, 2), &[3]).is_err());
    }
}

#[test]
fn heads_are_split_and_joined() {
    for ops in both() {
        let x = counted(2, 6);
        let [first, second] = ops.split_heads(&x, 2, 1).unwrap();
        assert_eq!((first.shape(), values(&first)), (&[2, 2][..], vec![0., 3., 6., 9.]));
        assert_eq!((second.shape(), second.size()), (&[2, 4][..], 8));
        assert_eq!(values(&second), [1., 2., 4., 5., 7., 8., 10., 11.]);
        let joined = ops.join_heads(&first, &second, 2).unwrap();
        assert_eq!((joined.shape(), values(&joined)), (x.shape(), values(&x)));
        for (heads, at) in [(0, 1), (4, 1), (2, 0), (2, 3)] {
            assert!(ops.split_heads(&x, heads, at).is_err(), "{heads} {at}");
        }
        assert!(ops.join_heads(&first, &counted(1, 4), 2).is_err());
        assert!(ops.join_heads(&first, &counted(2, 3), 2).is_err());
    }
}
