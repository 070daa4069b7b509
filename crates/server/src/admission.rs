//! Memory admission: asks the estimator whether a request fits, now or ever.
//!
//! Owns no formula. A request is a [`MemoryDemand`]; all running requests and the one that asks form
//! a [`Workload`], and the function that sizes a load before it happens says whether it fits. Blocks
//! that sequences and cached prefixes share are held once: they are subtracted from the available
//! memory, and the sequences over them count only what they add. The process itself is subtracted
//! too, where the limit was set for all of it.

use mlxcel_estimator::{
    EstimatorError, KvStorage, Machine, MemoryEstimate, Sequence as SequenceLoad, Solver, Workload,
    estimate_total_memory,
};
use mlxcel_runtime::preflight::ModelFootprint;

use super::prompt::Prompt;

/// Smallest prefill chunk: a request that would fit only with a smaller one waits.
pub(super) const MIN_CHUNK_TOKENS: u64 = 32;

/// The estimator, for one model on one machine.
#[derive(Clone, Debug)]
pub(super) struct MemoryAdmission {
    model: ModelFootprint,
    /// Memory available to the model.
    machine: Machine,
    /// Memory of the process apart from the model, where it counts.
    process_bytes: u64,
    storage: KvStorage,
    chunk_tokens: u64,
    /// Maximum length of a sequence.
    context_tokens: u64,
}

/// A request that does not fit even alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge {
    /// Memory that it needs, weights, headroom and the process itself included.
    pub(super) estimated_bytes: u64,
    /// Memory limit.
    pub(super) limit_bytes: u64,
    /// Longest sequence that would fit alone, prompt and completion together.
    pub(super) max_context_tokens: u64,
}

/// Memory demand of completions: their sequences, and images that are still to be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MemoryDemand {
    sequences: Vec<SequenceLoad>,
    /// Tokens of the largest image, which is encoded at once.
    largest_image_tokens: u64,
    /// Tokens of the largest image that no chunk divides: a pass has at least as many.
    image_pass_tokens: u64,
}

impl MemoryDemand {
    /// One sequence of `total` tokens of text, `cached` of which are held elsewhere.
    pub(super) fn text(cached: usize, total: usize) -> Self {
        let sequence = SequenceLoad {
            cached_tokens: cached as u64,
            new_tokens: total.saturating_sub(cached) as u64,
            image_tokens: 0,
            cross_tokens: 0,
            count: 1,
        };
        Self { sequences: vec![sequence], ..Self::default() }
    }

    /// Adds rows of images beside each sequence, encoded already.
    pub(super) fn with_cross_rows(mut self, rows: usize) -> Self {
        self.sequences.iter_mut().for_each(|sequence| sequence.cross_tokens = rows as u64);
        self
    }

    /// `n` completions of a prompt that is still to be read: one with the prompt, the others in
    /// addition to it.
    pub(super) fn completions(cached: usize, prompt: &Prompt, max_tokens: usize, n: usize) -> Self {
        let total = prompt.len().saturating_add(max_tokens);
        let image_tokens = prompt.image_tokens(cached);
        let cross_rows = prompt.cross_rows(cached);
        let mut demand = Self::text(cached, total.saturating_sub(image_tokens));
        for first in &mut demand.sequences {
            first.image_tokens = image_tokens as u64;
            first.cross_tokens = cross_rows as u64;
        }
        if n > 1 {
            let others = Self::text(prompt.len(), total).sequences.into_iter();
            demand.sequences.extend(others.map(|o| SequenceLoad { count: n as u64 - 1, ..o }));
        }
        if image_tokens > 0 || cross_rows > 0 {
            demand.largest_image_tokens = prompt.largest_image() as u64;
            demand.image_pass_tokens = prompt.largest_undivided() as u64;
        }
        demand
    }

    /// Returns true if nothing is demanded.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens that the sequences add, images and the end of their completions included.
    #[cfg(test)]
    pub(super) fn new_tokens(&self) -> u64 {
        let sequences = self.sequences.iter();
        sequences.map(|s| (s.new_tokens + s.image_tokens + s.cross_tokens) * s.count).sum()
    }
}

