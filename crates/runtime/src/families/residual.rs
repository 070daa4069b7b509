//! Residual connections of a block's parts, with their norms and factors.

use mlxcel_core::layers::Norm;
use mlxcel_core::{Array, Map, Ops};

use crate::Result;
use crate::loading::{NormRule, Weights};

/// Residual connection around a part of a block: `x + scale · after(part(before(x)))`.
#[derive(Default)]
pub(super) struct Residual {
    pub(super) before: Option<Norm>,
    pub(super) after: Option<Norm>,
    pub(super) scale: Option<f32>,
}

impl Residual {
    /// The norm `name` before the part.
    pub(super) fn before(w: &Weights, name: &str, hidden: usize, norm: NormRule) -> Result<Self> {
        Ok(Self { before: Some(w.norm(name, hidden, norm)?), ..Self::default() })
    }

    /// The norm `name` after the part.
    pub(super) fn after(w: &Weights, name: &str, hidden: usize, norm: NormRule) -> Result<Self> {
        Ok(Self { after: Some(w.norm(name, hidden, norm)?), ..Self::default() })
    }

    /// `x + scale · after(part(before(x)))` for `part`.
    pub(super) fn apply(
        &self,
        ops: &Ops,
        x: &Array,
        part: impl FnOnce(&Array) -> Result<Array>,
    ) -> Result<Array> {
        let mut y = match &self.before {
            Some(norm) => part(&ops.norm(x, norm)?)?,
            None => part(x)?,
        };
        if let Some(norm) = &self.after {
            y = ops.norm(&y, norm)?;
        }
        if let Some(scale) = self.scale {
            y = ops.map(&y, Map::Scale(scale))?;
        }
        Ok(ops.add(x, &y)?)
    }
}
