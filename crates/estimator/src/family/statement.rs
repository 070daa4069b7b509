//! The statements of a family description: one line each, see [`super`] for the list.

use super::expr::{self, Expr};
use super::{Family, registry};
use crate::tensors::TensorRole;

/// Place of a section's tensors in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SectionPlace {
    /// Once in the language model.
    Once,
    /// Every layer of the language model that the guard admits.
    Layer,
    /// The image encoder and its projector.
    Vision,
}

/// The statements under one header.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) place: SectionPlace,
    /// Number of repetitions of the section, counted by `{i}`.
    pub(crate) repeat: Option<Expr>,
    /// Number of tensors that each row stands for, counted by `{e}`.
    pub(crate) count: Option<Expr>,
    pub(crate) guard: Option<Expr>,
    pub(crate) rows: Vec<Row>,
    pub(crate) mixers: Vec<LayerPart>,
    pub(crate) mlps: Vec<LayerPart>,
}

impl Section {
    /// Reports whether the section has `mixer` or `mlp` statements.
    pub(crate) fn has_layer_parts(&self) -> bool {
        !(self.mixers.is_empty() && self.mlps.is_empty())
    }
}

/// One tensor.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) dims: Vec<Expr>,
    pub(crate) role: TensorRole,
    pub(crate) guard: Option<Expr>,
}

/// A `mixer` or `mlp` statement: a kind from [`MIXERS`] or [`MLPS`] and its sizes.
#[derive(Debug, Clone)]
pub(crate) struct LayerPart {
    pub(crate) kind: &'static str,
    pub(crate) arguments: Vec<Expr>,
    pub(crate) guard: Option<Expr>,
}

/// A kind of layer part, with the fewest and the most arguments that it takes.
type PartKind = (&'static str, usize, usize);

/// Token mixers; [`crate::spec`] reads their arguments.
const MIXERS: [PartKind; 12] = [
    ("attention", 4, 5),
    ("shared_attention", 4, 5),
    ("latent", 6, 6),
    ("cross_attention", 5, 5),
    ("indexer", 2, 2),
    ("compressed", 2, 2),
    ("mamba", 4, 4),
    ("mamba2", 6, 6),
    ("gated_delta", 5, 5),
    ("short_conv", 2, 2),
    ("recurrent", 3, 3),
    ("unknown", 0, 0),
];

/// Feed-forward parts.
const MLPS: [PartKind; 4] =
    [("gated", 1, 1), ("plain", 1, 1), ("experts", 3, 4), ("plain_experts", 3, 4)];

/// Reads one line into `family`.
pub(crate) fn read(family: &mut Family, line: &str) -> Result<(), String> {
    let line = line.split('#').next().unwrap_or_default().trim();
    if line.is_empty() {
        return Ok(());
    }
    if let Some(header) = line.strip_prefix('[') {
        let header = header.strip_suffix(']').ok_or("the header has no closing `]`")?;
        family.sections.push(section(header)?);
        return Ok(());
    }
    let (verb, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match verb {
        "default" => define(&mut family.defaults, rest),
        "derive" => define(&mut family.derives, rest),
        "let" => define(&mut family.lets, rest),
        "architecture" => set(&mut family.architecture, rest),
        "text" => set(&mut family.text, rest),
        "rename" => {
            let (from, to) = rest.trim().split_once(' ').ok_or("`rename` needs two prefixes")?;
            family.renames.push((from.to_owned(), to.trim().to_owned()));
            Ok(())
        }
        "words" => {
            let mut words = rest.split_whitespace().map(str::to_owned);
            let field = words.next().ok_or("`words` needs a field")?;
            family.words.push((field, words.collect()));
            Ok(())
        }
        "note" => {
            let (sentence, guard) = guarded(rest)?;
            family.notes.push((sentence.to_owned(), guard));
            Ok(())
        }
        "use" => splice(family, rest),
        "mixer" => {
            let mixer = layer_part(rest, &MIXERS)?;
            open(family)?.mixers.push(mixer);
            Ok(())
        }
        "mlp" => {
            let mlp = layer_part(rest, &MLPS)?;
            open(family)?.mlps.push(mlp);
            Ok(())
        }
        _ => {
            let row = row(line)?;
            open(family)?.rows.push(row);
            Ok(())
        }
    }
}

fn open(family: &mut Family) -> Result<&mut Section, String> {
    family.sections.last_mut().ok_or_else(|| "this belongs under a `[section]`".to_owned())
}

fn set(slot: &mut Option<String>, word: &str) -> Result<(), String> {
    *slot = Some(word.trim().to_owned());
    Ok(())
}

fn define(map: &mut std::collections::BTreeMap<String, Expr>, rest: &str) -> Result<(), String> {
    for part in rest.split(';') {
        let (name, text) = part.split_once('=').ok_or("`NAME = EXPR` is needed")?;
        map.insert(name.trim().to_owned(), expr::parse(text)?);
    }
    Ok(())
}

/// Splits a trailing ` if EXPR` off.
fn guarded(text: &str) -> Result<(&str, Option<Expr>), String> {
    match text.trim().split_once(" if ") {
        None => Ok((text.trim(), None)),
        Some((before, condition)) => Ok((before.trim(), Some(expr::parse(condition)?))),
    }
}

fn section(header: &str) -> Result<Section, String> {
    let (header, guard) = guarded(header)?;
    let (header, count) = split_clause(header, " x ")?;
    let (header, repeat) = split_clause(header, " for ")?;
    let place = match header {
        "once" => SectionPlace::Once,
        "layer" => SectionPlace::Layer,
        "vision" => SectionPlace::Vision,
        other => return Err(format!("no section is called `{other}`")),
    };
    Ok(Section {
        place,
        repeat,
        count,
        guard,
        rows: Vec::new(),
        mixers: Vec::new(),
        mlps: Vec::new(),
    })
}

fn split_clause<'a>(text: &'a str, word: &str) -> Result<(&'a str, Option<Expr>), String> {
    match text.split_once(word) {
        None => Ok((text.trim(), None)),
        Some((before, clause)) => Ok((before.trim(), Some(expr::parse(clause)?))),
    }
}

fn layer_part(text: &str, kinds: &[PartKind]) -> Result<LayerPart, String> {
    let (call, guard) = guarded(text)?;
    let Expr::Call(name, arguments) = expr::parse(call)? else {
        return Err(format!("`{call}` is not of the form kind(size, …)"));
    };
    let known = kinds.iter().find(|(kind, ..)| *kind == name);
    let (kind, fewest, most) = known.ok_or_else(|| format!("`{name}` is not a known kind"))?;
    if !(*fewest..=*most).contains(&arguments.len()) {
        return Err(format!("`{name}` does not take {} sizes", arguments.len()));
    }
    Ok(LayerPart { kind, arguments, guard })
}

fn row(line: &str) -> Result<Row, String> {
    let (name, rest) = line.split_once('[').ok_or("a tensor needs `[dimensions]`")?;
    let (dims, rest) = rest.split_once(']').ok_or("the dimensions have no closing `]`")?;
    let (role, guard) = match rest.trim().strip_prefix("if ") {
        Some(condition) => ("", Some(expr::parse(condition)?)),
        None => guarded(rest)?,
    };
    let name = name.trim().to_owned();
    let dims = split_dims(dims).map(expr::parse).collect::<Result<Vec<_>, _>>()?;
    let role = role_of(role, &name, dims.len())?;
    Ok(Row { name, dims, role, guard })
}

/// Splits at the commas that are in no parentheses.
fn split_dims(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c| {
        depth = depth.saturating_add(i32::from(c == '(')).saturating_sub(i32::from(c == ')'));
        c == ',' && depth == 0
    })
    .filter(|dim| !dim.trim().is_empty())
}

