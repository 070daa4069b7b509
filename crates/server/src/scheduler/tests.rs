//! The scheduler against a budget of plain numbers, without a model.

use std::collections::BTreeMap;

use mlxcel_runtime::vision::ImagePlacement;
use proptest::prelude::*;

use super::super::prompt::PromptImage;
use super::*;

const CHUNK: usize = 64;

/// A limit on tokens. Cached prefixes and shared prompts count too.
#[derive(Clone, Debug)]
struct TokenBudget {
    limit_tokens: u64,
    prefixes: Vec<u64>,
    /// Prompts that the completions of their request share, by request.
    shared: BTreeMap<u64, usize>,
}

impl TokenBudget {
    fn new(limit_tokens: u64) -> Self {
        Self::with_prefixes(limit_tokens, Vec::new())
    }

    fn with_prefixes(limit_tokens: u64, prefixes: Vec<u64>) -> Self {
        Self { limit_tokens, prefixes, shared: BTreeMap::new() }
    }

    /// Counts the prompts that running sequences share.
    fn count_shared(&mut self, scheduler: &Scheduler) {
        let running = scheduler.running().iter();
        self.shared = running.map(|s| (s.id.request, s.shared_tokens)).collect();
    }

    fn free_tokens(&self, demand: &MemoryDemand) -> Option<u64> {
        let shared: usize = self.shared.values().sum();
        let held = self.prefixes.iter().sum::<u64>() + shared as u64;
        self.limit_tokens.checked_sub(held + demand.new_tokens())
    }
}

impl MemoryBudget for TokenBudget {
    fn chunk_that_fits(&self, demand: &MemoryDemand) -> Result<Option<usize>, EstimatorError> {
        let free = self.free_tokens(demand).filter(|free| *free > 0);
        Ok(free.map(|free| usize::try_from(free).unwrap().min(CHUNK)))
    }

    fn evict_prefix(&mut self) -> bool {
        self.prefixes.pop().is_some()
    }
}

fn scheduler(parallel: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig {
        parallel,
        chunk_tokens: CHUNK,
        shares_blocks: true,
        chunk_ends: ChunkEnds::Anywhere,
    })
}

fn request(id: u64, prompt_tokens: usize, n: usize, max_tokens: usize) -> WaitingRequest {
    let prompt = Arc::new(Prompt::text(vec![0; prompt_tokens]));
    WaitingRequest { id, prompt, n, max_tokens }
}

/// Admits everything that fits; returns the requests in order.
fn admit_all(scheduler: &mut Scheduler, budget: &mut TokenBudget) -> Vec<(u64, Admission)> {
    let mut decisions = Vec::new();
    while let Some(id) = scheduler.next_waiting().map(|request| request.id) {
        let admission = scheduler.admit(PrefixHit::default(), budget).unwrap();
        let is_deferred = admission == Admission::Deferred;
        decisions.push((id, admission));
        if is_deferred {
            break;
        }
    }
    decisions
}

/// Completes a pass as a worker would; sequences finish at their maximum length.
fn complete(scheduler: &mut Scheduler, pass: &ScheduledPass) -> Vec<SequenceId> {
    let finishes = |sequence: &RunningSequence, id: SequenceId| {
        let generated = sequence.generated_tokens + 1;
        (generated >= sequence.max_tokens).then_some(id)
    };
    let finished: Vec<SequenceId> = match pass {
        ScheduledPass::Prefill { id, last: true, .. } => {
            let sequence = scheduler.sequence(*id).unwrap();
            let ids = (0..sequence.n).map(|completion| SequenceId { completion, ..*id });
            ids.filter_map(|id| finishes(sequence, id)).collect()
        }
        ScheduledPass::Decode(ids) => {
            let ids = ids.iter();
            ids.filter_map(|id| finishes(scheduler.sequence(*id).unwrap(), *id)).collect()
        }
        ScheduledPass::Prefill { .. } | ScheduledPass::EncodeImage { .. } => Vec::new(),
    };
    let shared_tokens = match pass {
        ScheduledPass::Prefill { tokens, last: true, .. } => Some(tokens.end),
        _ => None,
    };
    let result = PassResult { shared_tokens, finished: finished.clone() };
    scheduler.complete(pass, &result);
    finished
}

