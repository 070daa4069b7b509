//! Arrays: construction, shape, reading, evaluation, errors.

use crate::common::on_engine;
use half::{bf16, f16};
use mlx_ffi::{Array, Dtype, Element, Error, async_eval, eval, ops};

fn round_trip<T: Element + PartialEq + std::fmt::Debug>(values: &[T]) {
    let len = i32::try_from(values.len()).unwrap();
    let array = Array::from_slice(values, &[len]).unwrap();
    assert_eq!(array.dtype(), T::DTYPE);
    assert_eq!(array.nbytes(), size_of_val(values));
    assert_eq!(array.to_vec::<T>().unwrap(), values);
}

#[test]
fn every_element_type_round_trips() {
    on_engine(|| {
        round_trip(&[0_u8, 255]);
        round_trip(&[0_u16, u16::MAX]);
        round_trip(&[1_u32, u32::MAX]);
        round_trip(&[1_u64, u64::MAX]);
        round_trip(&[i8::MIN, 1]);
        round_trip(&[i16::MIN, 1]);
        round_trip(&[i32::MIN, 1]);
        round_trip(&[i64::MIN, 1]);
        round_trip(&[f16::from_f32(-1.5), f16::MAX]);
        round_trip(&[bf16::from_f32(-1.5), bf16::MAX]);
        round_trip(&[-0.1_f32, f32::MAX]);
        round_trip(&[-0.1_f64, f64::MAX]);
        let bools = [true, false, true];
        assert_eq!(Array::from_bools(&bools, &[3]).unwrap().to_bools().unwrap(), bools);
    });
}

#[test]
fn shape_size_and_dims() {
    on_engine(|| {
        let a = Array::zeros(&[2, 3, 4], Dtype::Float16).unwrap();
        assert_eq!(a.shape(), [2, 3, 4]);
        assert_eq!((a.ndim(), a.size(), a.nbytes()), (3, 24, 48));
        assert_eq!((a.dim(0), a.dim(-1), a.dim(-3)), (Some(2), Some(4), Some(2)));
        assert_eq!((a.dim(3), a.dim(-4)), (None, None));
        let scalar = Array::scalar(2.5, Dtype::Float32).unwrap();
        assert_eq!((scalar.shape(), scalar.size()), (&[][..], 1));
        let empty = Array::zeros(&[0, 5], Dtype::Int32).unwrap();
        assert_eq!(empty.to_vec::<i32>().unwrap(), []);
        assert_eq!(format!("{a:?}"), "Array(float16 [2, 3, 4])");
    });
}

#[test]
fn full_rounds_to_its_type() {
    on_engine(|| {
        let a = Array::full(&[2], 1.003, Dtype::Bfloat16).unwrap();
        assert_eq!(a.to_vec::<bf16>().unwrap(), [bf16::from_f32(1.003); 2]);
        assert_eq!(Array::scalar(7.0, Dtype::Int64).unwrap().item::<i64>().unwrap(), 7);
    });
}

#[test]
fn reading_makes_strided_arrays_contiguous() {
    on_engine(|| {
        let a = Array::from_slice(&[1_i32, 2, 3, 4, 5, 6], &[2, 3]).unwrap();
        let t = ops::transpose(&a, &[1, 0]).unwrap();
        t.eval().unwrap();
        assert!(!t.is_row_contiguous());
        assert_eq!(t.to_vec::<i32>().unwrap(), [1, 4, 2, 5, 3, 6]);
        let row = ops::slice(&a, &[1, 0], &[2, 3]).unwrap();
        assert_eq!(row.to_vec::<i32>().unwrap(), [4, 5, 6]);
        let wide = ops::broadcast_to(&row, &[2, 3]).unwrap();
        assert_eq!(wide.to_vec::<i32>().unwrap(), [4, 5, 6, 4, 5, 6]);
    });
}

#[test]
fn mismatches_are_errors() {
    on_engine(|| {
        let wrong = Array::from_slice(&[1_f32, 2.0], &[3]);
        assert!(matches!(wrong, Err(Error::WrongSize { nbytes: 8, .. })));
        assert!(matches!(Array::from_slice(&[1_u8], &[-1]), Err(Error::WrongSize { .. })));
        assert!(matches!(Array::zeros(&[-1], Dtype::Int8), Err(Error::Mlx { op: "full", .. })));
        let a = Array::zeros(&[2], Dtype::Float32).unwrap();
        assert!(matches!(
            a.to_vec::<i32>(),
            Err(Error::WrongDtype { expected: Dtype::Int32, found: Dtype::Float32 })
        ));
        assert!(matches!(a.item::<f32>(), Err(Error::WrongSize { .. })));
        let b = Array::zeros(&[3], Dtype::Float32).unwrap();
        let message = ops::add(&a, &b).unwrap_err().to_string();
        assert!(message.starts_with("MLX add: "), "{message}");
        assert!(message.contains("(2)") && message.contains("(3)"), "{message}");
    });
}

#[test]
fn clones_outlive_the_original() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32, 2.0], &[2]).unwrap();
        let b = a.clone();
        drop(a);
        let c = ops::add(&b, &b).unwrap();
        drop(b);
        async_eval(&[&c]).unwrap();
        eval(&[&c, &c.clone()]).unwrap();
        assert_eq!(c.to_vec::<f32>().unwrap(), [2.0, 4.0]);
    });
}