impl FromIterator<MemoryDemand> for MemoryDemand {
    fn from_iter<I: IntoIterator<Item = MemoryDemand>>(all: I) -> Self {
        let mut sum = Self::default();
        for demand in all {
            sum.sequences.extend(demand.sequences);
            sum.largest_image_tokens = sum.largest_image_tokens.max(demand.largest_image_tokens);
            sum.image_pass_tokens = sum.image_pass_tokens.max(demand.image_pass_tokens);
        }
        sum
    }
}

impl MemoryAdmission {
    /// Admission for `model` on `machine`, whose available bytes are the limit.
    pub(super) fn new(
        model: ModelFootprint,
        machine: Machine,
        storage: KvStorage,
        chunk_tokens: usize,
        context_tokens: usize,
    ) -> Self {
        Self {
            model,
            machine,
            process_bytes: 0,
            storage,
            chunk_tokens: chunk_tokens as u64,
            context_tokens: context_tokens as u64,
        }
    }

    /// Subtracts memory of the process apart from the model.
    pub(super) fn with_process_bytes(mut self, process_bytes: u64) -> Self {
        self.machine = self.machine_without(process_bytes);
        self.process_bytes = process_bytes;
        self
    }

    /// Memory limit; `None` without one.
    pub(super) fn limit_bytes(&self) -> Option<u64> {
        self.machine.available_bytes.map(|bytes| bytes.saturating_add(self.process_bytes))
    }

    /// Memory of the process apart from the model, where it counts.
    pub(super) fn process_bytes(&self) -> u64 {
        self.process_bytes
    }

    /// Number of tokens in the vocabulary.
    pub(super) fn vocabulary(&self) -> u64 {
        self.model.spec.widths.vocabulary
    }

    /// Memory of the machine.
    pub(super) fn total_memory_bytes(&self) -> Option<u64> {
        self.machine.total_bytes
    }

    fn workload(&self, demand: &MemoryDemand, chunk_tokens: u64) -> Workload {
        let workload = Workload {
            sequences: demand.sequences.clone(),
            largest_image_tokens: Some(demand.largest_image_tokens),
            ..Workload::uniform(0, 0)
        };
        workload
            .with_kv_mode(self.storage.mode)
            .with_dtype(self.storage.dtype)
            .with_prefill_chunk(chunk_tokens.max(demand.image_pass_tokens))
    }

    /// The machine without memory that is held already.
    fn machine_without(&self, held_bytes: u64) -> Machine {
        let mut machine = self.machine.clone();
        machine.available_bytes =
            machine.available_bytes.map(|bytes| bytes.saturating_sub(held_bytes));
        machine
    }

    /// Full estimate for `demand`, with prompts read `chunk_tokens` at a time.
    ///
    /// # Errors
    /// A cache mode that the model cannot take.
    pub(super) fn estimate(
        &self,
        demand: &MemoryDemand,
        chunk_tokens: u64,
    ) -> Result<MemoryEstimate, EstimatorError> {
        let workload = self.workload(demand, chunk_tokens);
        estimate_total_memory(&self.model.spec, &self.model.weights, &workload, &self.machine)
    }

    /// Checks `demand` alone, in the smallest chunks; `None` if it fits.
    ///
    /// # Errors
    /// Errors of [`Self::estimate`].
    pub(super) fn too_large(
        &self,
        demand: &MemoryDemand,
    ) -> Result<Option<TooLarge>, EstimatorError> {
        let chunk = MIN_CHUNK_TOKENS.min(self.chunk_tokens);
        let estimate = self.estimate(demand, chunk)?;
        let Some(limit_bytes) = self.limit_bytes().filter(|_| estimate.fits == Some(false)) else {
            return Ok(None);
        };
        let workload = self.workload(demand, chunk);
        let solver = self.solver(&self.machine);
        let longest = solver.max_context(&workload, 1)?.value.unwrap_or(u64::MAX);
        let max_context_tokens = longest.min(self.context_tokens);
        let estimated_bytes = estimate.total_bytes.saturating_add(self.process_bytes);
        Ok(Some(TooLarge { estimated_bytes, limit_bytes, max_context_tokens }))
    }

