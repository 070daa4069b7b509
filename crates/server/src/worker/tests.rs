//! The worker over the built-in model, without a socket.

use mlxcel_estimator::{AvailableSource, Backend, KvMode, KvStorage, Machine};
use mlxcel_runtime::engine::{EngineConfig, Generation, ModelSource, NoProgress, generate};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::preflight::ModelFootprint;
use mlxcel_runtime::sampling::{SamplingOptions, SamplingParams};
use mlxcel_runtime::{ComputeDtype, OpsConfig, Precision, Processor};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::on_engine;
use super::super::prompt::Prompt;
use super::super::request_budget::RequestBudget;
use super::*;

const PROMPT: &str = "Once upon a time there was a king";

/// A worker and what requests to it need.
struct Bench {
    worker: Worker,
    text: Processor,
    status: Arc<EngineStatus>,
    next: u64,
}

fn engine() -> Engine {
    let ops = OpsConfig {
        kernels: KernelSet::Host,
        threads: Some(1),
        precision: Precision::Exact,
        dtype: ComputeDtype::Checkpoint,
    };
    let config =
        EngineConfig { ops, kv_mode: KvMode::Fp16, prefill_chunk: 64, weights: Residence::Auto };
    Engine::load(&ModelSource::BuiltIn, config, &mut NoProgress).unwrap()
}

impl Bench {
    /// A worker with `limit_bytes` for the model and the prompt cache size `cache_bytes`.
    fn new(limit_bytes: u64, cache_bytes: u64, watch: MemoryWatch) -> Self {
        let text = Processor::load(&ModelSource::BuiltIn).unwrap();
        let machine = Machine::new(Backend::Cpu)
            .with_available(limit_bytes, AvailableSource::MemoryLimitVariable);
        let model = ModelFootprint::read(&ModelSource::BuiltIn).unwrap();
        let storage = KvStorage::default();
        let admission = Arc::new(MemoryAdmission::new(model, machine, storage, 64, 1 << 20));
        let status = Arc::new(EngineStatus::new(4, 4, RequestBudget::new(1 << 20)));
        let tokenizer = text.tokenizer().clone();
        let worker =
            Worker::new(engine(), tokenizer, admission, Arc::clone(&status), watch, cache_bytes);
        Self { worker: worker.unwrap(), text, status, next: 1 }
    }

    fn unlimited(cache_bytes: u64) -> Self {
        Self::new(4 << 30, cache_bytes, MemoryWatch::new(None, 0))
    }

    /// Submits a prompt; returns its events.
    fn submit(
        &mut self,
        prompt: &str,
        n: usize,
        max_tokens: usize,
        options: SamplingOptions,
    ) -> UnboundedReceiver<EngineEvent> {
        let (events, received) = unbounded_channel();
        let tokens = self.text.tokenizer().encode_prompt(prompt).unwrap();
        assert!(self.status.enter_queue(1));
        self.worker.submit(EngineRequest {
            id: self.next,
            first_index: 0,
            prompt: Arc::new(Prompt::text(tokens)),
            images: Vec::new(),
            reservation: Arc::new(self.status.request_budget.reservation()),
            n,
            max_tokens,
            sampling: SamplingParams::new(options).unwrap(),
            stop: Vec::new(),
            ignore_eos: true,
            events,
            received: Instant::now(),
        });
        self.next += 1;
        received
    }

    fn run(&mut self) {
        for _ in 0..2000 {
            if self.worker.is_idle() {
                assert!(self.worker.sequences.is_empty() && self.worker.waiting.is_empty());
                return;
            }
            self.worker.step();
            let ids = self.worker.sequences.iter().map(|sequence| sequence.id);
            let scheduled = self.worker.scheduler.running();
            assert!(ids.eq(scheduled.iter().map(|sequence| sequence.id)), "counted and held");
            for (counts, sequence) in scheduled.iter().zip(&self.worker.sequences) {
                assert_eq!(counts.computed_tokens, sequence.cache.tokens());
                assert_eq!(counts.generated_tokens, sequence.completion.generated_tokens());
            }
        }
        panic!("never idle");
    }
}

fn greedy() -> SamplingOptions {
    SamplingOptions::default()
}

fn random(seed: u64) -> SamplingOptions {
    SamplingOptions { temperature: 1.0, seed: Some(seed), ..SamplingOptions::default() }
}

