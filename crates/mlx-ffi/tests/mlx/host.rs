//! Host primitives: order in the graph, outputs, failures, lifetimes, cost.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::common::on_engine;
use half::bf16;
use mlx_ffi::host::{self, HostInputs, HostOutputs};
use mlx_ffi::{Array, Dtype, Error, Result, async_eval, eval, memory, ops};

fn add_one(inputs: HostInputs<'_>, mut outputs: HostOutputs<'_>) -> Result<()> {
    for (out, x) in outputs.f32(0)?.iter_mut().zip(inputs.f32(0)?) {
        *out = x + 1.0;
    }
    Ok(())
}

fn plus_one(a: &Array) -> Array {
    host::call_one("plus_one", &[a], (a.shape(), a.dtype()), add_one).unwrap()
}

fn failing(a: &Array, message: &'static str) -> Array {
    host::call_one("failing", &[a], (a.shape(), a.dtype()), move |_, _| Err(message)).unwrap()
}

#[test]
fn runs_in_the_order_of_the_graph() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32, 2.0, 3.0], &[3]).unwrap();
        // (2a + 1)² + 1, alternating MLX's nodes with ours, and used twice.
        let b = plus_one(&ops::add(&a, &a).unwrap());
        let c = plus_one(&ops::square(&b).unwrap());
        let d = ops::subtract(&c, &b).unwrap();
        assert_eq!(d.to_vec::<f32>().unwrap(), [7.0, 21.0, 43.0]);
        assert_eq!(c.to_vec::<f32>().unwrap(), [10.0, 26.0, 50.0]);
    });
}

#[test]
fn a_long_chain_is_right() {
    on_engine(|| {
        let mut a = Array::zeros(&[2], Dtype::Float32).unwrap();
        for _ in 0..1000 {
            a = plus_one(&a);
        }
        async_eval(&[&a]).unwrap();
        assert_eq!(a.to_vec::<f32>().unwrap(), [1000.0, 1000.0]);
    });
}

#[test]
fn several_outputs_of_several_types() {
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
        // The last output first: all are computed by one call.
        assert_eq!(made[1].item::<f64>().unwrap(), -0.5);
        assert_eq!(made[0].to_vec::<u8>().unwrap(), [0, 1]);
        assert_eq!(made[2].shape(), [0, 3]);
    });
}

#[test]
fn a_sibling_that_nobody_wants_is_harmless() {
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
fn an_error_names_the_primitive_and_the_next_evaluation_works() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32], &[1]).unwrap();
        for _ in 0..3 {
            let bad = failing(&a, "the reason");
            let error = eval(&[&ops::add(&bad, &a).unwrap()]).unwrap_err().to_string();
            assert_eq!(error, "MLX eval: host primitive `failing`: the reason");
            assert_eq!(plus_one(&a).item::<f32>().unwrap(), 2.0);
        }
    });
}

#[test]
fn an_error_of_a_started_evaluation_surfaces_once() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32], &[1]).unwrap();
        let bad = failing(&a, "later");
        // Told by the start if the node has failed by then, else by the wait; once.
        let error = match async_eval(&[&bad]) {
            Err(error) => error.to_string(),
            Ok(()) => bad.item::<f32>().unwrap_err().to_string(),
        };
        assert!(error.contains("host primitive `failing`: later"), "{error}");
        assert_eq!(plus_one(&a).item::<f32>().unwrap(), 2.0);
    });
}