#[test]
fn completions_start_when_their_prompt_is_read() {
    let mut scheduler = scheduler(8);
    let mut budget = TokenBudget::new(10_000);
    scheduler.submit(request(1, 100, 3, 2));
    admit_all(&mut scheduler, &mut budget);
    assert_eq!(scheduler.free_slots(), 5);
    let id = SequenceId { request: 1, completion: 0 };
    let first = scheduler.schedule().unwrap();
    assert_eq!(first, ScheduledPass::Prefill { id, tokens: 0..64, last: false });
    complete(&mut scheduler, &first);
    let last = scheduler.schedule().unwrap();
    assert_eq!(last, ScheduledPass::Prefill { id, tokens: 64..100, last: true });
    complete(&mut scheduler, &last);
    let ids: Vec<SequenceId> = scheduler.running().iter().map(|sequence| sequence.id).collect();
    let expected = [0, 1, 2].map(|completion| SequenceId { request: 1, completion });
    assert_eq!(ids, expected);
    let decode = scheduler.schedule().unwrap();
    assert_eq!(decode, ScheduledPass::Decode(ids.clone()));
    assert_eq!(complete(&mut scheduler, &decode), ids);
    assert!(scheduler.is_idle());
}

#[test]
fn a_cached_prefix_is_not_computed_again() {
    let mut scheduler = scheduler(1);
    let mut budget = TokenBudget::new(10_000);
    scheduler.submit(request(1, 100, 1, 1));
    let hit = PrefixHit { cached_tokens: 90, shared_tokens: 64 };
    assert_eq!(scheduler.admit(hit, &mut budget).unwrap(), Admission::Admitted);
    let id = SequenceId { request: 1, completion: 0 };
    assert_eq!(
        scheduler.schedule(),
        Some(ScheduledPass::Prefill { id, tokens: 90..100, last: true })
    );
    assert_eq!(scheduler.running_demand().new_tokens(), 100 + 1 - 64);
}

#[test]
fn an_image_is_encoded_then_read_whole() {
    let mut scheduler = scheduler(1);
    let image = PromptImage {
        tokens: 10..200,
        digest: [0; 32],
        placement: ImagePlacement::InlineBidirectional,
    };
    let prompt = Arc::new(Prompt { tokens: vec![0; 210], images: vec![image] });
    scheduler.submit(WaitingRequest { id: 1, prompt, n: 1, max_tokens: 1 });
    admit_all(&mut scheduler, &mut TokenBudget::new(10_000));
    let id = SequenceId { request: 1, completion: 0 };
    let expected = [
        ScheduledPass::Prefill { id, tokens: 0..10, last: false },
        ScheduledPass::EncodeImage { id, image: 0 },
        ScheduledPass::Prefill { id, tokens: 10..200, last: false },
        ScheduledPass::Prefill { id, tokens: 200..210, last: true },
    ];
    for pass in expected {
        assert_eq!(scheduler.schedule().as_ref(), Some(&pass));
        complete(&mut scheduler, &pass);
    }
    assert!(scheduler.is_idle());
}

#[test]
fn requests_wait_for_room_and_hopeless_ones_are_refused() {
    let mut scheduler = scheduler(8);
    let mut budget = TokenBudget::new(300);
    scheduler.submit(request(1, 150, 1, 50));
    scheduler.submit(request(2, 150, 1, 50));
    scheduler.submit(request(3, 10, 1, 10));
    let decisions = admit_all(&mut scheduler, &mut budget);
    assert_eq!(decisions, [(1, Admission::Admitted), (2, Admission::Deferred)], "3 stays behind 2");
    scheduler.remove(1);
    assert_eq!(admit_all(&mut scheduler, &mut budget).len(), 2);
    scheduler.remove(2);
    scheduler.remove(3);
    scheduler.submit(request(4, 290, 1, 50));
    let decisions = admit_all(&mut scheduler, &mut budget);
    assert!(matches!(&decisions[..], [(4, Admission::Refused(_))]), "{decisions:?}");
    assert!(scheduler.is_idle());
}