    /// Prefill chunk with which `demand` fits next to `held_bytes`: the configured one, or as much of
    /// it as fits; `None` if it has to wait. The pass of an image is not divided.
    ///
    /// # Errors
    /// Errors of [`Self::estimate`].
    pub(super) fn chunk_that_fits(
        &self,
        demand: &MemoryDemand,
        held_bytes: u64,
    ) -> Result<Option<u64>, EstimatorError> {
        let machine = self.machine_without(held_bytes);
        let workload = self.workload(demand, self.chunk_tokens);
        let ModelFootprint { spec, weights, .. } = &self.model;
        if estimate_total_memory(spec, weights, &workload, &machine)?.fits != Some(false) {
            return Ok(Some(self.chunk_tokens));
        }
        let most = self.solver(&machine).max_chunk(&workload)?.value.unwrap_or(u64::MAX);
        let chunk = most.min(self.chunk_tokens);
        let least = MIN_CHUNK_TOKENS.min(self.chunk_tokens).max(demand.image_pass_tokens);
        Ok((most >= least).then_some(chunk))
    }

    fn solver<'a>(&'a self, machine: &'a Machine) -> Solver<'a> {
        Solver { spec: &self.model.spec, weights: &self.model.weights, machine }
    }
}

#[cfg(test)]
mod tests {
    use mlxcel_estimator::{AvailableSource, Backend, ComputeDtype, estimate_total_memory};

    use super::super::prompt::PromptImage;
    use super::*;
    use mlxcel_runtime::engine::ModelSource;
    use mlxcel_runtime::vision::ImagePlacement;

    fn admission(limit: u64) -> MemoryAdmission {
        let machine =
            Machine::new(Backend::Cpu).with_available(limit, AvailableSource::MemoryLimitVariable);
        let model = ModelFootprint::read(&ModelSource::BuiltIn).unwrap();
        MemoryAdmission::new(model, machine, KvStorage::default(), 512, 1 << 20)
    }

    #[test]
    fn refusals_state_the_estimate() {
        let admission = admission(64 << 20);
        let wanted = MemoryDemand::text(0, 100_000);
        let refused = admission.too_large(&wanted).unwrap().unwrap();
        let workload = Workload::uniform(100_000, 1).with_prefill_chunk(MIN_CHUNK_TOKENS);
        let ModelFootprint { spec, weights, .. } = &admission.model;
        let expected = estimate_total_memory(spec, weights, &workload, &admission.machine).unwrap();
        assert_eq!(refused.estimated_bytes, expected.total_bytes);
        assert_eq!(refused.limit_bytes, 64 << 20);
        let most = usize::try_from(refused.max_context_tokens).unwrap();
        assert_eq!(admission.too_large(&MemoryDemand::text(0, most)).unwrap(), None);
        assert!(admission.too_large(&MemoryDemand::text(0, most + 1)).unwrap().is_some());

        let beside = admission.with_process_bytes(10 << 20);
        let less = beside.too_large(&wanted).unwrap().unwrap();
        assert_eq!(less.estimated_bytes, refused.estimated_bytes + (10 << 20));
        assert_eq!((less.limit_bytes, beside.limit_bytes()), (64 << 20, Some(64 << 20)));
        assert!(less.max_context_tokens < refused.max_context_tokens);
    }

    #[test]
    fn fp32_caches_hold_half_as_many_tokens() {
        let most = |dtype| {
            let machine = admission(64 << 20).machine;
            let model = ModelFootprint::read(&ModelSource::BuiltIn).unwrap();
            let storage = KvStorage { dtype, ..KvStorage::default() };
            let admission = MemoryAdmission::new(model, machine, storage, 512, 1 << 20);
            let refused = admission.too_large(&MemoryDemand::text(0, 100_000)).unwrap().unwrap();
            refused.max_context_tokens
        };
        let (half, single) = (most(ComputeDtype::Checkpoint), most(ComputeDtype::Fp32));
        assert!((half / 2 - 256..=half / 2 + 256).contains(&single), "{half} {single}");
    }

