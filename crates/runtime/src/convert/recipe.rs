//! Mixed-precision recipes, which give some layers more bits: those of mlx-lm's
//! `--quant-predicate`, modelled on llama.cpp's `Q4_K_M`.
//!
//! The value and down projections of the first and last eighth of the layers, and of every third
//! layer in between, get the high number of bits, as does an untied output head. Everything else gets
//! the low one.

use super::ConvertError;

/// A mixed-precision recipe with two numbers of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixedRecipe {
    low: u8,
    high: u8,
    name: &'static str,
}

const RECIPES: [MixedRecipe; 4] = [
    MixedRecipe { low: 2, high: 6, name: "mixed_2_6" },
    MixedRecipe { low: 3, high: 4, name: "mixed_3_4" },
    MixedRecipe { low: 3, high: 6, name: "mixed_3_6" },
    MixedRecipe { low: 4, high: 6, name: "mixed_4_6" },
];

impl MixedRecipe {
    /// Parses `mixed_4_6` or `4_6`.
    ///
    /// # Errors
    /// [`ConvertError::UnknownRecipe`], which lists the known names.
    pub fn parse(text: &str) -> Result<Self, ConvertError> {
        let mut recipes = RECIPES.into_iter();
        let found = recipes
            .find(|recipe| recipe.name == text || recipe.name.strip_prefix("mixed_") == Some(text));
        found.ok_or_else(|| ConvertError::UnknownRecipe {
            name: text.to_owned(),
            known: RECIPES.map(Self::name).join(", "),
        })
    }

    /// Name in mlx-lm.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Bits of `module`, a tensor's name without `.weight`, in a model of `layers` layers. As in
    /// mlx-lm, substrings match: Phi-3's `qkv_proj` contains `v_proj`.
    pub(super) fn bits(self, module: &str, layers: usize) -> u8 {
        let index = module.split('.').find_map(|part| part.parse::<usize>().ok()).unwrap_or(0);
        let eighth = layers / 8;
        // `index >= eighth` is implied by the first condition being false.
        let is_sensitive_layer =
            index < eighth || index >= 7 * layers / 8 || (index - eighth) % 3 == 2;
        let sensitive = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"];
        let is_sensitive = is_sensitive_layer && sensitive.iter().any(|part| module.contains(part));
        if is_sensitive || module.contains("lm_head") { self.high } else { self.low }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_prefix() {
        assert_eq!(MixedRecipe::parse("mixed_3_6").unwrap(), MixedRecipe::parse("3_6").unwrap());
        let error = MixedRecipe::parse("mixed_9_9").unwrap_err().to_string();
        assert!(error.contains("mixed_2_6, mixed_3_4"), "{error}");
    }

    /// Computed by hand from mlx-lm's rule for 16 layers: an eighth is 2.
    #[test]
    fn bits_agree_with_mlx_lm() {
        let recipe = MixedRecipe::parse("4_6").unwrap();
        let high = |part: &str| -> Vec<usize> {
            let bits = |n: &usize| recipe.bits(&format!("model.layers.{n}.{part}"), 16) == 6;
            (0..16).filter(bits).collect()
        };
        let expected = [0, 1, 4, 7, 10, 13, 14, 15];
        assert_eq!(high("mlp.down_proj"), expected);
        assert_eq!(high("self_attn.v_proj"), expected);
        assert_eq!(high("self_attn.qkv_proj"), expected);
        assert_eq!(high("mlp.up_proj"), [0; 0]);
        assert_eq!((recipe.bits("lm_head", 16), recipe.bits("model.embed_tokens", 16)), (6, 4));
    }
}