/// Texts of the completions of a request, which must all have finished.
fn texts(mut events: UnboundedReceiver<EngineEvent>, n: usize) -> Vec<String> {
    let mut texts = vec![String::new(); n];
    let mut finished = 0;
    while let Ok(event) = events.try_recv() {
        match event {
            EngineEvent::Started { .. } => {}
            EngineEvent::Token { index, text, .. } => texts[index].push_str(&text),
            EngineEvent::Finished { index, text, finish, .. } => {
                assert_eq!(finish, Finish::Length);
                texts[index].push_str(&text);
                finished += 1;
            }
            EngineEvent::Failed(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(finished, n);
    texts
}

fn cached_tokens(events: &mut UnboundedReceiver<EngineEvent>) -> usize {
    match events.try_recv() {
        Ok(EngineEvent::Started { cached_tokens }) => cached_tokens,
        other => panic!("{other:?}"),
    }
}

/// Code of the failure of a request.
fn failure(events: &mut UnboundedReceiver<EngineEvent>) -> Option<String> {
    while let Ok(event) = events.try_recv() {
        if let EngineEvent::Failed(error) = event {
            return error.json()["error"]["code"].as_str().map(str::to_owned);
        }
    }
    None
}

#[test]
fn a_served_completion_is_the_generated_one() {
    on_engine(|| {
        let mut bench = Bench::unlimited(0);
        let alone = bench.submit(PROMPT, 1, 12, greedy());
        bench.run();
        let mut expected = String::new();
        let prompt = bench.text.tokenizer().encode_prompt(PROMPT).unwrap();
        let request = Generation {
            prompt: &prompt,
            max_tokens: 12,
            sampling: SamplingParams::new(greedy()).unwrap(),
            stop: &[],
            ignore_eos: true,
        };
        let mut emit = |piece: &str| {
            expected.push_str(piece);
            std::ops::ControlFlow::Continue(())
        };
        let tokenizer = bench.text.tokenizer();
        generate(&bench.worker.engine, tokenizer, &request, &mut NoProgress, &mut emit).unwrap();
        assert_eq!(texts(alone, 1), [expected]);
    });
}

#[test]
fn n_completions_draw_from_consecutive_seeds() {
    on_engine(|| {
        let mut bench = Bench::unlimited(0);
        let together = bench.submit(PROMPT, 3, 10, random(7));
        bench.run();
        let together = texts(together, 3);
        for (offset, expected) in together.iter().enumerate() {
            let alone = bench.submit(PROMPT, 1, 10, random(7 + offset as u64));
            bench.run();
            assert_eq!(&texts(alone, 1)[0], expected, "seed 7 + {offset}");
        }
        assert!(together[0] != together[1] && together[1] != together[2]);
    });
}

#[test]
fn a_cached_prompt_gives_the_same_text() {
    on_engine(|| {
        let prompt = PROMPT.repeat(12);
        let mut bench = Bench::unlimited(64 << 20);
        let mut first = bench.submit(&prompt, 1, 8, greedy());
        bench.run();
        assert_eq!(cached_tokens(&mut first), 0);
        let mut second = bench.submit(&prompt, 2, 8, greedy());
        bench.run();
        assert!(cached_tokens(&mut second) > 64);
        let expected = texts(first, 1).remove(0);
        assert_eq!(texts(second, 2), [expected.clone(), expected]);
    });
}

#[test]
fn a_request_that_never_fits_is_refused_and_the_next_one_runs() {
    on_engine(|| {
        let mut bench = Bench::new(64 << 20, 0, MemoryWatch::new(None, 0));
        let mut large = bench.submit(PROMPT, 1, 900_000, greedy());
        let small = bench.submit(PROMPT, 1, 4, greedy());
        bench.run();
        assert_eq!(failure(&mut large).as_deref(), Some("prefill_memory_exceeded"));
        assert_eq!(bench.status.metrics.failed.get(), 1);
        texts(small, 1);
    });
}

#[test]
fn a_cancelled_request_frees_its_blocks() {
    on_engine(|| {
        let mut bench = Bench::unlimited(0);
        let running = bench.submit(PROMPT, 2, 500, greedy());
        let kept = bench.submit(PROMPT, 1, 8, greedy());
        let waiting = bench.submit(PROMPT, 4, 8, greedy());
        for _ in 0..4 {
            bench.worker.step();
        }
        assert_eq!(bench.worker.sequences.len(), 3);
        drop((running, waiting));
        bench.worker.step();
        assert_eq!(bench.worker.sequences.len(), 1);
        assert_eq!(
            bench.status.metrics.cancelled.get(),
            3,
            "two completions and a waiting request"
        );
        bench.run();
        texts(kept, 1);
        assert_eq!(held_bytes(&bench.worker.prefixes, &bench.worker.sequences, None), 0);
        assert_eq!(bench.status.snapshot().kv_used_bytes, 0);
    });
}

#[test]
fn memory_pressure_aborts_the_newest_request() {
    on_engine(|| {
        let mut bench = Bench::new(4 << 30, 0, MemoryWatch::new(Some(1), 0));
        let mut older = bench.submit(PROMPT, 1, 60_000, greedy());
        let mut newer = bench.submit(PROMPT, 1, 60_000, greedy());
        while bench.status.metrics.aborted.get() == 0 {
            assert!(!bench.worker.is_idle());
            bench.worker.step();
        }
        assert_eq!(failure(&mut newer).as_deref(), Some("memory_pressure"));
        assert_eq!(failure(&mut older), None);
        assert_eq!(bench.worker.sequences.len(), 1);
        bench.worker.fail_all(&ApiError::shutting_down());
        assert_eq!(failure(&mut older).as_deref(), Some("shutting_down"));
        assert!(bench.worker.is_idle());
    });
}

#[test]
fn a_full_queue_refuses_and_free_slots_count_as_places() {
    let status = EngineStatus::new(2, 1, RequestBudget::new(0));
    assert!(status.enter_queue(2) && status.enter_queue(1));
    assert!(!status.enter_queue(1));
    status.metrics.free_slots.set(0);
    status.left_queue();
    assert!(!status.enter_queue(1), "two still wait, and no slot is free");
    status.left_queue();
    status.left_queue();
    assert!(status.enter_queue(1) && !status.enter_queue(1));
}
