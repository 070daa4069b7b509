//! Weight-quantisation and KV-cache advice. Not written yet: this crate holds only its place.
