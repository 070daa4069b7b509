//! Scheduling policy: chooses the sequences of the next pass.
//!
//! A pass is one decode step of every sequence that generates, or one prefill chunk of one prompt,
//! never both: the result for a sequence then depends on its own tokens only, to the bit. Between
//! two decode steps, prompts are read up to one chunk's worth of tokens. Prompts with the fewest
//! tokens left go first, so that a short prompt does not wait for a long one, and alternate with the
//! oldest prompt, so that a long one is not starved.

/// Minimum cost of a prefill pass: even for a few tokens, all weights are read.
const MIN_PREFILL_COST_TOKENS: usize = 32;

/// Work that a running sequence is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its prompt is being read.
    Prefill {
        /// Prompt tokens left, or what the rest of the prompt costs as much as.
        left_tokens: usize,
    },
    /// It generates.
    Decode,
}

/// Choice of the policy; sequences are named by their position in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// One chunk of the prompt of this sequence.
    Prefill(usize),
    /// One token of each of these sequences.
    Decode(Vec<usize>),
}

/// State of the policy between passes.
#[derive(Clone, Debug, Default)]
pub(super) struct SchedulerPolicy {
    /// Prompt tokens that may be read before the next decode step.
    prefill_credit_tokens: usize,
    /// True if the next chunk goes to the oldest prompt.
    oldest_next: bool,
}

impl SchedulerPolicy {
    /// Chooses the next pass over `phases`, those of the running sequences, oldest first. A prefill
    /// pass reads up to `chunk_tokens`. `None` if there is nothing to compute.
    pub(super) fn select(&mut self, phases: &[Phase], chunk_tokens: usize) -> Option<Selection> {
        // A chunk that has shrunk buys no more passes than a whole one.
        self.prefill_credit_tokens = self.prefill_credit_tokens.min(chunk_tokens);
        let mut prompts = Vec::new();
        let mut decoding = Vec::new();
        for (index, phase) in phases.iter().enumerate() {
            match phase {
                Phase::Prefill { left_tokens } => prompts.push((index, *left_tokens)),
                Phase::Decode => decoding.push(index),
            }
        }
        let oldest = prompts.first();
        let shortest = prompts.iter().min_by_key(|(_, left_tokens)| *left_tokens);
        let next = if self.oldest_next { oldest } else { shortest };
        if let Some((index, left_tokens)) = next {
            let min_cost = MIN_PREFILL_COST_TOKENS.min(chunk_tokens);
            let cost = (*left_tokens).min(chunk_tokens).max(min_cost);
            if decoding.is_empty() || cost <= self.prefill_credit_tokens {
                self.prefill_credit_tokens = self.prefill_credit_tokens.saturating_sub(cost);
                self.oldest_next = next != oldest;
                return Some(Selection::Prefill(*index));
            }
        }
        if decoding.is_empty() {
            return None;
        }
        self.prefill_credit_tokens = chunk_tokens;
        Some(Selection::Decode(decoding))
    }
}

#[cfg(test)]
mod tests {
    use super::Selection::{Decode, Prefill};
    use super::*;

    const CHUNK: usize = 128;

    /// The next selections; prompts advance as the passes would read them.
    fn run(policy: &mut SchedulerPolicy, phases: &mut [Phase], passes: usize) -> Vec<Selection> {
        let mut selections = Vec::new();
        for _ in 0..passes {
            let Some(selection) = policy.select(phases, CHUNK) else { break };
            if let Prefill(index) = selection {
                phases[index] = match phases[index] {
                    Phase::Prefill { left_tokens } if left_tokens > CHUNK => {
                        Phase::Prefill { left_tokens: left_tokens - CHUNK }
                    }
                    _ => Phase::Decode,
                };
            }
            selections.push(selection);
        }
        selections
    }

    fn prompt(left_tokens: usize) -> Phase {
        Phase::Prefill { left_tokens }
    }

    #[test]
    fn decode_steps_and_chunks_alternate() {
        let mut phases = [Phase::Decode, prompt(300), Phase::Decode];
        let passes = run(&mut SchedulerPolicy::default(), &mut phases, 6);
        let both = || Decode(vec![0, 2]);
        assert_eq!(passes, [both(), Prefill(1), both(), Prefill(1), both(), Prefill(1)]);
        let all = || Decode(vec![0, 1, 2]);
        let passes = run(&mut SchedulerPolicy::default(), &mut [Phase::Decode; 3], 2);
        assert_eq!(passes, [all(), all()]);
        assert_eq!(run(&mut SchedulerPolicy::default(), &mut [], 1), []);
    }

    #[test]
    fn short_prompts_are_read_together_between_two_steps() {
        let mut phases = [Phase::Decode, prompt(8), prompt(8), prompt(100), prompt(8)];
        let passes = run(&mut SchedulerPolicy::default(), &mut phases, 6);
        let first = [Decode(vec![0]), Prefill(1), Prefill(2), Prefill(4)];
        assert_eq!(passes[..4], first, "three short ones, and no room for the long one");
        assert_eq!(passes[4..], [Decode(vec![0, 1, 2, 4]), Prefill(3)]);
    }

    #[test]
    fn a_short_prompt_overtakes_a_long_one_without_starving_it() {
        let mut policy = SchedulerPolicy::default();
        let mut phases = [prompt(8000), Phase::Decode];
        run(&mut policy, &mut phases, 4);
        let mut phases = [phases[0], prompt(16), prompt(400), prompt(400)];
        let passes = run(&mut policy, &mut phases, 9);
        let prefills: Vec<_> = passes.into_iter().filter(|p| matches!(p, Prefill(_))).collect();
        assert_eq!(prefills, [Prefill(1), Prefill(0), Prefill(2), Prefill(0), Prefill(2)]);
    }
}
