//! Stop strings over streamed text.
//!
//! A stop string may be spread over several pieces, so [`StopMatcher`] holds back the end of the
//! text as long as it could be the beginning of a stop string. The match is the one that is
//! *complete* first (of several complete at once, the longest), whatever the pieces: the text up
//! to it is let out, the stop string and all after it is not.

use super::TextError;

/// Finds the first of several stop strings in one streamed text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The end of the text so far, not let out: shorter than the longest stop string.
    held: String,
    stopped: bool,
}

/// What a piece of text lets out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutput {
    /// Text that is certainly before any stop string; may be empty.
    pub text: String,
    /// The index of the stop string that ended the text, if one did.
    pub stop: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`, at the start of a text.
    ///
    /// # Errors
    /// [`TextError::EmptyStop`].
    pub fn new(stops: Vec<String>) -> Result<Self, TextError> {
        if stops.iter().any(String::is_empty) {
            return Err(TextError::EmptyStop);
        }
        Ok(Self { stops, held: String::new(), stopped: false })
    }

    /// Takes the next piece of text. After a stop string has been found nothing more comes out.
    pub fn push(&mut self, piece: &str) -> StopOutput {
        if self.stopped {
            return StopOutput::default();
        }
        self.held.push_str(piece);
        if let Some((start, stop)) = self.find() {
            self.stopped = true;
            self.held.truncate(start);
            return StopOutput { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let kept = self.held.split_off(self.certain());
        StopOutput { text: std::mem::replace(&mut self.held, kept), stop: None }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The match that is complete first, as (start in `held`, index of the stop string).
    fn find(&self) -> Option<(usize, usize)> {
        let matches = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, index))
        });
        matches.min().map(|(_, start, index)| (start, index))
    }

    /// How many bytes of `held` cannot be the beginning of a stop string.
    fn certain(&self) -> usize {
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

    /// The definition, character by character over the whole text.
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
        let (mut text, mut stop) = (String::new(), None);
        for piece in pieces {
            let output = matcher.push(piece);
            text.push_str(&output.text);
            stop = stop.or(output.stop);
        }
        (text + &matcher.finish(), stop)
    }

    #[test]
    fn a_stop_over_three_pieces_is_found_and_removed() {
        let stops = ["\n\nUser:".to_owned()];
        let found = run(["Hi.\n", "\nUs", "er: more"].into_iter(), &stops);
        assert_eq!(found, ("Hi.".to_owned(), Some(0)));
    }

    #[test]
    fn text_that_cannot_become_a_stop_is_not_held() {
        let mut matcher = StopMatcher::new(vec!["END".to_owned()]).unwrap();
        assert_eq!(matcher.push("THE E").text, "THE ");
        assert_eq!(matcher.push("NEMY").text, "ENEMY");
        assert_eq!(matcher.push("EN").text, "");
        assert_eq!(matcher.finish(), "EN");
    }

    #[test]
    fn nothing_comes_out_after_a_stop() {
        let mut matcher = StopMatcher::new(vec!["x".to_owned()]).unwrap();
        assert_eq!(matcher.push("axb"), StopOutput { text: "a".to_owned(), stop: Some(0) });
        assert_eq!(matcher.push("c"), StopOutput::default());
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn an_empty_stop_is_refused() {
        let error = StopMatcher::new(vec![String::new()]).unwrap_err();
        assert_eq!(error.to_string(), "a stop string must not be empty");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_definition_however_the_text_is_cut(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
        ) {
            let text = pieces.concat();
            prop_assert_eq!(run(pieces.iter().map(String::as_str), &stops), naive(&text, &stops));
        }
    }
}
