//! Template features and failures.

use super::*;

fn load(files: &[(&str, &str)]) -> Result<ChatTemplate, TextError> {
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    ChatTemplate::load(&TextFiles::Embedded(&files))
}

fn render(files: &[(&str, &str)], tools: Option<&[serde_json::Value]>) -> String {
    let messages = [ChatMessage::text("user", "hi")];
    let prompt = ChatPrompt { tools, ..ChatPrompt::new(&messages) };
    load(files).unwrap().render(&prompt).unwrap()
}

#[test]
fn template_files_override_the_tokenizer_config() {
    let jinja = ("chat_template.jinja", "jinja");
    let json = ("chat_template.json", r#"{"chat_template": "json"}"#);
    let config = ("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    assert_eq!(render(&[config, json, jinja], None), "jinja");
    assert_eq!(render(&[config, json], None), "json");
    assert_eq!(render(&[config], None), "config");
}

#[test]
fn tools_use_the_template_tool_use() {
    let config = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "chat_template": [
        {"name": "default", "template": "{{ bos_token }}plain"},
        {"name": "tool_use", "template": "{{ tools[0].name }}"}]}"#;
    let files = [("tokenizer_config.json", config)];
    assert_eq!(render(&files, None), "<s>plain");
    assert_eq!(render(&files, Some(&[serde_json::json!({"name": "f"})])), "f");
}

#[test]
fn a_base_model_has_no_template() {
    let error = load(&[("tokenizer_config.json", "{}")]).unwrap_err();
    assert!(matches!(error, TextError::NoChatTemplate { .. }));
    assert!(error.to_string().starts_with("the built-in model has no chat template"));
}

#[test]
fn a_syntax_error_names_file_and_line() {
    let error = load(&[("chat_template.jinja", "a\n{% if %}")]).unwrap_err().to_string();
    assert!(error.contains("built-in/chat_template.jinja"), "{error}");
    assert!(error.contains(":2"), "{error}");
}

#[test]
fn no_messages_is_an_error() {
    let template = load(&[("chat_template.jinja", "x")]).unwrap();
    assert!(matches!(template.render(&ChatPrompt::new(&[])), Err(TextError::NoMessages)));
}

#[test]
fn variables_override_special_tokens_but_not_messages() {
    let files = [
        ("chat_template.jinja", "{{ bos_token }}{{ x }}{{ messages[0].content }}"),
        ("tokenizer_config.json", r#"{"bos_token": "<s>"}"#),
    ];
    let variables = serde_json::json!({"bos_token": "<b>", "x": 1, "messages": []});
    let messages = [ChatMessage::text("user", "hi")];
    let prompt = ChatPrompt { variables: variables.as_object(), ..ChatPrompt::new(&messages) };
    assert_eq!(load(&files).unwrap().render(&prompt).unwrap(), "<b>1hi");
}

#[test]
fn the_date_is_today() {
    let text = render(&[("chat_template.jinja", "{{ strftime_now('%d %b %Y') }}")], None);
    let today = || jiff::Zoned::now().strftime("%d %b %Y").to_string();
    assert!(text == today() || text == today(), "{text}");
    let bad = load(&[("chat_template.jinja", "{{ strftime_now('%!') }}")]).unwrap();
    let messages = [ChatMessage::text("user", "hi")];
    let error = bad.render(&ChatPrompt::new(&messages)).unwrap_err();
    assert!(matches!(error, TextError::TemplateRender { .. }));
}

#[test]
fn only_generation_tags_are_replaced() {
    let cases = [
        ("a{% generation %}b{% endgeneration %}c", "a{% with %}b{% endwith %}c"),
        ("{%- generation -%}{%+ endgeneration +%}", "{%- with -%}{%+ endwith +%}"),
        ("{% generation_prompt %}{{ generation }}{%", "{% generation_prompt %}{{ generation }}{%"),
        ("generation {% if generation %}", "generation {% if generation %}"),
    ];
    for (template, expected) in cases {
        assert_eq!(without_generation_tags(template), expected);
    }
}
