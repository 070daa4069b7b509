//! From a folder to parameters: `config.json`, mapped safetensors files, quantised layers.
//!
//! Files are mapped, not read; headers are parsed once, by the estimator's reader. A tensor becomes
//! an array over the mapped bytes when a family asks for it by name and shape.

mod checkpoint;
mod experts;
mod fingerprint;
mod mxfp4;
mod quantization;
mod recurrent;
mod vision;
mod weights;

pub(crate) use self::checkpoint::size_of;
pub use self::checkpoint::{Checkpoint, read_config};
pub use self::experts::ExpertShape;
pub use self::fingerprint::Fingerprint;
pub use self::vision::{Frames, Patches};
pub use self::weights::{Bias, NormKind, NormRule, Source, Weights};
