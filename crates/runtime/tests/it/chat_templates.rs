//! Chat templates, compared with transformers; `golden/chat_templates.py` made the goldens.

use std::collections::BTreeMap;
use std::path::Path;

use mlxcel_runtime::text::{ChatMessage, ChatPrompt, ChatTemplate, TextError, TextFiles};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Goldens {
    special_tokens: Value,
    conversations: BTreeMap<String, Conversation>,
    goldens: Vec<Golden>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<ChatMessage>,
    tools: Option<Vec<Value>>,
    add_generation_prompt: Option<bool>,
    variables: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Golden {
    template: String,
    conversation: String,
    prompt: Option<String>,
    message: Option<String>,
}

fn load(template: &str, special_tokens: &Value) -> ChatTemplate {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/templates");
    let text = std::fs::read(folder.join(format!("{template}.jinja"))).unwrap();
    let config = special_tokens.to_string();
    let files = [("chat_template.jinja", &text[..]), ("tokenizer_config.json", config.as_bytes())];
    ChatTemplate::load(&TextFiles::Embedded(&files)).unwrap()
}

fn render(template: &ChatTemplate, conversation: &Conversation) -> Result<String, TextError> {
    template.render(&ChatPrompt {
        messages: &conversation.messages,
        tools: conversation.tools.as_deref(),
        add_generation_prompt: conversation.add_generation_prompt.unwrap_or(true),
        variables: conversation.variables.as_ref(),
    })
}

#[test]
fn prompts_agree_with_transformers() {
    let goldens: Goldens =
        serde_json::from_str(include_str!("../golden/chat_templates.json")).unwrap();
    assert!(goldens.goldens.len() >= 100);
    let mut wrong = Vec::new();
    for golden in &goldens.goldens {
        let template = load(&golden.template, &goldens.special_tokens);
        let got = render(&template, &goldens.conversations[&golden.conversation]);
        let right = match (&golden.prompt, &got) {
            (Some(expected), Ok(prompt)) => expected == prompt,
            (None, Err(TextError::TemplateRefused { message })) => {
                golden.message.as_ref() == Some(message)
            }
            (None, Err(TextError::TemplateRender { .. })) => true,
            _ => false,
        };
        if !right {
            let expected = golden.prompt.as_ref().or(golden.message.as_ref());
            wrong.push(format!(
                "{} / {}\nexpected {expected:#?}\ngot {got:#?}",
                golden.template, golden.conversation
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n\n"));
}
