//! Whether a request fits, now or ever: questions to the estimator, in bytes.
//!
//! Owns no formula. A request is a [`Demand`]; all that run and the one that asks are a
//! [`Workload`], and the same function that sizes a load before it happens says whether it fits.
//! Blocks that sequences and cached prefixes share are held once: they are taken off what is
//! available, and the sequences over them count only what they add. So is what the process itself
//! holds, where the limit was set for all of it.

use mlxcel_estimator::{
    EstimatorError, KvStorage, Machine, MemoryEstimate, Sequence, Solver, Workload,
    estimate_total_memory,
};

use super::prompt::Prompt;
use mlxcel_runtime::preflight::ModelFootprint;

/// The smallest prefill chunk that is worth a step: a request that fits only with less waits.
pub(super) const LEAST_CHUNK_TOKENS: u64 = 32;

/// Asks the estimator on behalf of requests.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    model: ModelFootprint,
    /// What is available to the model.
    machine: Machine,
    /// What the process holds besides, if that counts.
    process_bytes: u64,
    storage: KvStorage,
    chunk_tokens: u64,
    /// Tokens that a sequence may have.
    context_tokens: u64,
}

/// A request that does not fit even alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge {
    /// What it needs, weights, headroom and the process itself included.
    pub(super) estimated_bytes: u64,
    /// What there is.
    pub(super) limit_bytes: u64,
    /// The longest sequence that would fit alone, prompt and answer together.
    pub(super) max_context_tokens: u64,
}

/// What answers take: their sequences, and the images that they have still to read.
#[derive(Clone, Debug, Default)]
pub(super) struct Demand {
    sequences: Vec<Sequence>,
    /// Tokens of the largest image, which is encoded at once.
    largest_image_tokens: u64,
    /// A pass of so many tokens there will be, whatever the chunk.
    image_pass_tokens: u64,
}

fn sequence(cached: usize, total: usize, images: usize, count: usize) -> Sequence {
    let new_tokens = total.saturating_sub(cached).saturating_sub(images) as u64;
    let (cached_tokens, image_tokens, count) = (cached as u64, images as u64, count as u64);
    Sequence { cached_tokens, new_tokens, image_tokens, cross_tokens: 0, count }
}

impl Demand {
    /// One sequence of text, of which `cached` tokens are somebody else's.
    pub(super) fn text(cached: usize, total: usize) -> Self {
        Self { sequences: vec![sequence(cached, total, 0, 1)], ..Self::default() }
    }

    /// The same with so many rows of images beside each sequence, encoded already.
    pub(super) fn beside(mut self, rows: usize) -> Self {
        self.sequences.iter_mut().for_each(|sequence| sequence.cross_tokens = rows as u64);
        self
    }

    /// `n` answers to a prompt that is still to be read: the first with the prompt, the others
    /// beside it.
    pub(super) fn answers(cached: usize, prompt: &Prompt, max_tokens: usize, n: usize) -> Self {
        let total = prompt.len().saturating_add(max_tokens);
        let images = prompt.image_tokens(cached);
        let others = (n > 1).then(|| sequence(prompt.len(), total, 0, n - 1));
        let beside = prompt.rows_beside(cached);
        let mut first = sequence(cached, total, images, 1);
        first.cross_tokens = beside as u64;
        let sequences = [first].into_iter().chain(others).collect();
        if images == 0 && beside == 0 {
            return Self { sequences, ..Self::default() };
        }
        let [largest_image_tokens, image_pass_tokens] =
            [prompt.largest_image(), prompt.largest_pass()].map(|tokens| tokens as u64);
        Self { sequences, largest_image_tokens, image_pass_tokens }
    }

    /// Whether nobody asks for anything.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}

impl FromIterator<Demand> for Demand {
    fn from_iter<I: IntoIterator<Item = Demand>>(all: I) -> Self {
        let mut sum = Self::default();
        for demand in all {
            sum.sequences.extend(demand.sequences);
            sum.largest_image_tokens = sum.largest_image_tokens.max(demand.largest_image_tokens);
            sum.image_pass_tokens = sum.image_pass_tokens.max(demand.image_pass_tokens);
        }
        sum
    }
}

impl Admission {
    /// For `model` on `machine`, whose available bytes are the limit.
    pub(super) fn new(
        model: ModelFootprint,
        machine: Machine,
        storage: KvStorage,
        chunk_tokens: usize,
        context_tokens: usize,
    ) -> Self {
        let (chunk_tokens, context_tokens) = (chunk_tokens as u64, context_tokens as u64);
        Self { model, machine, process_bytes: 0, storage, chunk_tokens, context_tokens }
    }

    /// Leaves this much of the limit to the process itself.
    pub(super) fn beside_process(mut self, process_bytes: u64) -> Self {
        self.machine = self.machine(process_bytes);
        self.process_bytes = process_bytes;
        self
    }

