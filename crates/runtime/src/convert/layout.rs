//! Where each tensor of the new checkpoint lies: files of at most 5 GiB, as mlx-lm makes them, and
//! in each the wider elements first, so that all are aligned.

use mlxcel_core::FloatType;
use serde_json::{Map, Value, json};

use super::plan::{Action, Plan, Planned, module};

/// A file holds no more, unless a single tensor does.
const SHARD_BYTES: u64 = 5 << 30;

/// One safetensors file.
pub(super) struct Shard {
    pub(super) name: String,
    /// Length and JSON, up to where the data begins.
    pub(super) header: Vec<u8>,
    pub(super) file_bytes: u64,
    pub(super) items: Vec<Item>,
}

/// One tensor of the source and the tensors that are made of it: one, or codes, scales, biases.
pub(super) struct Item {
    /// Position in the plan.
    pub(super) tensor: usize,
    pub(super) parts: Vec<Part>,
}

/// One new tensor.
pub(super) struct Part {
    name: String,
    dtype: &'static str,
    elem_bytes: u64,
    shape: Vec<u64>,
    pub(super) row_bytes: u64,
    bytes: u64,
    /// From the beginning of the file.
    pub(super) offset: u64,
}

/// Distributes `tensors` over files, in order.
pub(super) fn shards(tensors: &[Planned]) -> Vec<Shard> {
    let mut files: Vec<Vec<Item>> = Vec::new();
    let mut filled = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        let parts = parts(tensor);
        let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
        if files.is_empty() || filled + bytes > SHARD_BYTES {
            files.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(file) = files.last_mut() {
            file.push(Item { tensor: index, parts });
        }
    }
    let count = files.len();
    let name = |at: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
    };
    files.into_iter().enumerate().map(|(at, items)| Shard::new(name(at), items)).collect()
}

/// The contents of `model.safetensors.index.json`.
pub(super) fn index(shards: &[Shard], plan: &Plan) -> Value {
    let mut map = Map::new();
    let mut total = 0;
    for shard in shards {
        for part in shard.items.iter().flat_map(|item| &item.parts) {
            total += part.bytes;
            map.insert(part.name.clone(), json!(shard.name));
        }
    }
    map.sort_keys();
    let metadata = json!({ "total_size": total, "total_parameters": plan.parameters });
    json!({ "metadata": metadata, "weight_map": map })
}

fn parts(tensor: &Planned) -> Vec<Part> {
    let plain =
        |dtype, bytes| vec![Part::new(tensor.name.clone(), dtype, bytes, tensor, tensor.columns())];
    match tensor.action {
        Action::Copy => plain(tensor.dtype.name(), tensor.dtype.bits() / 8),
        Action::Cast(_, to) => plain(name(to), to.bytes() as u64),
        Action::Quantize(_, quantizer, to) => {
            let groups = tensor.columns() / u64::from(quantizer.group_size());
            let words = tensor.columns() * u64::from(quantizer.bits()) / 32;
            let module = module(&tensor.name);
            let float = |what: &str| {
                Part::new(format!("{module}.{what}"), name(to), to.bytes() as u64, tensor, groups)
            };
            let codes = Part::new(tensor.name.clone(), "U32", 4, tensor, words);
            vec![codes, float("scales"), float("biases")]
        }
    }
}

fn name(float: FloatType) -> &'static str {
    match float {
        FloatType::F32 => "F32",
        FloatType::F16 => "F16",
        FloatType::Bf16 => "BF16",
    }
}

impl Part {
    /// The shape of `tensor` with `columns` instead of its last dimension.
    fn new(
        name: String,
        dtype: &'static str,
        elem_bytes: u64,
        tensor: &Planned,
        columns: u64,
    ) -> Self {
        let mut shape = tensor.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        let row_bytes = columns * elem_bytes;
        let bytes = row_bytes * tensor.rows();
        Self { name, dtype, elem_bytes, shape, row_bytes, bytes, offset: 0 }
    }
}

impl Shard {
    fn new(name: String, mut items: Vec<Item>) -> Self {
        let mut parts: Vec<&mut Part> = items.iter_mut().flat_map(|item| &mut item.parts).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.elem_bytes));
        let mut entries = Map::new();
        entries.insert("__metadata__".to_owned(), json!({ "format": "mlx" }));
        let mut end = 0;
        for part in &mut parts {
            part.offset = end;
            end += part.bytes;
            let offsets = [part.offset, end];
            let entry =
                json!({ "dtype": part.dtype, "shape": part.shape, "data_offsets": offsets });
            entries.insert(part.name.clone(), entry);
        }
        let header = header(&Value::Object(entries));
        let start = header.len() as u64;
        parts.iter_mut().for_each(|part| part.offset += start);
        Self { name, file_bytes: start + end, header, items }
    }
}

/// Length and JSON, padded with spaces so that the data is aligned.
fn header(entries: &Value) -> Vec<u8> {
    let mut json = entries.to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}
