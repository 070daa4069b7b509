//! Layout of the new checkpoint: shards of at most 5 GiB, like those of mlx-lm, each with the widest
//! element types first, so that all tensors are aligned.

use mlxcel_core::FloatType;
use serde_json::{Map, Value, json};

use super::conversion_plan::{Action, ConversionPlan, PlannedTensor, module};

/// Largest size of a shard, unless a single tensor is larger.
const SHARD_BYTES: u64 = 5 << 30;

/// A safetensors file of the new checkpoint.
pub(super) struct Shard {
    pub(super) name: String,
    /// Header length and JSON: everything before the data.
    pub(super) header: Vec<u8>,
    pub(super) file_bytes: u64,
    pub(super) entries: Vec<ShardEntry>,
}

/// A planned tensor and its output tensors: one, or codes, scales and biases.
pub(super) struct ShardEntry {
    /// Index in the plan.
    pub(super) tensor: usize,
    pub(super) outputs: Vec<OutputTensor>,
}

/// A tensor of the new checkpoint.
pub(super) struct OutputTensor {
    name: String,
    dtype: &'static str,
    elem_bytes: u64,
    shape: Vec<u64>,
    pub(super) row_bytes: u64,
    bytes: u64,
    /// Position in the file.
    pub(super) offset: u64,
}

/// Distributes `tensors` over shards, in order.
pub(super) fn shards(tensors: &[PlannedTensor]) -> Vec<Shard> {
    let mut files: Vec<Vec<ShardEntry>> = Vec::new();
    let mut file_bytes = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        let outputs = outputs(tensor);
        let bytes: u64 = outputs.iter().map(|output| output.bytes).sum();
        if files.is_empty() || file_bytes + bytes > SHARD_BYTES {
            files.push(Vec::new());
            file_bytes = 0;
        }
        file_bytes += bytes;
        if let Some(file) = files.last_mut() {
            file.push(ShardEntry { tensor: index, outputs });
        }
    }
    let count = files.len();
    let numbered = files.into_iter().enumerate();
    numbered.map(|(index, entries)| Shard::new(shard_name(index, count), entries)).collect()
}

/// File name of shard `index` of `count`.
fn shard_name(index: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    }
}

/// Contents of `model.safetensors.index.json`.
pub(super) fn index(shards: &[Shard], plan: &ConversionPlan) -> Value {
    let mut map = Map::new();
    let mut total = 0;
    for shard in shards {
        for output in shard.entries.iter().flat_map(|entry| &entry.outputs) {
            total += output.bytes;
            map.insert(output.name.clone(), json!(shard.name));
        }
    }
    map.sort_keys();
    let metadata = json!({ "total_size": total, "total_parameters": plan.parameters });
    json!({ "metadata": metadata, "weight_map": map })
}

fn outputs(tensor: &PlannedTensor) -> Vec<OutputTensor> {
    let name = &tensor.name;
    let columns = tensor.columns();
    match tensor.action {
        Action::Copy => {
            let stored = Element { dtype: tensor.dtype.name(), bytes: tensor.dtype.bits() / 8 };
            vec![OutputTensor::new(name, stored, tensor, columns)]
        }
        Action::Cast { to, .. } => {
            vec![OutputTensor::new(name, Element::float(to), tensor, columns)]
        }
        Action::Quantize { quantizer, to, .. } => {
            let groups = columns / u64::from(quantizer.group_size());
            let words = columns * u64::from(quantizer.bits()) / 32;
            let module = module(name);
            let scales = format!("{module}.scales");
            let biases = format!("{module}.biases");
            vec![
                OutputTensor::new(name, Element { dtype: "U32", bytes: 4 }, tensor, words),
                OutputTensor::new(&scales, Element::float(to), tensor, groups),
                OutputTensor::new(&biases, Element::float(to), tensor, groups),
            ]
        }
    }
}

/// Element type of an output tensor.
struct Element {
    /// Name in safetensors headers.
    dtype: &'static str,
    bytes: u64,
}

impl Element {
    fn float(float: FloatType) -> Self {
        let dtype = match float {
            FloatType::F32 => "F32",
            FloatType::F16 => "F16",
            FloatType::Bf16 => "BF16",
        };
        Self { dtype, bytes: float.bytes() as u64 }
    }
}

impl OutputTensor {
    /// Creates a tensor with the shape of `tensor`, but `columns` as its last dimension.
    fn new(name: &str, element: Element, tensor: &PlannedTensor, columns: u64) -> Self {
        let mut shape = tensor.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        let row_bytes = columns * element.bytes;
        Self {
            name: name.to_owned(),
            dtype: element.dtype,
            elem_bytes: element.bytes,
            shape,
            row_bytes,
            bytes: row_bytes * tensor.rows(),
            offset: 0,
        }
    }
}

impl Shard {
    fn new(name: String, mut entries: Vec<ShardEntry>) -> Self {
        let mut outputs: Vec<&mut OutputTensor> =
            entries.iter_mut().flat_map(|entry| &mut entry.outputs).collect();
        outputs.sort_by_key(|output| std::cmp::Reverse(output.elem_bytes));
        let mut fields = Map::new();
        fields.insert("__metadata__".to_owned(), json!({ "format": "mlx" }));
        let mut end = 0;
        for output in &mut outputs {
            output.offset = end;
            end += output.bytes;
            let offsets = [output.offset, end];
            let field =
                json!({ "dtype": output.dtype, "shape": output.shape, "data_offsets": offsets });
            fields.insert(output.name.clone(), field);
        }
        let header = header(&Value::Object(fields));
        let start = header.len() as u64;
        outputs.iter_mut().for_each(|output| output.offset += start);
        Self { name, file_bytes: start + end, header, entries }
    }
}

/// Encodes the header: length and JSON, padded with spaces so that the data is aligned.
fn header(fields: &Value) -> Vec<u8> {
    let mut json = fields.to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}