    /// What may be used; `None` where nothing limits.
    pub(super) fn limit_bytes(&self) -> Option<u64> {
        self.machine.available_bytes.map(|bytes| bytes.saturating_add(self.process_bytes))
    }

    /// What of the limit the process itself takes.
    pub(super) fn process_bytes(&self) -> u64 {
        self.process_bytes
    }

    /// Tokens that the model knows.
    pub(super) fn vocabulary(&self) -> u64 {
        self.model.spec.widths.vocabulary
    }

    /// What the machine has.
    pub(super) fn total_memory_bytes(&self) -> Option<u64> {
        self.machine.total_bytes
    }

    fn workload(&self, demand: &Demand, chunk_tokens: u64) -> Workload {
        let sequences = demand.sequences.clone();
        let largest_image_tokens = Some(demand.largest_image_tokens);
        Workload { sequences, largest_image_tokens, ..Workload::uniform(0, 0) }
            .with_kv_mode(self.storage.mode)
            .with_dtype(self.storage.dtype)
            .with_prefill_chunk(chunk_tokens.max(demand.image_pass_tokens))
    }

    /// The machine without what is held already.
    fn machine(&self, held_bytes: u64) -> Machine {
        let mut machine = self.machine.clone();
        machine.available_bytes = machine.available_bytes.map(|b| b.saturating_sub(held_bytes));
        machine
    }

    /// The whole estimate for `demand`, read with `chunk_tokens` at a time.
    ///
    /// # Errors
    /// A cache mode that the model cannot take.
    pub(super) fn estimate(
        &self,
        demand: &Demand,
        chunk_tokens: u64,
    ) -> Result<MemoryEstimate, EstimatorError> {
        let workload = self.workload(demand, chunk_tokens);
        estimate_total_memory(&self.model.spec, &self.model.weights, &workload, &self.machine)
    }

    /// Why `demand` does not fit even alone and in the smallest chunks, if they do not.
    ///
    /// # Errors
    /// As [`Self::estimate`].
    pub(super) fn too_large(&self, demand: &Demand) -> Result<Option<TooLarge>, EstimatorError> {
        let chunk = LEAST_CHUNK_TOKENS.min(self.chunk_tokens);
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

    /// The chunk with which `demand` fits beside `held_bytes`: the configured one, or as much of
    /// it as fits; `None` when it must wait. An image's pass is not divided.
    ///
    /// # Errors
    /// As [`Self::estimate`].
    pub(super) fn chunk_that_fits(
        &self,
        demand: &Demand,
        held_bytes: u64,
    ) -> Result<Option<u64>, EstimatorError> {
        let machine = self.machine(held_bytes);
        let workload = self.workload(demand, self.chunk_tokens);
        let ModelFootprint { spec, weights, .. } = &self.model;
        if estimate_total_memory(spec, weights, &workload, &machine)?.fits != Some(false) {
            return Ok(Some(self.chunk_tokens));
        }
        let most = self.solver(&machine).max_chunk(&workload)?.value.unwrap_or(u64::MAX);
        let chunk = most.min(self.chunk_tokens);
        let least = LEAST_CHUNK_TOKENS.min(self.chunk_tokens).max(demand.image_pass_tokens);
        Ok((most >= least).then_some(chunk))
    }

    fn solver<'a>(&'a self, machine: &'a Machine) -> Solver<'a> {
        Solver { spec: &self.model.spec, weights: &self.model.weights, machine }
    }
}

#[cfg(test)]
mod tests {
    use mlxcel_estimator::{AvailableSource, Backend, ComputeDtype, estimate_total_memory};

    use super::super::prompt::ImageKey;
    use super::*;
    use mlxcel_runtime::engine::ModelSource;
    use mlxcel_runtime::vision::ImagePlacement;

    fn admission(limit: u64) -> Admission {
        let machine =
            Machine::new(Backend::Cpu).with_available(limit, AvailableSource::MemoryLimitVariable);
        let model = ModelFootprint::read(&ModelSource::BuiltIn).unwrap();
        Admission::new(model, machine, KvStorage::default(), 512, 1 << 20)
    }

    #[test]
    fn the_numbers_are_the_estimators() {
        let admission = admission(64 << 20);
        let wanted = Demand::text(0, 100_000);
        let refused = admission.too_large(&wanted).unwrap().unwrap();
        let workload = Workload::uniform(100_000, 1).with_prefill_chunk(LEAST_CHUNK_TOKENS);
        let ModelFootprint { spec, weights, .. } = &admission.model;
        let expected = estimate_total_memory(spec, weights, &workload, &admission.machine).unwrap();
        assert_eq!(refused.estimated_bytes, expected.total_bytes);
        assert_eq!(refused.limit_bytes, 64 << 20);
        let most = usize::try_from(refused.max_context_tokens).unwrap();
        assert_eq!(admission.too_large(&Demand::text(0, most)).unwrap(), None);
        assert!(admission.too_large(&Demand::text(0, most + 1)).unwrap().is_some());

        let beside = admission.beside_process(10 << 20);
        let less = beside.too_large(&wanted).unwrap().unwrap();
        assert_eq!(less.estimated_bytes, refused.estimated_bytes + (10 << 20));
        assert_eq!((less.limit_bytes, beside.limit_bytes()), (64 << 20, Some(64 << 20)));
        assert!(less.max_context_tokens < refused.max_context_tokens);
    }

