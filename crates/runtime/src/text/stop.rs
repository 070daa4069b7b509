//! Stop strings over streamed text.
//!
//! A stop string may span several pieces, so [`StopMatcher`] holds back the end of the text while it
//! could be the start of a stop string. The match that is *complete* first wins (the longest of those
//! complete at the same character), however the text is divided into pieces. The text before it is
//! emitted; the stop string and everything after it is not.

use super::TextError;

/// Finds the first of several stop strings in one streamed text.
#[derive(Debug, Clone)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Held-back end of the text, shorter than the longest stop string.
    held: String,
    stopped: bool,
}

/// Result of adding a piece of text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StopOutput {
    /// Text that precedes any stop string; may be empty.
    pub(crate) text: String,
    /// Index of the stop string that ended the text, if any.
    pub(crate) stop: Option<usize>,
}

impl StopMatcher {
    /// Creates a matcher for `stops`, at the start of a text.
    ///
    /// # Errors
    /// [`TextError::EmptyStop`].
    pub(crate) fn new(stops: Vec<String>) -> Result<Self, TextError> {
        if stops.iter().any(String::is_empty) {
            return Err(TextError::EmptyStop);
        }
        Ok(Self { stops, held: String::new(), stopped: false })
    }

    /// Adds the next piece of text. Emits nothing after a stop string was found.
    pub(crate) fn push(&mut self, piece: &str) -> StopOutput {
        if self.stopped {
            return StopOutput::default();
        }
        self.held.push_str(piece);
        if let Some((start, stop)) = self.find() {
            self.stopped = true;
            self.held.truncate(start);
            return StopOutput { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let rest = self.held.split_off(self.emittable_bytes());
        StopOutput { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Ends the text and returns the held-back rest.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// First complete match, as (start in `held`, index of the stop string).
    fn find(&self) -> Option<(usize, usize)> {
        let matches = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, index))
        });
        matches.min().map(|(_, start, index)| (start, index))
    }

    /// Number of bytes at the start of `held` that cannot belong to a stop string.
    fn emittable_bytes(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = (self.held.len() + 1).saturating_sub(longest);
        (first..self.held.len())
            .filter(|start| self.held.is_char_boundary(*start))
            .find(|start| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reference implementation, character by character over the whole text.
    fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
            let complete = stops.iter().enumerate().filter(|(_, s)| text[..end].ends_with(*s));
            if let Some((index, stop)) = complete.rev().max_by_key(|(_, stop)| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    fn run<'a>(pieces: impl Iterator<Item = &'a str>, stops: &[String]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.to_vec()).unwrap();
        let mut text = String::new();
        let mut stop = None;
        for piece in pieces {
            let output = matcher.push(piece);
            text.push_str(&output.text);
            stop = stop.or(output.stop);
        }
        (text + &matcher.finish(), stop)
    }

    #[test]
    fn a_stop_string_may_span_three_pieces() {
        let stops = ["\n\nUser:".to_owned()];
        let found = run(["Hi.\n", "\nUs", "er: more"].into_iter(), &stops);
        assert_eq!(found, ("Hi.".to_owned(), Some(0)));
    }

    #[test]
    fn text_that_cannot_become_a_stop_string_is_emitted() {
        let mut matcher = StopMatcher::new(vec!["END".to_owned()]).unwrap();
        assert_eq!(matcher.push("THE E").text, "THE ");
        assert_eq!(matcher.push("NEMY").text, "ENEMY");
        assert_eq!(matcher.push("EN").text, "");
        assert_eq!(matcher.finish(), "EN");
    }

    #[test]
    fn nothing_is_emitted_after_a_stop_string() {
        let mut matcher = StopMatcher::new(vec!["x".to_owned()]).unwrap();
        assert_eq!(matcher.push("axb"), StopOutput { text: "a".to_owned(), stop: Some(0) });
        assert_eq!(matcher.push("c"), StopOutput::default());
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn an_empty_stop_string_is_rejected() {
        let error = StopMatcher::new(vec![String::new()]).unwrap_err();
        assert_eq!(error.to_string(), "a stop string must not be empty");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn matches_do_not_depend_on_the_pieces(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
        ) {
            let text = pieces.concat();
            prop_assert_eq!(run(pieces.iter().map(String::as_str), &stops), naive(&text, &stops));
        }
    }
}
