//! Host calls: order, outputs, failures, lifetimes, cost.

use std::cell::Cell;
use std::time::Instant;

use crate::common::on_engine;
use half::bf16;
use mlx_ffi::host::{self, HostInputs, HostOutputs};
use mlx_ffi::{Array, Dtype, Error, Result, async_eval, memory, ops};

fn add_one(inputs: HostInputs<'_>, mut outputs: HostOutputs<'_>) -> Result<()> {
    for (out, x) in outputs.f32(0)?.iter_mut().zip(inputs.f32(0)?) {
        *out = x + 1.0;
    }
    Ok(())
}

fn plus_one(a: &Array) -> Array {
    host::call_one("plus_one", &[a], (a.shape(), a.dtype()), add_one).unwrap()
}

fn failing(a: &Array) -> Result<Array> {
    let refused = Error::NoBuffer { side: "input", index: 7 };
    host::call_one("failing", &[a], (a.shape(), a.dtype()), |_, _| Err(refused))
}

#[test]
fn pending_inputs_are_evaluated_first() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32, 2.0, 3.0], &[3]).unwrap();
        // (2a + 1)² + 1, alternating MLX's nodes with ours, and used twice.
        let b = plus_one(&ops::add(&a, &a).unwrap());
        assert!(b.is_row_contiguous(), "it has been evaluated");
        let c = plus_one(&ops::square(&b).unwrap());
        let d = ops::subtract(&c, &b).unwrap();
        assert_eq!(d.to_vec::<f32>().unwrap(), [7.0, 21.0, 43.0]);
        assert_eq!(c.to_vec::<f32>().unwrap(), [10.0, 26.0, 50.0]);
    });
}

#[test]
fn started_inputs_are_waited_for() {
    on_engine(|| {
        let ones = Array::full(&[512, 512], 1.0, Dtype::Float32).unwrap();
        let product = ops::matmul(&ones, &ones).unwrap();
        async_eval(&[&product]).unwrap();
        let next = plus_one(&product).to_vec::<f32>().unwrap();
        assert!(next.iter().all(|x| *x == 513.0));
    });
}

#[test]
fn outputs_of_different_types() {
    on_engine(|| {
        let a = Array::from_slice(&[3_i32, -4], &[2, 1]).unwrap();
        let b = Array::from_slice(&[bf16::from_f32(0.5)], &[1]).unwrap();
        let empty = Array::zeros(&[0], Dtype::Float32).unwrap();
        let outputs =
            [(&[2_i32][..], Dtype::Uint8), (&[][..], Dtype::Float64), (&[0, 3][..], Dtype::Int8)];
        let made = host::call("several", &[&a, &b, &empty], &outputs, |inputs, mut outputs| {
            assert_eq!((inputs.len(), outputs.len()), (3, 3));
            assert_eq!((inputs.shape(0)?, inputs.dtype(1)?), (&[2, 1][..], Dtype::Bfloat16));
            assert_eq!(inputs.f32(2)?, []);
            assert!(matches!(inputs.f32(0), Err(Error::WrongDtype { .. })));
            assert!(matches!(inputs.f32(3), Err(Error::NoBuffer { side: "input", index: 3 })));
            let (flags, sum) = (outputs.take::<u8>(0)?, outputs.take::<f64>(1)?);
            assert!(matches!(
                outputs.take::<u8>(0),
                Err(Error::NoBuffer { side: "output", index: 0 })
            ));
            assert!(matches!(outputs.take_bytes(99), Err(Error::NoBuffer { .. })));
            assert_eq!(outputs.take::<i8>(2)?, []);
            for (flag, x) in flags.iter_mut().zip(inputs.slice::<i32>(0)?) {
                *flag = u8::from(*x < 0);
            }
            sum[0] = inputs.slice::<bf16>(1)?[0].to_f64()
                + f64::from(inputs.slice::<i32>(0)?.iter().sum::<i32>());
            Ok::<_, Error>(())
        })
        .unwrap();
        assert_eq!(made[1].item::<f64>().unwrap(), -0.5);
        assert_eq!(made[0].to_vec::<u8>().unwrap(), [0, 1]);
        assert_eq!(made[2].shape(), [0, 3]);
    });
}

#[test]
fn an_unused_output_can_be_dropped() {
    on_engine(|| {
        let a = Array::zeros(&[1000], Dtype::Float32).unwrap();
        let spec = (a.shape(), a.dtype());
        let mut made = host::call("two", &[&a], &[spec, spec], |_, mut outputs| {
            outputs.f32(0)?.fill(1.0);
            outputs.f32(1)?.fill(2.0);
            Ok::<_, Error>(())
        })
        .unwrap();
        made.truncate(1);
        let b = ops::sum(&made.pop().unwrap(), 0, false).unwrap();
        assert_eq!(b.item::<f32>().unwrap(), 1000.0);
    });
}

