//! A prompt on its way through the scheduler: its tokens and which images stand where.
//!
//! Owns where passes and shared prefixes end. An image has passes of its own, one where its rows see
//! each other, and no prefix ends within it; where it stands beside the tokens, it divides nothing.
//! Otherwise a prefix of keys and values may end anywhere, since [`mlxcel_runtime::engine::Engine::read`]
//! gives a token the same wherever passes end. A recurrent state is kept where it was when a pass
//! ended: those ends are places in the prompt, whatever was cached before them.

use std::ops::Range;

use mlxcel_estimator::KV_BLOCK_TOKENS;
use mlxcel_runtime::vision::ImagePlacement;

/// Tokens, and the images that take the place of some of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Prompt {
    /// At least one, but for a prompt that is refused.
    pub(super) tokens: Vec<u32>,
    /// In order.
    pub(super) images: Vec<ImageKey>,
}

/// Where an image stands, and which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageKey {
    /// The tokens whose place it takes, at least one.
    pub(super) tokens: Range<usize>,
    /// SHA-256 of its file: the placeholders of all images are equal.
    pub(super) digest: [u8; 32],
    /// How the decoder reads it.
    pub(super) reading: ImagePlacement,
}

impl ImageKey {
    /// Rows that it has beside the tokens; 0 where they are among them.
    fn rows_beside(&self) -> usize {
        match self.reading {
            ImagePlacement::CrossAttention { rows } => rows,
            ImagePlacement::Inline | ImagePlacement::InlineBidirectional => 0,
        }
    }
}

/// Those of `images` whose rows are among the tokens.
fn among_tokens(images: &[ImageKey]) -> impl Iterator<Item = &ImageKey> {
    images.iter().filter(|image| image.rows_beside() == 0)
}

/// Where the passes over a prompt end, besides at images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// Behind a chunk, wherever that began.
    Anywhere,
    /// At multiples of the chunk and at [`Prompt::last_cut`].
    AtCuts,
}

