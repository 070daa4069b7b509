//! A sequence's cache as bytes that outlive the process, and back.
//!
//! Owns the versioned header and the checks before a saved cache is restored; writing the bytes to a
//! file is the runtime's business.

use std::collections::BTreeMap;

use super::SequenceCache;
use crate::error::SavedCacheProblem;
use crate::images::CachedImages;
use crate::{Error, Result};

/// Version of the header and of the layers' bytes.
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
    /// The cache as bytes; `model` names the model that it belongs to, such as a fingerprint.
    ///
    /// # Errors
    /// Arrays that cannot be evaluated, and recurrent layers and cross-attention images, which are
    /// not saved.
    pub fn save(&self, model: &str) -> Result<SavedCache> {
        if self.storage.has_states() {
            let feature = "saving a cache with recurrent layers";
            return Err(Error::Unsupported { feature });
        }
        if !self.cross_rows.is_empty() {
            let feature = "saving a cache with cross-attention images";
            return Err(Error::Unsupported { feature });
        }
        Ok(SavedCache { header: self.header(model), layers: self.storage.save()? })
    }

    /// Restores, into an empty cache, one that [`Self::save`] saved for a model called `model`.
    pub(crate) fn restored(mut self, model: &str, saved: &SavedCache) -> Result<Self> {
        let needed = self.header(model);
        // In the order in which a difference explains the others.
        for key in ["format", "model", "mode", "compute", "layout"] {
            let found = entry(&saved.header, key);
            let needed = entry(&needed, key);
            if found != needed {
                return Err(Error::SavedCache(SavedCacheProblem::Header {
                    key,
                    found: found.to_owned(),
                    needed: needed.to_owned(),
                }));
            }
        }
        let tokens: Option<usize> = entry(&saved.header, "tokens").parse().ok();
        let tokens = tokens
            .filter(|tokens| i32::try_from(*tokens).is_ok())
            .ok_or(Error::SavedCache(SavedCacheProblem::Tokens))?;
        let text = entry(&saved.header, "images");
        let Some(images) = CachedImages::parse(text, tokens) else {
            let problem = SavedCacheProblem::Images { text: text.to_owned(), tokens };
            return Err(Error::SavedCache(problem));
        };
        self.storage.restore(&saved.layers, tokens)?;
        self.tokens = tokens;
        self.images = images;
        Ok(self)
    }

    fn header(&self, model: &str) -> BTreeMap<String, String> {
        let mut layouts = self.storage.layout_texts();
        layouts.dedup();
        let mut header = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("model".to_owned(), model.to_owned()),
            ("mode".to_owned(), self.format.mode.to_string()),
            ("tokens".to_owned(), self.tokens.to_string()),
            ("compute".to_owned(), format!("{:?}", self.format.dtype).to_lowercase()),
            ("layout".to_owned(), layouts.join("; ")),
        ]);
        let images = self.images.to_text();
        if !images.is_empty() {
            header.insert("images".to_owned(), images);
        }
        header
    }
}

/// Value of an entry; empty where there is none.
fn entry<'a>(header: &'a BTreeMap<String, String>, key: &str) -> &'a str {
    header.get(key).map_or("", String::as_str)
}
