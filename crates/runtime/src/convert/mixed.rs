//! Recipes that give some layers more bits: those of mlx-lm's `--quant-predicate`, after
//! llama.cpp's `Q4_K_M`.
//!
//! In the first and the last eighth of the layers, and in every third between them, values and the
//! down projection get the high number of bits; so does an output head of its own. Everything else
//! gets the low one.

use super::ConvertError;

/// A recipe: two numbers of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixed {
    low: u8,
    high: u8,
    name: &'static str,
}

const RECIPES: [Mixed; 4] = [
    Mixed { low: 2, high: 6, name: "mixed_2_6" },
    Mixed { low: 3, high: 4, name: "mixed_3_4" },
    Mixed { low: 3, high: 6, name: "mixed_3_6" },
    Mixed { low: 4, high: 6, name: "mixed_4_6" },
];

impl Mixed {
    /// Reads `mixed_4_6` or `4_6`.
    ///
    /// # Errors
    /// [`ConvertError::UnknownRecipe`], listing those that there are.
    pub fn parse(text: &str) -> Result<Self, ConvertError> {
        let is = |recipe: &Mixed| {
            recipe.name == text || recipe.name.strip_prefix("mixed_") == Some(text)
        };
        RECIPES.into_iter().find(is).ok_or_else(|| ConvertError::UnknownRecipe {
            name: text.to_owned(),
            known: RECIPES.map(Self::name).join(", "),
        })
    }

    /// mlx-lm's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The bits of `module` (a tensor's name without `.weight`) in a model of `layers` layers.
    /// As in mlx-lm, parts of a name count: Phi-3's `qkv_proj` contains `v_proj`.
    pub(super) fn bits(self, module: &str, layers: usize) -> u8 {
        let index = module.split('.').find_map(|part| part.parse::<usize>().ok()).unwrap_or(0);
        let eighth = layers / 8;
        // `index >= eighth` is implied by the first condition being false.
        let more = index < eighth || index >= 7 * layers / 8 || (index - eighth) % 3 == 2;
        let wide = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"];
        let wide = more && wide.iter().any(|part| module.contains(part));
        if wide || module.contains("lm_head") { self.high } else { self.low }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_prefix() {
        assert_eq!(Mixed::parse("mixed_3_6").unwrap(), Mixed::parse("3_6").unwrap());
        let error = Mixed::parse("mixed_9_9").unwrap_err().to_string();
        assert!(error.contains("mixed_2_6, mixed_3_4"), "{error}");
    }

    /// Computed by hand from mlx-lm's rule for 16 layers: an eighth is 2.
    #[test]
    fn the_rule_of_mlx_lm() {
        let mixed = Mixed::parse("4_6").unwrap();
        let high = |part: &str| -> Vec<usize> {
            let bits = |n: &usize| mixed.bits(&format!("model.layers.{n}.{part}"), 16) == 6;
            (0..16).filter(bits).collect()
        };
        let expected = [0, 1, 4, 7, 10, 13, 14, 15];
        assert_eq!(high("mlp.down_proj"), expected);
        assert_eq!(high("self_attn.v_proj"), expected);
        assert_eq!(high("self_attn.qkv_proj"), expected);
        assert_eq!(high("mlp.up_proj"), [0; 0]);
        assert_eq!((mixed.bits("lm_head", 16), mixed.bits("model.embed_tokens", 16)), (6, 4));
    }
}
