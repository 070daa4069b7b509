//! Replies in a conversation equal those from an empty cache, also if the template rewrites earlier
//! messages.

use std::ops::ControlFlow;
use std::path::Path;

use crate::support::{Setup, on_engine};
use mlxcel_estimator::KvMode;
use mlxcel_runtime::Processor;
use mlxcel_runtime::conversation::{AnswerOptions, Conversation};
use mlxcel_runtime::engine::{Engine, Generation, ModelSource, NoProgress, Outcome, generate};
use mlxcel_runtime::sampling::{SamplingOptions, SamplingParams};
use mlxcel_runtime::text::ChatPrompt;

/// Template that keeps all messages.
const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>";
/// Template that shortens earlier replies, like those that drop reasoning.
const FORGETFUL: &str = "{% for m in messages %}<{{ m.role }}>\
    {{ m.content[:4] if m.role == 'assistant' else m.content }}\n{% endfor %}<assistant>";

const TURNS: [&str; 3] = ["who are you?", "and where do you come from?", "why?"];

fn model(config: &str, template: &str, folder: &Path) -> ModelSource {
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "q4").unwrap();
    mlxcel_testing::golden::checkpoint(config, variant, folder).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    ModelSource::Folder(folder.to_owned())
}

fn options() -> AnswerOptions {
    AnswerOptions {
        context: None,
        max_tokens: Some(12),
        sampling: SamplingParams::new(SamplingOptions::default()).unwrap(),
        stop: Vec::new(),
    }
}

fn from_empty(engine: &Engine, text: &Processor, chat: &Conversation<'_>) -> Outcome {
    let [before @ .., _] = chat.messages() else { panic!("something was said") };
    let prompt = text.encode_chat(&ChatPrompt::new(before)).unwrap();
    let (sampling, stop) = (options().sampling, &[][..]);
    let request = Generation { prompt: &prompt, max_tokens: 12, sampling, stop, ignore_eos: false };
    let emit = &mut |_: &str| ControlFlow::Continue(());
    generate(engine, text.tokenizer(), &request, &mut NoProgress, emit).unwrap()
}

/// Returns the number of reused tokens of each turn.
fn check(config: &str, template: &str, kv_mode: KvMode) -> Vec<usize> {
    let folder = tempfile::tempdir().unwrap();
    let source = model(config, template, folder.path());
    let text = Processor::load(&source).unwrap();
    let engine = Setup { kv_mode, prefill_chunk: 16, ..Setup::default() }.engine(&source);
    let mut chat = Conversation::new(&engine, &text, Some("be brief")).unwrap();
    let mut kept = Vec::new();
    for turn in TURNS {
        let emit = &mut |_: &str| ControlFlow::Continue(());
        let answer = chat.answer(turn, &options(), &mut NoProgress, emit).unwrap();
        assert_eq!(answer.tokens, from_empty(&engine, &text, &chat).tokens, "{turn}");
        kept.push(answer.statistics.reused_tokens);
    }
    assert_eq!(chat.messages().len(), 7);
    kept
}

#[test]
fn replies_equal_those_of_an_empty_cache() {
    on_engine(|| {
        let kept = check("llama", PLAIN, KvMode::Fp16);
        assert!(kept[0] == 0 && kept[1] > 20 && kept[2] > kept[1] + 20, "{kept:?}");
        let kept = check("llama", FORGETFUL, KvMode::Fp16);
        assert!(kept[1] > 20 && kept[2] > kept[1], "{kept:?}");
    });
}

#[test]
fn windows_and_quantised_caches_too() {
    on_engine(|| {
        check("mistral-sliding", PLAIN, KvMode::Fp16);
        check("mistral-sliding", FORGETFUL, KvMode::Int8);
        check("llama", FORGETFUL, KvMode::Turbo4Delegated);
    });
}
