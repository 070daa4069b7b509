//! Conversion of published tensors as by mlx-lm when it quantises a checkpoint: convolution filters are
//! transposed, and stacked matrices are split.

use super::Weights;
use mlxcel_estimator::{TensorPart, TensorRole, TensorSpec};

/// Tensors of a converted checkpoint; a plain one keeps the published ones.
pub(super) fn converted(inventory: &[TensorSpec], weights: Weights) -> Vec<TensorSpec> {
    if !matches!(weights, Weights::Affine { .. }) {
        return inventory.to_vec();
    }
    let sparse = inventory.iter().any(|spec| spec.name.contains(".block_sparse_moe."));
    inventory.iter().flat_map(|spec| parts(spec, sparse)).collect()
}

/// Name of a stacked tensor, names of its parts, and true if only models without experts split it.
const STACKED: [(&str, &[&str], bool); 6] = [
    ("shared_mlp.input_linear.weight", &["mlp.gate_proj.weight", "mlp.up_proj.weight"], true),
    ("shared_mlp.output_linear.weight", &["mlp.down_proj.weight"], true),
    (
        "block_sparse_moe.input_linear.weight",
        &[
            "block_sparse_moe.switch_mlp.gate_proj.weight",
            "block_sparse_moe.switch_mlp.up_proj.weight",
        ],
        false,
    ),
    (
        "block_sparse_moe.output_linear.weight",
        &["block_sparse_moe.switch_mlp.down_proj.weight"],
        false,
    ),
    (
        "mlp.experts.gate_up_proj",
        &["mlp.switch_mlp.gate_proj.weight", "mlp.switch_mlp.up_proj.weight"],
        false,
    ),
    ("mlp.experts.down_proj", &["mlp.switch_mlp.down_proj.weight"], false),
];

fn parts(spec: &TensorSpec, sparse: bool) -> Vec<TensorSpec> {
    let mut spec = spec.clone();
    let filters = spec.role == TensorRole::Convolution && spec.part == TensorPart::Text;
    if let (true, [_, inputs @ 1, taps]) = (filters, spec.shape.as_mut_slice()) {
        std::mem::swap(inputs, taps);
    }
    for (name, parts, dense_only) in STACKED {
        let Some(layer) = spec.name.strip_suffix(name) else { continue };
        if dense_only && sparse {
            continue;
        }
        let rows = spec.shape.len() - 2;
        let parts_of_spec = parts.iter().map(|part| {
            let mut spec = TensorSpec { name: format!("{layer}{part}"), ..spec.clone() };
            spec.shape[rows] /= parts.len() as u64;
            spec
        });
        return parts_of_spec.collect();
    }
    vec![spec]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Dtype;

    fn spec(name: &str, shape: &[u64], role: TensorRole) -> TensorSpec {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        TensorSpec { name, shape, count: 1, role, part: TensorPart::Text }
    }

    #[test]
    fn stacked_tensors_come_apart_and_filters_are_turned() {
        let inventory = [
            spec("l.0.conv1d.weight", &[8, 1, 4], TensorRole::Convolution),
            spec("l.0.shared_mlp.input_linear.weight", &[64, 32], TensorRole::Linear),
            spec("l.0.mlp.experts.gate_up_proj", &[4, 64, 32], TensorRole::Linear),
        ];
        let of = |inventory: &[TensorSpec]| -> Vec<(String, Vec<u64>)> {
            let q4 = Weights::Affine { bits: 4, group_size: 32, scales: Dtype::F16 };
            let specs = converted(inventory, q4).into_iter();
            specs.map(|spec| (spec.name, spec.shape)).collect()
        };
        let expected = [
            ("l.0.conv1d.weight", vec![8, 4, 1]),
            ("l.0.mlp.gate_proj.weight", vec![32, 32]),
            ("l.0.mlp.up_proj.weight", vec![32, 32]),
            ("l.0.mlp.switch_mlp.gate_proj.weight", vec![4, 32, 32]),
            ("l.0.mlp.switch_mlp.up_proj.weight", vec![4, 32, 32]),
        ];
        assert_eq!(of(&inventory), expected.map(|(name, shape)| (name.to_owned(), shape)));
        let mut sparse = inventory.to_vec();
        sparse.push(spec("l.0.block_sparse_moe.router.weight", &[4, 32], TensorRole::Linear));
        assert_eq!(of(&sparse)[1].0, inventory[1].name);
        let plain = converted(&inventory, Weights::Plain(Dtype::F32));
        assert_eq!(plain, inventory);
    }
}