#[test]
fn slices_of_an_array_can_be_inputs_twice() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2]).unwrap();
        let rows = ops::slice_axis(&a, 0, 1, 3).unwrap();
        let none = ops::slice_axis(&a, 0, 3, 3).unwrap();
        let spec = (rows.shape(), rows.dtype());
        let sum = host::call_one("sum", &[&rows, &rows, &none], spec, |inputs, mut outputs| {
            assert_eq!((inputs.f32(0)?, inputs.f32(2)?), (&[3.0, 4.0, 5.0, 6.0][..], &[][..]));
            let both = inputs.f32(0)?.iter().zip(inputs.f32(1)?);
            outputs.f32(0)?.iter_mut().zip(both).for_each(|(out, (x, y))| *out = x + y);
            Ok::<_, Error>(())
        });
        assert_eq!(sum.unwrap().to_vec::<f32>().unwrap(), [6.0, 8.0, 10.0, 12.0]);
    });
}

#[test]
fn errors_of_the_function_are_returned_unchanged() {
    on_engine(|| {
        #[derive(Debug, PartialEq)]
        enum Own {
            Reason,
            Ffi(String),
        }
        impl From<Error> for Own {
            fn from(error: Error) -> Self {
                Self::Ffi(error.to_string())
            }
        }
        let a = Array::from_slice(&[1_f32], &[1]).unwrap();
        let spec = (a.shape(), a.dtype());
        let own = host::call_one("failing", &[&a], spec, |_, _| Err(Own::Reason));
        assert_eq!(own.unwrap_err(), Own::Reason);
        let theirs = host::call_one("failing", &[&a], spec, |inputs, _| {
            inputs.f32(1)?;
            Ok::<_, Own>(())
        });
        assert_eq!(theirs.unwrap_err(), Own::Ffi("there is no input 1 to take".into()));
        assert_eq!(plus_one(&a).item::<f32>().unwrap(), 2.0);
    });
}

#[test]
fn a_panic_is_an_error() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32], &[1]).unwrap();
        let bad = host::call_one("panicking", &[&a], (a.shape(), a.dtype()), |inputs, _| {
            let index = inputs.len() + 4;
            if index > 0 {
                panic!("index {index}");
            }
            Ok::<_, Error>(())
        });
        assert_eq!(bad.unwrap_err().to_string(), "`panicking` panicked: index 5");
    });
}

#[test]
fn strided_inputs_are_rejected() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        let t = ops::swapaxes(&a, 0, 1).unwrap();
        let error = host::call_one("plus_one", &[&a, &t], (&[2, 2], Dtype::Float32), add_one);
        let expected =
            "MLX plus_one: input 1 is not row-contiguous; pass it through ops::contiguous";
        assert_eq!(error.unwrap_err().to_string(), expected);
        let b = plus_one(&ops::contiguous(&t).unwrap());
        assert_eq!(b.to_vec::<f32>().unwrap(), [2.0, 4.0, 3.0, 5.0]);
    });
}

#[test]
fn invalid_output_shapes_are_rejected_before_the_call() {
    on_engine(|| {
        let ran = Cell::new(false);
        for shape in [&[-1][..], &[i32::MAX, i32::MAX, i32::MAX]] {
            let refused = host::call_one("x", &[], (shape, Dtype::Float32), |_, _| {
                ran.set(true);
                Ok::<_, Error>(())
            });
            assert!(matches!(refused, Err(Error::WrongSize { .. })));
        }
        assert!(!ran.get());
    });
}

#[test]
fn calls_do_not_leak() {
    on_engine(|| {
        let before = memory::active_bytes().unwrap();
        for _ in 0..100 {
            let a = Array::zeros(&[1000], Dtype::Float32).unwrap();
            let _unused = plus_one(&a);
            plus_one(&plus_one(&a)).eval().unwrap();
            let _ = failing(&a).unwrap_err();
        }
        mlx_ffi::device::synchronize().unwrap();
        assert_eq!(memory::active_bytes().unwrap(), before);
    });
}

#[test]
#[ignore = "needs a quiet machine: prints a time"]
fn cost_per_call() {
    on_engine(|| {
        const CALLS: u32 = 2000;
        let chain = |step: fn(&Array) -> Array| {
            let start = Instant::now();
            let mut a = Array::zeros(&[4], Dtype::Float32).unwrap();
            for _ in 0..CALLS {
                a = step(&a);
            }
            a.eval().unwrap();
            start.elapsed() / CALLS
        };
        for _ in 0..3 {
            let host = chain(plus_one);
            let mlx = chain(|a| ops::square(a).unwrap());
            println!("host call {host:?}, node of MLX (square) {mlx:?}");
        }
    });
}
