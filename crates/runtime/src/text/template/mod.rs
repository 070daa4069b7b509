//! Chat templates, which render a conversation as the model's prompt.
//!
//! Templates target Jinja2 as configured by Hugging Face's transformers. `python` prints values the
//! way Python does; this module finds the templates and configures the rest:
//! `trim_blocks` and `lstrip_blocks`, Python's methods on strings and dictionaries,
//! `{% break %}`, `{% generation %}`, `raise_exception`, `strftime_now`.
//!
//! Known difference: with minijinja, the operator `~` and the filter `join` print `true`, `false` and
//! `none` in lower case.

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

/// Templates and the file that contains them.
struct TemplateFile {
    file: String,
    templates: Vec<NamedTemplate>,
}

impl ChatTemplate {
    /// Loads the template of a checkpoint: `chat_template.jinja`, else `chat_template.json`, else
    /// `chat_template` in `tokenizer_config.json` (one template, or a list of named ones).
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], [`TextError::TemplateSyntax`], and the errors of reading the
    /// files.
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

    /// Renders a conversation. Encode the result with
    /// [`encode_verbatim`](super::Tokenizer::encode_verbatim): templates contain BOS themselves.
    ///
    /// A conversation with tools uses the template named `tool_use`, if there is one.
    ///
    /// # Errors
    /// [`TextError::NoMessages`], [`TextError::TemplateRefused`] if the template calls
    /// `raise_exception`, [`TextError::TemplateRender`].
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

/// Finds the templates of a checkpoint; `None` if it has none.
fn find(files: &TextFiles<'_>, config: TokenizerConfig) -> Result<Option<TemplateFile>, TextError> {
    const JINJA: &str = "chat_template.jinja";
    const JSON: &str = "chat_template.json";
    #[derive(serde::Deserialize)]
    struct Wrapper {
        chat_template: String,
    }
    if let Some(bytes) = files.read(JINJA)? {
        let template = String::from_utf8_lossy(&bytes).into_owned();
        return Ok(Some(TemplateFile::single(files.label(JINJA), template)));
    }
    if let Some(wrapper) = files.json::<Wrapper>(JSON)? {
        return Ok(Some(TemplateFile::single(files.label(JSON), wrapper.chat_template)));
    }
    let file = files.label(TOKENIZER_CONFIG);
    Ok(match config.chat_template {
        Some(TemplateField::One(template)) => Some(TemplateFile::single(file, template)),
        Some(TemplateField::Named(templates)) => Some(TemplateFile { file, templates }),
        None => None,
    })
}

impl TemplateFile {
    /// A file with one unnamed template.
    fn single(file: String, template: String) -> Self {
        Self { file, templates: vec![NamedTemplate { name: DEFAULT.to_owned(), template }] }
    }
}

/// Creates a Jinja environment configured like that of transformers.
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

/// A call of `raise_exception`, as the source of a minijinja error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RaisedException(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception")
        .with_source(RaisedException(message)))
}

/// Formats the local time in the syntax of C's `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "strftime_now: invalid format").with_source(error)
    })
}

fn render_error(error: Error) -> TextError {
    let first: &(dyn std::error::Error + 'static) = &error;
    let mut causes = std::iter::successors(Some(first), |error| error.source());
    match causes.find_map(|cause| cause.downcast_ref::<RaisedException>()) {
        Some(RaisedException(message)) => TextError::TemplateRefused { message: message.clone() },
        None => TextError::TemplateRender { source: error },
    }
}

/// Replaces `{% generation %}` … `{% endgeneration %}` by `{% with %}` … `{% endwith %}`. The former
/// mark assistant text for training and open a scope; the latter only open a scope.
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

/// Splits the text after `{%` at the name of a generation tag and returns it with its replacement.
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
