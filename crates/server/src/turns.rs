//! Whose turn it is: which answers the next pass computes for.
//!
//! A pass is one token of every answer that is being written, or a chunk of one prompt, never both:
//! what a sequence gets then depends on its own tokens only, to the bit. Between two steps of the
//! answers as many prompts are read as have a chunk's worth of tokens together. Which prompt: the
//! one with the least left to read, so that a short question does not wait for a long one, and in
//! turn with it the oldest, so that the long one is read too.

/// What a pass for a prompt of a few tokens counts as: the weights are read for it all the same.
const LEAST_COST_TOKENS: usize = 32;

/// What a pass computes; answers are named by their place in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// A token of each of these answers.
    Write(Vec<usize>),
    /// A chunk of this answer's prompt.
    Read(usize),
}

/// Remembers who had the last turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    /// Prompt tokens that may be read before the answers have their turn.
    left_tokens: usize,
    /// Whether the next chunk is the oldest prompt's.
    oldest_next: bool,
}

impl Turns {
    /// The next pass over the answers, oldest first. `unread` tells of each how much of its prompt
    /// is left to read, `None` when it is being written; a pass reads up to `chunk` of it.
    pub(super) fn next(&mut self, unread: &[Option<usize>], chunk: usize) -> Option<Pass> {
        let prompts = || (0..unread.len()).filter_map(|i| Some((i, (*unread.get(i)?)?)));
        let writing: Vec<usize> =
            (0..unread.len()).filter(|i| unread.get(*i) == Some(&None)).collect();
        let (oldest, shortest) = (prompts().next(), prompts().min_by_key(|(_, left)| *left));
        let prompt = if self.oldest_next { oldest } else { shortest };
        let cost = prompt.map(|(_, left)| left.min(chunk).max(LEAST_COST_TOKENS.min(chunk)));
        match (prompt, cost) {
            (Some((index, _)), Some(cost)) if writing.is_empty() || cost <= self.left_tokens => {
                self.left_tokens = self.left_tokens.saturating_sub(cost);
                self.oldest_next = prompt != oldest;
                Some(Pass::Read(index))
            }
            _ if writing.is_empty() => None,
            _ => {
                self.left_tokens = chunk;
                Some(Pass::Write(writing))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pass::{Read, Write};
    use super::*;

    const CHUNK: usize = 128;

    /// The next passes, with what they read taken off `unread`.
    fn run(turns: &mut Turns, unread: &mut [Option<usize>], passes: usize) -> Vec<Pass> {
        let pass = |_| {
            let pass = turns.next(unread, CHUNK)?;
            if let Read(index) = pass {
                unread[index] = unread[index].map(|left| left.saturating_sub(CHUNK));
                unread[index] = unread[index].filter(|left| *left > 0);
            }
            Some(pass)
        };
        (0..passes).map_while(pass).collect()
    }

    #[test]
    fn answers_and_prompts_take_turns() {
        let passes = run(&mut Turns::default(), &mut [None, Some(300), None], 6);
        let both = || Write(vec![0, 2]);
        let all = || Write(vec![0, 1, 2]);
        assert_eq!(passes, [both(), Read(1), both(), Read(1), both(), Read(1)]);
        assert_eq!(run(&mut Turns::default(), &mut [None, None, None], 2), [all(), all()]);
        assert_eq!(run(&mut Turns::default(), &mut [], 1), []);
    }

    #[test]
    fn short_prompts_are_read_together_between_two_steps() {
        let mut unread = [None, Some(8), Some(8), Some(100), Some(8)];
        let passes = run(&mut Turns::default(), &mut unread, 6);
        let first = [Write(vec![0]), Read(1), Read(2), Read(4)];
        assert_eq!(passes[..4], first, "three short ones, and no room for the long one");
        assert_eq!(passes[4..], [Write(vec![0, 1, 2, 4]), Read(3)]);
    }

    #[test]
    fn a_short_prompt_overtakes_a_long_one_which_is_read_all_the_same() {
        let mut turns = Turns::default();
        let mut unread = [Some(8000), None];
        run(&mut turns, &mut unread, 4);
        let mut unread = [unread[0], Some(16), Some(400), Some(400)];
        let passes = run(&mut turns, &mut unread, 9);
        let reads: Vec<_> = passes.into_iter().filter(|pass| matches!(pass, Read(_))).collect();
        assert_eq!(reads, [Read(1), Read(0), Read(2), Read(0), Read(2)]);
    }
}