    #[test]
    fn the_chunk_shrinks_before_a_request_waits() {
        let admission = admission(64 << 20);
        let one = MemoryDemand::text(0, 4096);
        assert_eq!(admission.chunk_that_fits(&one, 0).unwrap(), Some(512));
        let smaller: Vec<_> =
            (0..64).filter_map(|mib| admission.chunk_that_fits(&one, mib << 20).unwrap()).collect();
        assert!(smaller.is_sorted_by(|a, b| a >= b), "{smaller:?}");
        assert!(smaller.iter().any(|chunk| *chunk < 512), "{smaller:?}");
        assert_eq!(admission.chunk_that_fits(&one, 63 << 20).unwrap(), None);
    }

    #[test]
    fn a_cached_prefix_adds_no_memory() {
        let prompt = Prompt::text(vec![0; 2048]);
        let all = MemoryDemand::completions(0, &prompt, 100, 3);
        let hit = MemoryDemand::completions(2048, &prompt, 100, 3);
        let kv = |demand: &MemoryDemand| {
            admission(1 << 30).estimate(demand, 512).unwrap().kv_cache_bytes.unwrap()
        };
        assert_eq!(
            kv(&all),
            kv(&MemoryDemand::text(0, 2148)) + 2 * kv(&MemoryDemand::text(0, 100))
        );
        assert_eq!(kv(&hit), 3 * kv(&MemoryDemand::text(0, 100)));
    }

    /// Image tokens are new tokens in an undivided pass, and the encoder has scratch memory of its own.
    #[test]
    fn an_image_adds_its_tokens_and_encoder_scratch() {
        let folder = tempfile::tempdir().unwrap();
        let variant = &mlxcel_testing::golden::VARIANTS[0];
        mlxcel_testing::golden::checkpoint("gemma3-vision", variant, folder.path()).unwrap();
        let model = ModelFootprint::read(&ModelSource::Folder(folder.path().to_owned())).unwrap();
        let machine = |limit| {
            Machine::new(Backend::Cpu).with_available(limit, AvailableSource::MemoryLimitVariable)
        };
        let admission = |limit| {
            MemoryAdmission::new(model.clone(), machine(limit), KvStorage::default(), 128, 1024)
        };
        let image = |tokens| PromptImage {
            tokens,
            digest: [0; 32],
            placement: ImagePlacement::InlineBidirectional,
        };
        let prompt = Prompt { tokens: vec![0; 400], images: vec![image(4..260)] };
        let (seen, text) =
            (MemoryDemand::completions(0, &prompt, 100, 1), MemoryDemand::text(0, 500));
        let ample = admission(1 << 30);
        let estimate = |demand| ample.estimate(demand, 128).unwrap();
        assert_eq!(estimate(&seen).kv_cache_bytes, estimate(&text).kv_cache_bytes);
        let encoder = model.spec.vision.unwrap().image_bytes(256, ample.machine.kernels);
        assert_eq!((estimate(&seen).vision_bytes, estimate(&text).vision_bytes), (encoder, 0));
        let pass = ample.estimate(&text, 256).unwrap().prefill_scratch.total();
        assert_eq!(estimate(&seen).prefill_scratch.total(), pass);
        // A cached image adds nothing.
        let hit = MemoryDemand::completions(260, &prompt, 100, 1);
        assert_eq!((estimate(&hit).vision_bytes, hit.image_pass_tokens), (0, 0));

        let tight = admission(estimate(&seen).total_bytes - 1);
        assert!(tight.too_large(&text).unwrap().is_none());
        let refused = tight.too_large(&seen).unwrap().unwrap();
        assert!(refused.estimated_bytes > refused.limit_bytes, "{refused:?}");
        assert_eq!(tight.chunk_that_fits(&seen, 0).unwrap(), None);
    }
}
