//! Chat templates: a conversation in, the model's prompt text out.
//!
//! Templates are written for Jinja2 as Hugging Face's transformers configures it. `python`
//! makes values print as they do there; this module finds the templates and sets up the rest:
//! `trim_blocks` and `lstrip_blocks`, Python's methods on strings and dictionaries,
//! `{% break %}`, `{% generation %}`, `raise_exception`, `strftime_now`.
//!
//! Known difference: the operator `~` and the filter `join` print `true`, `false` and `none` in
//! lower case, as minijinja does.

use std::collections::BTreeMap;

use minijinja::{Environment, Error, ErrorKind, Value};

use super::config::{NamedTemplate, TOKENIZER_CONFIG, TemplateField, TokenizerConfig};
use super::{ChatMessage, ChatPrompt, TextError, TextFiles};

mod python;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A checkpoint's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<&'static str, String>,
}

/// A template's text and the file that it comes from.
struct Source {
    file: String,
    templates: Vec<NamedTemplate>,
}

impl ChatTemplate {
    /// Reads the template of a checkpoint: `chat_template.jinja`, else `chat_template.json`, else
    /// `chat_template` in `tokenizer_config.json` (one template, or a list of named ones).
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`] when there is none, [`TextError::TemplateSyntax`] when it is
    /// not valid Jinja, and the errors of reading the files.
    pub fn load(files: &TextFiles<'_>) -> Result<Self, TextError> {
        let config = TokenizerConfig::load(files)?;
        let special_tokens =
            config.special_tokens().map(|(key, text)| (key, text.to_owned())).collect();
        let source = find(files, config)?
            .ok_or_else(|| TextError::NoChatTemplate { origin: files.origin() })?;
        let mut environment = environment();
        for NamedTemplate { name, template } in source.templates {
            environment.add_template_owned(name, without_generation_tags(&template)).map_err(
                |error| TextError::TemplateSyntax { file: source.file.clone(), source: error },
            )?;
        }
        Ok(Self { environment, special_tokens })
    }

    /// The prompt text of a conversation. Encode it with
    /// [`encode_verbatim`](super::Tokenizer::encode_verbatim): templates write BOS themselves.
    ///
    /// A conversation with tools takes the template named `tool_use` where there is one.
    ///
    /// # Errors
    /// [`TextError::NoMessages`], [`TextError::TemplateRefused`] with the template's own words
    /// when it calls `raise_exception`, [`TextError::TemplateRender`].
    pub fn render(&self, prompt: &ChatPrompt<'_>) -> Result<String, TextError> {
        if prompt.messages.is_empty() {
            return Err(TextError::NoMessages);
        }
        let name = match prompt.tools {
            Some(_) if self.environment.get_template(TOOL_USE).is_ok() => TOOL_USE,
            _ => DEFAULT,
        };
        self.environment
            .get_template(name)
            .and_then(|template| template.render(self.variables(prompt)))
            .map_err(render_error)
    }

    fn variables(&self, prompt: &ChatPrompt<'_>) -> Value {
        let messages: Value = prompt.messages.iter().map(ChatMessage::template_value).collect();
        let known = [
            ("messages", messages),
            ("tools", Value::from_serialize(prompt.tools)),
            ("add_generation_prompt", Value::from(prompt.add_generation_prompt)),
        ];
        let special = self.special_tokens.iter().map(|(key, text)| (*key, Value::from(&**text)));
        let more = prompt.variables.into_iter().flatten();
        let more = more.map(|(key, value)| (key.as_str(), Value::from_serialize(value)));
        let documents = ("documents", Value::from(()));
        special.chain([documents]).chain(more).chain(known).collect()
    }
}

/// The templates of a checkpoint, `None` when it has none.
fn find(files: &TextFiles<'_>, config: TokenizerConfig) -> Result<Option<Source>, TextError> {
    const JINJA: &str = "chat_template.jinja";
    const JSON: &str = "chat_template.json";
    #[derive(serde::Deserialize)]
    struct Wrapper {
        chat_template: String,
    }
    let one = |file: &str, template: String| {
        let templates = vec![NamedTemplate { name: DEFAULT.to_owned(), template }];
        Some(Source { file: files.label(file), templates })
    };
    if let Some(bytes) = files.read(JINJA)? {
        return Ok(one(JINJA, String::from_utf8_lossy(&bytes).into_owned()));
    }
    if let Some(wrapper) = files.json::<Wrapper>(JSON)? {
        return Ok(one(JSON, wrapper.chat_template));
    }
    Ok(match config.chat_template {
        Some(TemplateField::One(template)) => one(TOKENIZER_CONFIG, template),
        Some(TemplateField::Named(templates)) => {
            Some(Source { file: files.label(TOKENIZER_CONFIG), templates })
        }
        None => None,
    })
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(python::write_printed);
    environment.add_filter("string", python::string);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("trim", python::trim);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// A template's call of `raise_exception`, as the source of a minijinja error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
}

/// The local time, formatted as C's `strftime` does.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "strftime_now: bad format").with_source(error)
    })
}

fn render_error(error: Error) -> TextError {
    let first: &(dyn std::error::Error + 'static) = &error;
    let mut causes = std::iter::successors(Some(first), |error| error.source());
    match causes.find_map(|cause| cause.downcast_ref::<Refusal>()) {
        Some(Refusal(message)) => TextError::TemplateRefused { message: message.clone() },
        None => TextError::TemplateRender { source: error },
    }
}

/// The template with `{% generation %}` … `{% endgeneration %}` written as `{% with %}` …
/// `{% endwith %}`. The former mark what an assistant said, for training, and open a scope; the
/// latter only open a scope.
fn without_generation_tags(template: &str) -> String {
    let mut parts = template.split("{%");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("{%");
        match generation_tag(part) {
            Some((before, tag, after)) => out.extend([before, tag, after]),
            None => out.push_str(part),
        }
    }
    out
}

/// Splits what follows `{%` around the name of a generation tag, and names its replacement.
fn generation_tag(part: &str) -> Option<(&str, &'static str, &str)> {
    let rest = part.trim_start_matches(['-', '+']).trim_start();
    let before = &part[..part.len() - rest.len()];
    let (tag, after) = match rest.strip_prefix("generation") {
        Some(after) => ("with", after),
        None => ("endwith", rest.strip_prefix("endgeneration")?),
    };
    let end = after.trim_start().trim_start_matches(['-', '+']);
    end.starts_with("%}").then_some((before, tag, after))
}

#[cfg(test)]
mod tests;
