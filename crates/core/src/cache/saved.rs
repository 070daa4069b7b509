//! A sequence's cache as bytes that outlive the process, and back.
//!
//! Owns the versioned header and what is checked before a saved cache is taken over; which file
//! the bytes go to is the runtime's business.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use mlxcel_estimator::KvMode;

use super::{LayerCache, SequenceCache};
use crate::attention::LayerLayout;
use crate::images::HeldImages;
use crate::ops::Ops;
use crate::{Error, Result};

/// The version of the header and of the layers' bytes.
const FORMAT: &str = "mlxcel.kv-cache/1";

/// A cache that was saved: a header of names and values, and each layer's state and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedCache {
    /// `format`, `model`, `mode`, `tokens`, `compute`, `layout` and, where there are any, `images`.
    pub header: BTreeMap<String, String>,
    /// One per layer.
    pub layers: Vec<SavedLayer>,
}

/// One layer of a saved cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedLayer {
    /// Counters; their meaning belongs to the layer's kind of cache.
    pub state: Vec<u64>,
    /// Keys and values as stored.
    pub bytes: Vec<u8>,
}

impl SequenceCache {
    /// The cache as bytes; `model` names what it belongs to, such as a fingerprint.
    ///
    /// # Errors
    /// Arrays that cannot be evaluated, and recurrent layers and images beside the tokens, which are
    /// not saved.
    pub fn save(&self, ops: &Ops, model: &str) -> Result<SavedCache> {
        let refused = |what: &str| Err(Error::Cache { what: what.into() });
        if !self.states.is_empty() {
            return refused("the state of recurrent layers cannot be saved");
        }
        if !self.cross.is_empty() {
            return refused("images that cross-attention layers see cannot be saved");
        }
        let layers = self.layers.iter().map(|layer| match layer {
            LayerCache::Blocks(blocks) => Ok(LayerCache::lock(blocks).save()),
            LayerCache::Contiguous(cache) => cache.borrow().save(),
        });
        Ok(SavedCache { header: self.header(ops, model), layers: layers.collect::<Result<_>>()? })
    }

    /// The cache that [`Self::save`] saved, for a model called `model` that runs in `mode`.
    ///
    /// # Errors
    /// [`Error::Cache`] for another version, model, mode or layout, and for bytes that are not
    /// what the header says.
    pub fn restore(
        ops: &Ops,
        layout: &[LayerLayout],
        mode: KvMode,
        model: &str,
        saved: &SavedCache,
    ) -> Result<Self> {
        let cache = Self::new(ops, layout, mode)?;
        let needed = cache.header(ops, model);
        // In the order in which a difference explains the others.
        for key in ["format", "model", "mode", "compute", "layout"] {
            let [found, expected] =
                [&saved.header, &needed].map(|header| header.get(key).map_or("", String::as_str));
            if found != expected {
                return broken(format!("its {key} is \"{found}\", here \"{expected}\" is needed"));
            }
        }
        let tokens = saved.header.get("tokens").and_then(|text| text.parse().ok());
        let Some(tokens) = tokens.filter(|tokens| i32::try_from(*tokens).is_ok()) else {
            return broken("its header states no number of tokens".into());
        };
        let images = saved.header.get("images").map_or("", String::as_str);
        let Some(images) = HeldImages::parse(images, tokens) else {
            return broken(format!("images at \"{images}\" in {tokens} tokens"));
        };
        if saved.layers.len() != cache.layers.len() {
            return broken(format!("{} of {} layers", saved.layers.len(), cache.layers.len()));
        }
        for (index, (layer, saved)) in cache.layers.iter().zip(&saved.layers).enumerate() {
            let restored = match layer {
                LayerCache::Blocks(blocks) => LayerCache::lock(blocks).restore(saved, tokens)?,
                LayerCache::Contiguous(cache) => cache.borrow_mut().restore(saved, tokens)?,
            };
            if restored.is_none() {
                return broken(format!("layer {index} does not hold {tokens} tokens"));
            }
        }
        let (tokens, images) = (Rc::new(Cell::new(tokens)), Rc::new(RefCell::new(images)));
        Ok(Self { tokens, images, ..cache })
    }

    fn header(&self, ops: &Ops, model: &str) -> BTreeMap<String, String> {
        let mut layers: Vec<String> = self.layers.iter().map(LayerCache::layout_text).collect();
        layers.dedup();
        let entries = [
            ("format", FORMAT.to_owned()),
            ("model", model.to_owned()),
            ("mode", self.mode.to_string()),
            ("tokens", self.tokens().to_string()),
            ("compute", format!("{:?}", ops.dtype()).to_lowercase()),
            ("layout", layers.join("; ")),
        ];
        let images = Some(("images", self.images().to_text())).filter(|(_, text)| !text.is_empty());
        let entries = entries.into_iter().chain(images);
        entries.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

impl LayerCache {
    fn layout_text(&self) -> String {
        match self {
            Self::Blocks(blocks) => Self::lock(blocks).layout_text(),
            Self::Contiguous(cache) => cache.borrow().layout_text(),
        }
    }
}

fn broken<T>(what: String) -> Result<T> {
    Err(Error::Cache { what: format!("the saved cache does not fit: {what}") })
}
