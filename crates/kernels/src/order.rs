//! Order of summation of the kernels that have several.
//!
//! Few tokens are computed in another order than many, since that is faster; the results differ in
//! the last bits. The keys and values of a prompt, which are kept, must not depend on the number of
//! tokens that happened to be computed together.

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