#[test]
fn prefixes_are_evicted_before_the_chunk_shrinks() {
    let mut scheduler = scheduler(8);
    let mut budget = TokenBudget::with_prefixes(300, vec![50, 50]);
    scheduler.submit(request(1, 100, 1, 50));
    admit_all(&mut scheduler, &mut budget);
    assert_eq!((budget.prefixes.len(), scheduler.chunk_tokens()), (1, CHUNK));
    scheduler.submit(request(2, 100, 1, 20));
    admit_all(&mut scheduler, &mut budget);
    assert_eq!((budget.prefixes.len(), scheduler.chunk_tokens()), (0, 30));
    scheduler.remove(2);
    scheduler.refit(&mut budget).unwrap();
    assert_eq!(scheduler.chunk_tokens(), CHUNK);
}

#[test]
fn pressure_evicts_prefixes_then_aborts_the_newest_request() {
    let mut scheduler = scheduler(8);
    let mut budget = TokenBudget::with_prefixes(10_000, vec![50]);
    scheduler.submit(request(1, 100, 1, 50));
    scheduler.submit(request(2, 100, 1, 50));
    assert!(scheduler.may_admit(Pressure::Hard), "nothing runs");
    admit_all(&mut scheduler, &mut budget);
    assert!(scheduler.may_admit(Pressure::None) && !scheduler.may_admit(Pressure::Soft));
    assert_eq!(scheduler.relieve(Pressure::None, &mut budget), None);
    assert_eq!(budget.prefixes.len(), 1);
    assert_eq!(scheduler.relieve(Pressure::Hard, &mut budget), None, "a prefix is evicted");
    assert_eq!(budget.prefixes.len(), 0);
    assert_eq!(scheduler.relieve(Pressure::Soft, &mut budget), None);
    assert_eq!(scheduler.relieve(Pressure::Hard, &mut budget), Some(2));
}

/// A request of the simulation.
#[derive(Clone, Debug)]
struct Arrival {
    prompt_tokens: usize,
    image: Option<(usize, usize)>,
    n: usize,
    max_tokens: usize,
    /// Step at which it arrives.
    step: usize,
    /// Steps after which its client leaves.
    patience: Option<usize>,
}

impl Arrival {
    fn request(&self, id: u64) -> WaitingRequest {
        let tokens = vec![0; self.prompt_tokens];
        let image = self.image.map(|(start, length)| PromptImage {
            tokens: start..start + length,
            digest: [0; 32],
            placement: ImagePlacement::InlineBidirectional,
        });
        let images = image.into_iter().filter(|i| i.tokens.end < self.prompt_tokens).collect();
        let prompt = Arc::new(Prompt { tokens, images });
        WaitingRequest { id, prompt, n: self.n, max_tokens: self.max_tokens }
    }
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (
        1_usize..400,
        proptest::option::weighted(0.3, (0_usize..100, 1_usize..150)),
        1_usize..4,
        1_usize..12,
        0_usize..60,
        proptest::option::weighted(0.2, 0_usize..20),
    );
    let arrival = arrival.prop_map(|(prompt_tokens, image, n, max_tokens, step, patience)| {
        Arrival { prompt_tokens, image, n, max_tokens, step, patience }
    });
    proptest::collection::vec(arrival, 1..14)
}

/// Course of a simulation.
#[derive(Debug, Default)]
struct Course {
    admitted: Vec<u64>,
    refused: Vec<u64>,
    cancelled: Vec<u64>,
    finished: BTreeMap<u64, usize>,
    /// Prefill passes since the last decode step, while sequences decode.
    prefills_in_a_row: usize,
    /// True if the last prefill pass was not for the oldest prompt.
    overtook: bool,
}

const PARALLEL: usize = 4;

