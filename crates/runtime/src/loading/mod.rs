//! Loading of parameters from a folder: `config.json`, safetensors files, quantised layers.
//!
//! Files are mapped, or read into huge pages ([`Residence`]); headers are parsed once, by the
//! estimator's reader. A tensor becomes an array over those bytes when a family requests it by name
//! and shape.

mod checkpoint;
mod experts;
mod fingerprint;
mod mxfp4;
mod quantization;
mod recurrent;
mod residence;
mod vision;
mod weights;

pub use self::checkpoint::Checkpoint;
pub(crate) use self::checkpoint::{read_config, size_of};
pub use self::experts::{ExpertShape, LatentShape};
pub use self::fingerprint::Fingerprint;
pub use self::residence::Residence;
pub use self::vision::{Frames, Patches};
pub use self::weights::{Bias, NormKind, NormRule, WeightSource, Weights};