impl Prompt {
    /// A prompt without images.
    pub(super) fn text(tokens: Vec<u32>) -> Self {
        Self { tokens, images: Vec::new() }
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The first token from `vocab` on; those that stand for images may lie there.
    pub(super) fn token_from(&self, vocab: u64) -> Option<u32> {
        let image = |at: usize| self.images.iter().any(|image| image.tokens.contains(&at));
        let beyond = |(at, token): &(usize, &u32)| u64::from(**token) >= vocab && !image(*at);
        self.tokens.iter().enumerate().find(beyond).map(|(_, token)| *token)
    }

    /// Tokens of images from token `from` on.
    pub(super) fn image_tokens(&self, from: usize) -> usize {
        among_tokens(&self.images)
            .map(|image| &image.tokens)
            .filter(|t| t.start >= from)
            .map(Range::len)
            .sum()
    }

    /// Rows of images beside the tokens, which whoever goes on from a token finds there.
    pub(super) fn rows_beside(&self, from: usize) -> usize {
        let rows = || self.images.iter().map(ImageKey::rows_beside).sum();
        if from == 0 { rows() } else { 0 }
    }

    /// Tokens, or rows beside them, of the largest image.
    pub(super) fn largest_image(&self) -> usize {
        let size = |image: &ImageKey| image.tokens.len().max(image.rows_beside());
        self.images.iter().map(size).max().unwrap_or(0)
    }

    /// Tokens of the largest image that no chunk divides.
    pub(super) fn largest_pass(&self) -> usize {
        let whole =
            self.images.iter().filter(|image| image.reading == ImagePlacement::InlineBidirectional);
        whole.map(|image| image.tokens.len()).max().unwrap_or(0)
    }

    /// The last place before the last token where keys and values that others share may end.
    pub(super) fn last_end(&self) -> usize {
        outside(&self.images, self.len().saturating_sub(1))
    }

    /// The last place before the last token where a state is kept that others go on from.
    pub(super) fn last_cut(&self) -> usize {
        cut(&self.images, self.len().saturating_sub(1))
    }

    /// Where a pass of up to `chunk` tokens from token `done` on ends: at `ends`, at an image or
    /// behind it.
    pub(super) fn pass_end(&self, done: usize, chunk: usize, ends: Ends) -> usize {
        let chunk = chunk.max(1);
        let (chunk_end, last) = match ends {
            Ends::Anywhere => (done.saturating_add(chunk), 0),
            Ends::AtCuts => ((done / chunk + 1).saturating_mul(chunk), self.last_cut()),
        };
        let mut images = among_tokens(&self.images);
        if let Some(image) = images.find(|image| image.tokens.contains(&done)) {
            let end = image.tokens.end;
            let whole = image.reading == ImagePlacement::InlineBidirectional;
            return if whole { end } else { end.min(chunk_end) };
        }
        let end = if done < last { last } else { self.len() };
        let images = among_tokens(&self.images).map(|image| image.tokens.start);
        let next = chunk_end.min(end);
        images.filter(|start| *start > done).fold(next, usize::min)
    }
}

/// Tokens in whole blocks of `tokens` tokens.
pub(super) fn whole_blocks(tokens: usize) -> usize {
    let rest = tokens as u64 % KV_BLOCK_TOKENS;
    tokens.saturating_sub(usize::try_from(rest).unwrap_or(0))
}

/// `tokens`, or where the image begins that the place lies within.
pub(super) fn outside(images: &[ImageKey], tokens: usize) -> usize {
    let within = |image: &&ImageKey| image.tokens.start < tokens && tokens < image.tokens.end;
    among_tokens(images).find(within).map_or(tokens, |image| image.tokens.start)
}

/// The last place within `tokens` tokens that is behind a whole block or behind an image, and not within
/// one.
pub(super) fn cut(images: &[ImageKey], tokens: usize) -> usize {
    let tokens = outside(images, tokens);
    let ends = among_tokens(images).map(|image| image.tokens.end).filter(|end| *end <= tokens);
    ends.fold(whole_blocks(tokens), usize::max)
}

/// Those of `images` that the first `tokens` tokens have seen: those among them, and all beside them.
pub(super) fn seen(images: &[ImageKey], tokens: usize) -> Vec<ImageKey> {
    let seen = |image: &&ImageKey| image.tokens.end <= tokens || image.rows_beside() > 0;
    images.iter().filter(seen).cloned().collect()
}

/// How many tokens two sequences have in common: equal ones, up to an image that differs. Images beside
/// the tokens are seen from the first one on, so that with others nothing is common.
pub(super) fn common(a: (&[u32], &[ImageKey]), b: (&[u32], &[ImageKey])) -> usize {
    let tokens = a.0.iter().zip(b.0).take_while(|(a, b)| a == b).count();
    let beside = |images: &[ImageKey]| images.iter().any(|image| image.rows_beside() > 0);
    if a.1 != b.1 && (beside(a.1) || beside(b.1)) {
        return 0;
    }
    let differs = |image: &&ImageKey, others: &[ImageKey]| !others.contains(image);
    let ours = a.1.iter().filter(|image| differs(image, b.1));
    let theirs = b.1.iter().filter(|image| differs(image, a.1));
    ours.chain(theirs).map(|image| image.tokens.start).fold(tokens, usize::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tokens: Range<usize>, digest: u8) -> ImageKey {
        ImageKey { tokens, digest: [digest; 32], reading: ImagePlacement::InlineBidirectional }
    }

    fn passes_at(ends: Ends, prompt: &Prompt, from: usize, chunk: usize) -> Vec<usize> {
        let next = |done: &usize| Some(prompt.pass_end(*done, chunk, ends)).filter(|e| e > done);
        std::iter::successors(Some(from), next).skip(1).collect()
    }

    fn passes(prompt: &Prompt, from: usize, chunk: usize) -> Vec<usize> {
        passes_at(Ends::AtCuts, prompt, from, chunk)
    }

    #[test]
    fn a_text_goes_on_from_any_place() {
        let text = Prompt::text(vec![0; 600]);
        let passes = |from| passes_at(Ends::Anywhere, &text, from, 128);
        assert_eq!(passes(0), [128, 256, 384, 512, 600]);
        assert_eq!(passes(301), [429, 557, 600]);
        assert_eq!((passes(599), passes(500), text.last_end()), (vec![600], vec![600], 599));
        let images = vec![image(4..260, 1), image(596..600, 2)];
        let prompt = Prompt { tokens: vec![0; 600], images };
        let passes = |from| passes_at(Ends::Anywhere, &prompt, from, 128);
        assert_eq!(passes(0), [4, 260, 388, 516, 596, 600]);
        assert_eq!((passes(590), prompt.last_end()), (vec![596, 600], 596));
    }

    #[test]
    fn a_text_is_read_in_chunks_and_what_follows_its_last_block() {
        let text = Prompt::text(vec![0; 600]);
        assert_eq!(passes(&text, 0, 128), [128, 256, 384, 512, 600]);
        assert_eq!(passes(&text, 256, 128), [384, 512, 600]);
        assert_eq!(passes(&text, 0, 100), [100, 200, 300, 400, 500, 512, 600]);
        assert_eq!(passes(&Prompt::text(vec![0; 1]), 0, 128), [1]);
    }

    #[test]
    fn an_image_is_a_pass_of_its_own() {
        let tokens = vec![0; 700];
        let prompt = Prompt { tokens, images: vec![image(4..260, 1), image(300..556, 2)] };
        let all = [4, 260, 300, 556, 640, 700];
        assert_eq!(passes(&prompt, 0, 128), all);
        assert_eq!(passes(&prompt, 0, 512), [4, 260, 300, 556, 700]);
        // Over every prefix that may be shared the rest is read in the same passes.
        for cut in [260, 556] {
            let rest: Vec<_> = all.into_iter().filter(|end| *end > cut).collect();
            assert_eq!(passes(&prompt, cut, 128), rest);
        }
        assert_eq!((prompt.image_tokens(0), prompt.image_tokens(260)), (512, 256));
        assert_eq!((prompt.largest_pass(), prompt.last_cut()), (256, 556));
        // Where rows see only those before them, chunks divide an image too.
        let images = vec![ImageKey { reading: ImagePlacement::Inline, ..image(4..260, 1) }];
        let prompt = Prompt { tokens: vec![0; 300], images };
        assert_eq!(passes(&prompt, 0, 128), [4, 128, 256, 260, 300]);
        assert_eq!((prompt.largest_image(), prompt.largest_pass()), (256, 0));
    }

    fn beside(token: usize, digest: u8) -> ImageKey {
        ImageKey {
            reading: ImagePlacement::CrossAttention { rows: 900 },
            ..image(token..token + 1, digest)
        }
    }

    /// It takes one token, divides no pass, and is there from the first token on.
    #[test]
    fn an_image_beside_the_tokens_divides_nothing() {
        let prompt = Prompt { tokens: vec![0; 600], images: vec![beside(4, 1), beside(300, 2)] };
        assert_eq!(passes(&prompt, 0, 128), passes(&Prompt::text(vec![0; 600]), 0, 128));
        assert_eq!((prompt.image_tokens(0), prompt.largest_pass()), (0, 0));
        let tokens = vec![0, 1, 2, 3, 9, 4, 9];
        let spelled = Prompt { tokens, images: prompt.images.clone() };
        assert_eq!([spelled.token_from(9), spelled.token_from(4)], [Some(9), Some(4)]);
        assert_eq!(Prompt { tokens: vec![0, 1, 2, 3, 9], ..spelled }.token_from(9), None);
        assert_eq!([prompt.rows_beside(0), prompt.rows_beside(256)], [1800, 0]);
        assert_eq!((prompt.largest_image(), cut(&prompt.images, 400)), (900, 256));
        let tokens = [7; 600];
        let common = |ours: &[ImageKey], theirs: &[ImageKey]| {
            common((&tokens, ours), (&tokens[..590], theirs))
        };
        assert_eq!(common(&prompt.images, &prompt.images), 590);
        assert_eq!(common(&prompt.images, &prompt.images[..1]), 0);
        assert_eq!(common(&prompt.images[..1], &[]), 0);
    }

    #[test]
    fn prefixes_end_behind_blocks_and_images() {
        let images = [image(4..260, 1), image(500..520, 2)];
        for (tokens, expected) in
            [(3, 0), (256, 0), (259, 0), (260, 260), (499, 260), (511, 260), (520, 520), (900, 768)]
        {
            assert_eq!(cut(&images, tokens), expected, "{tokens}");
        }
        assert_eq!(cut(&[], 511), 256);
    }

    #[test]
    fn an_image_that_differs_ends_what_is_common() {
        let tokens = [7; 600];
        let common = |ours: &[ImageKey], theirs: &[ImageKey]| {
            common((&tokens, ours), (&tokens[..590], theirs))
        };
        let both = [image(4..260, 1), image(300..556, 2)];
        assert_eq!(common(&both, &both), 590);
        assert_eq!(common(&both, &[image(4..260, 1), image(300..556, 3)]), 300);
        assert_eq!(common(&[image(4..260, 9)], &both), 4);
        assert_eq!(common(&both[..1], &both), 300);
        assert_eq!(common(&[], &both), 4);
    }
}