#[test]
fn the_first_error_wins_and_outputs_are_zeros() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32, 1.0], &[2]).unwrap();
        let seen = Arc::new(AtomicUsize::new(9));
        let probe = Arc::clone(&seen);
        let bad = host::call_one("first", &[&a], (&[2], Dtype::Uint32), |_, mut outputs| {
            outputs.take::<u32>(0).unwrap().fill(77);
            Err("first")
        })
        .unwrap();
        let next = host::call_one("second", &[&bad], (&[], Dtype::Float32), move |inputs, _| {
            let sum = inputs.slice::<u32>(0).unwrap().iter().sum::<u32>();
            probe.store(sum as usize, Ordering::SeqCst);
            Err("second")
        })
        .unwrap();
        let error = next.eval().unwrap_err().to_string();
        assert_eq!(error, "MLX eval: host primitive `first`: first");
        // 9: MLX told of the failure before it started the second node.
        assert!([0, 9].contains(&seen.load(Ordering::SeqCst)));
    });
}

#[test]
fn a_panic_is_an_error() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32], &[1]).unwrap();
        let spec = (a.shape(), a.dtype());
        let bad = host::call_one(
            "careless",
            &[&a],
            spec,
            |inputs, _| -> std::result::Result<(), Infallible> {
                let index = inputs.len() + 4;
                panic!("index {index}");
            },
        );
        let error = bad.unwrap().eval().unwrap_err().to_string();
        assert_eq!(error, "MLX eval: host primitive `careless`: panicked: index 5");
    });
}

#[test]
fn inputs_must_be_row_contiguous() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        let t = ops::swapaxes(&a, 0, 1).unwrap();
        let error = plus_one(&t).eval().unwrap_err().to_string();
        assert!(error.contains("`plus_one`: input 0 is not row-contiguous"), "{error}");
        let b = plus_one(&ops::contiguous(&t).unwrap());
        assert_eq!(b.to_vec::<f32>().unwrap(), [2.0, 4.0, 3.0, 5.0]);
    });
}

#[test]
fn what_a_closure_captured_is_dropped_after_its_run_or_unused() {
    on_engine(|| {
        let a = Array::from_slice(&[1_f32], &[1]).unwrap();
        let token = Arc::new(());
        for evaluated in [true, false] {
            let held = Arc::clone(&token);
            let node = host::call_one("holder", &[&a], (a.shape(), a.dtype()), move |i, o| {
                assert_eq!(Arc::strong_count(&held), 2);
                add_one(i, o)
            })
            .unwrap();
            assert_eq!(Arc::strong_count(&token), 2);
            if evaluated {
                assert_eq!(node.item::<f32>().unwrap(), 2.0);
            } else {
                drop(node);
            }
            assert_eq!(Arc::strong_count(&token), 1);
        }
        let held = Arc::clone(&token);
        let refused = host::call_one("x", &[&a], (&[-1], Dtype::Int8), move |_, _| {
            drop(held);
            Ok::<_, Infallible>(())
        });
        assert!(matches!(refused, Err(Error::WrongSize { .. })));
        assert_eq!(Arc::strong_count(&token), 1);
    });
}

#[test]
fn nothing_leaks() {
    on_engine(|| {
        let before = memory::active_bytes().unwrap();
        for _ in 0..100 {
            let a = Array::zeros(&[1000], Dtype::Float32).unwrap();
            let _unused = plus_one(&a);
            plus_one(&plus_one(&a)).eval().unwrap();
            let _ = failing(&a, "no").eval().unwrap_err();
        }
        mlx_ffi::device::synchronize().unwrap();
        assert_eq!(memory::active_bytes().unwrap(), before);
    });
}

#[test]
#[ignore = "needs a quiet machine: prints a time"]
fn cost_per_node() {
    on_engine(|| {
        const NODES: u32 = 2000;
        let chain = |node: fn(&Array) -> Array| {
            let start = Instant::now();
            let mut a = Array::zeros(&[4], Dtype::Float32).unwrap();
            for _ in 0..NODES {
                a = node(&a);
            }
            a.eval().unwrap();
            start.elapsed() / NODES
        };
        for _ in 0..3 {
            let host = chain(plus_one);
            let mlx = chain(|a| ops::square(a).unwrap());
            println!("host primitive {host:?} per node, MLX square {mlx:?}");
        }
    });
}
