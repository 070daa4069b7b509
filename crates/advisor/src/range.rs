//! Ranges of context length: a key of the rule table.

/// Range of context length that decides the choice of a cache mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContextRange {
    /// At most 4096 tokens.
    Short,
    /// At most 32768 tokens.
    Medium,
    /// More.
    Long,
}

/// Longest short context, in tokens.
pub const SHORT_TOKENS: u64 = 4096;

/// Longest medium context, in tokens.
pub const MEDIUM_TOKENS: u64 = 32_768;

/// Default context at which the long range is sized, in tokens.
pub const LONG_EXAMPLE_TOKENS: u64 = 131_072;

impl ContextRange {
    /// Every range.
    pub const ALL: [Self; 3] = [Self::Short, Self::Medium, Self::Long];

    /// Range of a context of `tokens`.
    #[must_use]
    pub fn of(tokens: u64) -> Self {
        match tokens {
            tokens if tokens <= SHORT_TOKENS => Self::Short,
            tokens if tokens <= MEDIUM_TOKENS => Self::Medium,
            _ => Self::Long,
        }
    }

    /// Name in text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Medium => "medium",
            Self::Long => "long",
        }
    }

    /// Context at which this range is sized: `wanted` if it is in the range, else the end of the range,
    /// or the model's own limit if that is in the range and shorter.
    #[must_use]
    pub fn example_tokens(self, wanted: u64, model_limit: Option<u64>) -> u64 {
        let end = match self {
            Self::Short => SHORT_TOKENS,
            Self::Medium => MEDIUM_TOKENS,
            Self::Long => LONG_EXAMPLE_TOKENS,
        };
        let limit = model_limit.filter(|tokens| Self::of(*tokens) == self && *tokens > 0);
        if Self::of(wanted) == self { wanted } else { limit.unwrap_or(end).min(end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders() {
        let ranges = [0, 4096, 4097, 32_768, 32_769, u64::MAX].map(|n| ContextRange::of(n).name());
        assert_eq!(ranges, ["short", "short", "medium", "medium", "long", "long"]);
    }

    #[test]
    fn examples_follow_the_wish_then_the_model() {
        let at = |range: ContextRange, wanted, limit| range.example_tokens(wanted, limit);
        assert_eq!(at(ContextRange::Medium, 8192, Some(131_072)), 8192);
        assert_eq!(at(ContextRange::Short, 8192, Some(2048)), 2048);
        assert_eq!(at(ContextRange::Medium, 1, Some(2048)), 32_768);
        assert_eq!(at(ContextRange::Long, 1, Some(40_960)), 40_960);
        assert_eq!(at(ContextRange::Long, 1, Some(1 << 20)), 131_072);
        assert_eq!(at(ContextRange::Long, 1 << 20, None), 1 << 20);
    }
}
