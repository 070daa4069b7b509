//! A conversation, in the form that chat templates expect.

use minijinja::Value;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said.
    #[serde(default)]
    pub content: Option<Content>,
    /// Everything else a template may read: `tool_calls`, `tool_call_id`, `name`,
    /// `reasoning_content`, …
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

/// The content of a message: text, or a list of parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts, text and others in order.
    Parts(Vec<ContentPart>),
}

/// One part of a message, as templates read it: `{"type": "text", "text": …}`,
/// `{"type": "image", …}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContentPart {
    /// `text`, `image`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a `text` part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Everything else, such as `image_url`.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

/// What is put through a chat template.
#[derive(Debug, Clone, Copy)]
pub struct ChatPrompt<'a> {
    /// The conversation; at least one message.
    pub messages: &'a [ChatMessage],
    /// The schemas of the tools that the model may call, if there are any.
    pub tools: Option<&'a [Json]>,
    /// Whether the prompt ends with the beginning of an assistant's message.
    pub add_generation_prompt: bool,
    /// More variables for the template, such as `enable_thinking`; they win over special tokens.
    pub variables: Option<&'a Map<String, Json>>,
}

impl<'a> ChatPrompt<'a> {
    /// The prompt for an assistant's answer to `messages`, without tools.
    pub fn new(messages: &'a [ChatMessage]) -> Self {
        Self { messages, tools: None, add_generation_prompt: true, variables: None }
    }
}

impl ChatMessage {
    /// A message of plain text.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        let content = Some(Content::Text(text.into()));
        Self { role: role.into(), content, extra: Map::new() }
    }

    /// Whether the content is text alone, or absent.
    #[must_use]
    pub fn is_text(&self) -> bool {
        match &self.content {
            None | Some(Content::Text(_)) => true,
            Some(Content::Parts(parts)) => {
                parts.iter().all(|part| part.kind == "text" && part.text.is_some())
            }
        }
    }

    /// The message as a template sees it. Three things differ from what was received, as they do
    /// in mlx-lm's server and in transformers: a content of text parts alone is one string, and an
    /// absent one is `""`; tool-call arguments that are JSON in a string are the JSON; and what a
    /// model thought is called `reasoning_content`, whatever the client calls it.
    pub(super) fn template_value(&self) -> Value {
        let mut extra = self.extra.clone();
        parse_arguments(&mut extra);
        name_reasoning(&mut extra);
        let content = match &self.content {
            None => Value::from(""),
            Some(Content::Text(text)) => Value::from(text.as_str()),
            Some(Content::Parts(parts)) => parts_value(parts),
        };
        let known = [("role", Value::from(self.role.as_str())), ("content", content)];
        let extra = extra.iter().map(|(key, value)| (key.as_str(), Value::from_serialize(value)));
        known.into_iter().chain(extra).collect()
    }
}

fn parts_value(parts: &[ContentPart]) -> Value {
    let texts: Option<String> =
        parts.iter().map(|part| part.text.as_deref().filter(|_| part.kind == "text")).collect();
    texts.map_or_else(|| Value::from_serialize(parts), Value::from)
}

/// The OpenAI protocol sends `function.arguments` as a string of JSON; templates want the JSON.
fn parse_arguments(message: &mut Map<String, Json>) {
    let Some(Json::Array(calls)) = message.get_mut("tool_calls") else { return };
    for call in calls {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = parsed;
        }
    }
}

fn name_reasoning(message: &mut Map<String, Json>) {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let reasoning = NAMES.iter().find_map(|name| message.get(*name).filter(|it| !it.is_null()));
    if let Some(reasoning) = reasoning.cloned() {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}
