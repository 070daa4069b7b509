//! Serialisation of the estimator's types in `mlxcel.advice/1`, by the names of their flags.

use mlxcel_estimator::KvMode;
use serde::Serializer;

/// A mode by its `--kv-cache-mode` name.
pub(crate) fn mode<S: Serializer>(mode: &KvMode, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(mode.name())
}

/// A mode or `null`.
pub(crate) fn optional_mode<S: Serializer>(
    mode: &Option<KvMode>,
    out: S,
) -> Result<S::Ok, S::Error> {
    match mode {
        Some(mode) => out.serialize_str(mode.name()),
        None => out.serialize_none(),
    }
}