    #[test]
    fn fp32_keeps_half_as_many_tokens() {
        let most = |dtype| {
            let machine = admission(64 << 20).machine;
            let model = ModelFootprint::read(&ModelSource::BuiltIn).unwrap();
            let storage = KvStorage { dtype, ..KvStorage::default() };
            let admission = Admission::new(model, machine, storage, 512, 1 << 20);
            let refused = admission.too_large(&Demand::text(0, 100_000)).unwrap().unwrap();
            refused.max_context_tokens
        };
        let (half, single) = (most(ComputeDtype::Checkpoint), most(ComputeDtype::Fp32));
        assert!((half / 2 - 256..=half / 2 + 256).contains(&single), "{half} {single}");
    }

    #[test]
    fn held_bytes_wait_and_a_chunk_shrinks_first() {
        let admission = admission(64 << 20);
        let one = Demand::text(0, 4096);
        assert_eq!(admission.chunk_that_fits(&one, 0).unwrap(), Some(512));
        let smaller: Vec<_> =
            (0..64).filter_map(|mib| admission.chunk_that_fits(&one, mib << 20).unwrap()).collect();
        assert!(smaller.is_sorted_by(|a, b| a >= b), "{smaller:?}");
        assert!(smaller.iter().any(|chunk| *chunk < 512), "{smaller:?}");
        assert_eq!(admission.chunk_that_fits(&one, 63 << 20).unwrap(), None);
    }

    #[test]
    fn a_cached_prefix_takes_nothing_new() {
        let prompt = Prompt::text(vec![0; 2048]);
        let all = Demand::answers(0, &prompt, 100, 3);
        let hit = Demand::answers(2048, &prompt, 100, 3);
        let kv = |demand: &Demand| {
            admission(1 << 30).estimate(demand, 512).unwrap().kv_cache_bytes.unwrap()
        };
        assert_eq!(kv(&all), kv(&Demand::text(0, 2148)) + 2 * kv(&Demand::text(0, 100)));
        assert_eq!(kv(&hit), 3 * kv(&Demand::text(0, 100)));
    }

    /// Image tokens are new tokens whose pass no chunk divides, and the encoder has its own scratch.
    #[test]
    fn an_image_takes_its_tokens_and_the_encoders_scratch() {
        let folder = tempfile::tempdir().unwrap();
        let variant = &mlxcel_testing::golden::VARIANTS[0];
        mlxcel_testing::golden::checkpoint("gemma3-vision", variant, folder.path()).unwrap();
        let model = ModelFootprint::read(&ModelSource::Folder(folder.path().to_owned())).unwrap();
        let machine = |limit| {
            Machine::new(Backend::Cpu).with_available(limit, AvailableSource::MemoryLimitVariable)
        };
        let admission =
            |limit| Admission::new(model.clone(), machine(limit), KvStorage::default(), 128, 1024);
        let image = |tokens| ImageKey {
            tokens,
            digest: [0; 32],
            reading: ImagePlacement::InlineBidirectional,
        };
        let prompt = Prompt { tokens: vec![0; 400], images: vec![image(4..260)] };
        let (seen, text) = (Demand::answers(0, &prompt, 100, 1), Demand::text(0, 500));
        let ample = admission(1 << 30);
        let estimate = |demand| ample.estimate(demand, 128).unwrap();
        assert_eq!(estimate(&seen).kv_cache_bytes, estimate(&text).kv_cache_bytes);
        let encoder = model.spec.vision.unwrap().image_bytes(256, ample.machine.kernels);
        assert_eq!((estimate(&seen).vision_bytes, estimate(&text).vision_bytes), (encoder, 0));
        let pass = ample.estimate(&text, 256).unwrap().prefill_scratch.total();
        assert_eq!(estimate(&seen).prefill_scratch.total(), pass);
        // Once the image is cached nothing of it is left to be paid.
        let hit = Demand::answers(260, &prompt, 100, 1);
        assert_eq!((estimate(&hit).vision_bytes, hit.image_pass_tokens), (0, 0));

        let tight = admission(estimate(&seen).total_bytes - 1);
        assert!(tight.too_large(&text).unwrap().is_none());
        let refused = tight.too_large(&seen).unwrap().unwrap();
        assert!(refused.estimated_bytes > refused.limit_bytes, "{refused:?}");
        assert_eq!(tight.chunk_that_fits(&seen, 0).unwrap(), None);
    }
}
