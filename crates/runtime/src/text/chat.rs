//! Conversations in the form that chat templates expect.

use minijinja::Value;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`, or another role that the template knows.
    pub role: String,
    /// Content; absent for pure tool calls.
    #[serde(default)]
    pub content: Option<Content>,
    /// Other fields for the template: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`, …
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

/// Content of a message: text, or a list of parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Text and other parts, in order.
    Parts(Vec<ContentPart>),
}

/// One part of a message, in the form that templates read: `{"type": "text", "text": …}`,
/// `{"type": "image", …}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContentPart {
    /// `text`, `image`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Text of a `text` part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Other fields, such as `image_url`.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

/// Input of a chat template.
#[derive(Debug, Clone, Copy)]
pub struct ChatPrompt<'a> {
    /// Conversation, of at least one message.
    pub messages: &'a [ChatMessage],
    /// Schemas of the tools that the model may call.
    pub tools: Option<&'a [Json]>,
    /// Ends the prompt with the header of an assistant message.
    pub add_generation_prompt: bool,
    /// Additional template variables, such as `enable_thinking`; they override special tokens.
    pub variables: Option<&'a Map<String, Json>>,
}

impl<'a> ChatPrompt<'a> {
    /// A prompt for the assistant's reply to `messages`, without tools.
    pub fn new(messages: &'a [ChatMessage]) -> Self {
        Self { messages, tools: None, add_generation_prompt: true, variables: None }
    }
}

impl ChatMessage {
    /// A plain text message.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        let content = Some(Content::Text(text.into()));
        Self { role: role.into(), content, extra: Map::new() }
    }

    /// Converts the message to its template value. As in mlx-lm's server and in transformers:
    /// content that consists of text parts becomes one string, absent content becomes `""`;
    /// tool-call arguments in a JSON string are parsed; reasoning is called `reasoning_content`,
    /// whatever name the client uses.
    pub(super) fn template_value(&self) -> Value {
        let mut extra = self.extra.clone();
        parse_arguments(&mut extra);
        unify_reasoning(&mut extra);
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

/// Parses `function.arguments`, which the OpenAI protocol sends as a JSON string.
fn parse_arguments(message: &mut Map<String, Json>) {
    let Some(Json::Array(calls)) = message.get_mut("tool_calls") else { return };
    for call in calls {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = parsed;
        }
    }
}

/// Provides reasoning under the names `reasoning_content` and `thinking`.
fn unify_reasoning(message: &mut Map<String, Json>) {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let reasoning =
        NAMES.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null()));
    if let Some(reasoning) = reasoning.cloned() {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}