/// The stated role, or what a name and a rank imply.
fn role_of(stated: &str, name: &str, rank: usize) -> Result<TensorRole, String> {
    match stated {
        "embed" => Ok(TensorRole::Embedding),
        "head" => Ok(TensorRole::Head),
        "linear" => Ok(TensorRole::Linear),
        "norm" => Ok(TensorRole::Norm),
        "bias" => Ok(TensorRole::Bias),
        "conv" => Ok(TensorRole::Convolution),
        "buffer" => Ok(TensorRole::Buffer),
        "plain" => Ok(TensorRole::Plain),
        "" if name.ends_with("bias") => Ok(TensorRole::Bias),
        "" if rank >= 2 => Ok(TensorRole::Linear),
        "" if name.contains("norm") || name.contains("ln_") => Ok(TensorRole::Norm),
        "" => Ok(TensorRole::Plain),
        other => Err(format!("no tensor role is called `{other}`")),
    }
}

/// Reads a fragment's lines in place, with `<key>` replaced by what the line gives, or else by
/// what the fragment's own `param KEY TEXT` says.
fn splice(family: &mut Family, rest: &str) -> Result<(), String> {
    let (call, guard) = rest.trim().split_once(" if ").map_or((rest, None), |(c, g)| (c, Some(g)));
    let mut words = call.split_whitespace();
    let name = words.next().ok_or("`use` needs a fragment's name")?;
    let fragment = registry::fragment(name).ok_or_else(|| format!("no fragment `{name}`"))?;
    let mut text = fragment.to_owned();
    let given = words.map(|w| w.split_once('=').ok_or_else(|| format!("`{w}` is no KEY=TEXT")));
    let stated = fragment.lines().filter_map(|line| line.strip_prefix("param ")?.split_once(' '));
    for pair in given.chain(stated.map(Ok)) {
        let (key, value) = pair?;
        text = text.replace(&format!("<{key}>"), value.trim());
    }
    for line in text.lines().filter(|line| !line.starts_with("param ")) {
        let line = line.split('#').next().unwrap_or_default().trim();
        match guard {
            Some(guard) if !line.is_empty() => read(family, &both(line, guard))?,
            _ => read(family, line)?,
        }
    }
    Ok(())
}

/// `line` under one more condition.
fn both(line: &str, guard: &str) -> String {
    match line.split_once(" if ") {
        Some((before, condition)) => format!("{before} if ({condition}) and ({guard})"),
        None => format!("{line} if {guard}"),
    }
}
