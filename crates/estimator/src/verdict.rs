//! The verdict on an estimate in one line, and the rule for vision models.

use crate::bytes::format_bytes;
use crate::estimate::MemoryEstimate;

/// `FITS: …`, `DOES NOT FIT: 622.4 MiB over budget`, or `UNKNOWN: …`.
#[must_use]
pub fn verdict(estimate: &MemoryEstimate) -> String {
    let needed = format_bytes(estimate.total_bytes);
    match (estimate.available_bytes, estimate.over_budget_bytes()) {
        (None, _) => format!("UNKNOWN: {needed} needed, the available memory is not known"),
        (Some(_), Some(over)) => format!("DOES NOT FIT: {} over budget", format_bytes(over)),
        (Some(available), None) => {
            let spare = format_bytes(available.saturating_sub(estimate.total_bytes));
            format!("FITS: {needed} of {}, {spare} to spare", format_bytes(available))
        }
    }
}

/// The share of the machine's memory that a vision model's weights may take.
pub const DEFAULT_VISION_THRESHOLD: f64 = 0.70;

/// Verdict of the vision rule on a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VisionRule {
    /// No objection.
    Fine,
    /// A text model over the threshold: a server logs this.
    Warn(String),
    /// A vision model over the threshold: refused unless forced.
    Refuse(String),
}

/// Applies the vision rule: weights over `threshold` of all memory refuse a vision model,
/// because its image encoder cannot be swapped out and Metal aborts the process, and only warn
/// for a text model.
#[must_use]
pub fn vision_rule(
    weights_bytes: u64,
    total_bytes: Option<u64>,
    has_vision: bool,
    threshold: f64,
) -> VisionRule {
    let Some(total) = total_bytes.filter(|_| threshold.is_finite()) else {
        return VisionRule::Fine;
    };
    if (weights_bytes as f64) <= total as f64 * threshold {
        return VisionRule::Fine;
    }
    let percent = threshold * 100.0;
    let exceeds = format!(
        "Model size ({}) exceeds {percent:.0}% of system memory ({}).",
        decimal_gb(weights_bytes),
        decimal_gb(total)
    );
    if has_vision {
        VisionRule::Refuse(format!(
            "[ERROR] {exceeds} A vision model's image encoder cannot be swapped out, and running \
             out of memory aborts the process. Use a smaller or more strongly quantised model, \
             or raise the threshold."
        ))
    } else {
        VisionRule::Warn(format!("[WARN] {exceeds} Other programs may be swapped out."))
    }
}

/// Gigabytes of 10⁹ bytes, as published texts of this rule print them.
fn decimal_gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gb(x: f64) -> u64 {
        format!("{:.0}", x * 1e9).parse().unwrap()
    }

    fn check(weights: f64, total: f64, vision: bool, expected: &str) {
        let rule = vision_rule(gb(weights), Some(gb(total)), vision, DEFAULT_VISION_THRESHOLD);
        assert!(format!("{rule:?}").starts_with(expected), "{weights} of {total}: {rule:?}");
    }

    /// Published rows: 90B-Vision-4bit, 11B-Vision-4bit and pixtral-12b-8bit on 64 GiB,
    /// Qwen2.5-Coder-32B in bf16 on 64.
    #[test]
    fn published_rows() {
        check(
            49.9,
            68.7,
            true,
            "Refuse(\"[ERROR] Model size (49.9 GB) exceeds 70% of system memory (68.7 GB). ",
        );
        check(6.0, 68.7, true, "Fine");
        check(13.5, 68.7, true, "Fine");
        check(61.5, 64.0, false, "Warn(\"[WARN] Model size (61.5 GB) exceeds 70%");
    }

    #[test]
    fn the_threshold_moves() {
        assert_eq!(vision_rule(80, Some(100), true, 0.8), VisionRule::Fine);
        assert!(matches!(vision_rule(81, Some(100), true, 0.8), VisionRule::Refuse(_)));
        assert_eq!(vision_rule(81, None, true, 0.8), VisionRule::Fine);
        assert_eq!(vision_rule(81, Some(100), true, f64::NAN), VisionRule::Fine);
    }
}
