//! The order in which a kernel adds up, where it has several.
//!
//! Few tokens are computed in another order than many, since that is faster; the results differ in
//! the last bits. What is kept for later, the keys and values of a prompt, must not depend on how
//! many tokens happened to come together.

/// Order of summation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The fastest for this number of tokens.
    #[default]
    Fastest,
    /// The order of many tokens for any number of them: a token's sums are the same to the bit alone
    /// and with others.
    Fixed,
}