/// Runs one step and checks the invariants of every step.
fn step(
    scheduler: &mut Scheduler,
    budget: &mut TokenBudget,
    course: &mut Course,
) -> Result<(), TestCaseError> {
    budget.count_shared(scheduler);
    for (id, admission) in admit_all(scheduler, budget) {
        match admission {
            Admission::Admitted => course.admitted.push(id),
            Admission::Refused(demand) => {
                prop_assert!(demand.new_tokens() >= budget.limit_tokens, "refused for nothing");
                course.refused.push(id);
            }
            Admission::Deferred => {}
        }
    }
    let demand = scheduler.running_demand();
    prop_assert!(budget.free_tokens(&demand).is_some(), "over budget");
    let slots: usize = PARALLEL - scheduler.free_slots();
    let completions: usize = scheduler.running().iter().map(RunningSequence::completions).sum();
    prop_assert!(completions == slots && completions <= PARALLEL);

    let Some(pass) = scheduler.schedule() else {
        prop_assert!(scheduler.running().is_empty(), "nothing to do for running sequences");
        return Ok(());
    };
    let running = scheduler.running();
    let oldest = running.iter().find(|sequence| sequence.is_prefilling()).map(|s| s.id);
    let decoding: Vec<SequenceId> =
        running.iter().filter(|sequence| !sequence.is_prefilling()).map(|s| s.id).collect();
    match &pass {
        ScheduledPass::Decode(ids) => {
            prop_assert_eq!(ids, &decoding, "a decode step advances every completion");
            course.prefills_in_a_row = 0;
        }
        ScheduledPass::Prefill { id, .. } | ScheduledPass::EncodeImage { id, .. } => {
            let overtakes = Some(*id) != oldest;
            prop_assert!(!(overtakes && course.overtook), "the oldest prompt starves");
            course.overtook = overtakes;
            course.prefills_in_a_row += usize::from(!decoding.is_empty());
            // A pass costs at least 32 tokens, or the whole chunk if that has shrunk.
            prop_assert!(course.prefills_in_a_row <= CHUNK / 32, "decoding starves");
        }
    }
    if let ScheduledPass::Prefill { id, tokens, last } = &pass {
        let sequence = scheduler.sequence(*id).unwrap();
        prop_assert_eq!(tokens.start, sequence.computed_tokens);
        prop_assert!(tokens.end > tokens.start && tokens.end <= sequence.prompt.len());
        prop_assert_eq!(*last, tokens.end == sequence.prompt.len());
        let image = sequence.prompt.images.first().map(|image| image.tokens.clone());
        let is_image = image.is_some_and(|image| image.start == tokens.start);
        prop_assert!(is_image || tokens.len() <= scheduler.chunk_tokens());
    }
    for id in complete(scheduler, &pass) {
        *course.finished.entry(id.request).or_default() += 1;
    }
    budget.count_shared(scheduler);
    prop_assert!(budget.free_tokens(&scheduler.running_demand()).is_some(), "grew over budget");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every request finishes, is refused, or is cancelled; and no step breaks an invariant.
    #[test]
    fn every_request_ends_within_budget(
        arrivals in arrivals(),
        limit_tokens in 100_u64..1500,
        prefixes in proptest::collection::vec(1_u64..80, 0..4),
    ) {
        let mut scheduler = scheduler(PARALLEL);
        let mut budget = TokenBudget::with_prefixes(limit_tokens, prefixes);
        while budget.free_tokens(&MemoryDemand::default()).is_none() {
            budget.evict_prefix();
        }
        let mut course = Course::default();
        for now in 0..5000 {
            for (id, arrival) in arrivals.iter().enumerate() {
                if arrival.step == now {
                    scheduler.submit(arrival.request(id as u64));
                }
                if arrival.patience.is_some_and(|patience| arrival.step + patience == now) {
                    scheduler.remove(id as u64);
                    course.cancelled.push(id as u64);
                }
            }
            step(&mut scheduler, &mut budget, &mut course)?;
            if now > 100 && scheduler.is_idle() {
                break;
            }
        }
        prop_assert!(scheduler.is_idle(), "some requests never end");
        for (id, arrival) in arrivals.iter().enumerate() {
            let id = id as u64;
            let finished = course.finished.get(&id).copied().unwrap_or(0);
            let ended = course.refused.contains(&id) || course.cancelled.contains(&id);
            prop_assert!(finished == arrival.n || ended, "{} of {}", finished, arrival.n);
        }
        let mut order: Vec<(usize, u64)> = course
            .admitted
            .iter()
            .map(|id| (arrivals[usize::try_from(*id).unwrap()].step, *id))
            .collect();
        let admitted = order.clone();
        order.sort_unstable();
        prop_assert_eq!(admitted, order, "admitted in order of arrival");
    }
}
