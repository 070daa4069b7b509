//! Conformance with OpenAI's API, field by field.

use serde_json::{Value, json};

use super::support::Server;

const PROMPT: &str = "Once upon a time";

#[test]
fn the_api_conforms() {
    let server = Server::start(&[]);
    models(&server);
    completions(&server);
    chat(&server);
    streams(&server);
    sampling(&server);
    logprobs(&server);
    several_completions(&server);
    tokens(&server);
    errors(&server);
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
    server.terminate();
}

fn models(server: &Server) {
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "demo");
    assert_eq!(models["data"][0]["context_length"], 512);
    assert!(models["system"]["memory_total_bytes"].as_u64().unwrap() > 1 << 30);
    let memory = server.get("/v1/memory").json();
    assert_eq!(memory["weights_bytes"], 3_250_688);
    assert_eq!(memory["system"], models["system"]);
}

fn completions(server: &Server) {
    let reply = server
        .complete(&json!({ "model": "demo", "prompt": PROMPT, "max_tokens": 12, "temperature": 0 }))
        .json();
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["usage"]["completion_tokens"], 12);
    let prompt_tokens = reply["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(reply["usage"]["total_tokens"].as_u64().unwrap(), prompt_tokens + 12);
    assert!(reply["choices"][0]["text"].as_str().unwrap().starts_with(" there was"), "{reply}");
}

fn chat(server: &Server) {
    let messages = json!([{ "role": "user", "content": PROMPT }]);
    let body = json!({ "messages": messages, "max_completion_tokens": 8, "temperature": 0 });
    let reply = server.post("/v1/chat/completions", &body).json();
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["choices"][0]["message"]["role"], "assistant");
    let whole = reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(!whole.is_empty());

    let mut body = body;
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let events = server.post("/v1/chat/completions", &body).events();
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), whole);
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &reply["usage"]));
}

fn streams(server: &Server) {
    let mut body = json!({ "prompt": PROMPT, "max_tokens": 20, "temperature": 0 });
    let whole = server.complete(&body);
    body["stream"] = json!(true);
    let events = server.complete(&body).events();
    let texts = events.iter().filter_map(|e| e["choices"][0]["text"].as_str());
    assert_eq!(texts.collect::<String>(), whole.text());
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["usage"], whole.json()["usage"]);
    assert!(events.iter().rev().skip(1).all(|event| event.get("usage").is_none()));
}

fn sampling(server: &Server) {
    let ask = |more: Value| {
        let mut body = json!({ "prompt": PROMPT, "max_tokens": 20, "temperature": 1.0 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.complete(&body)
    };
    assert_eq!(ask(json!({ "seed": 7 })).text(), ask(json!({ "seed": 7 })).text());
    assert_ne!(ask(json!({ "seed": 7 })).text(), ask(json!({ "seed": 8 })).text());
    let greedy = ask(json!({ "temperature": 0 })).text();
    let (before, _) = greedy.split_once(" great").unwrap();
    let stopped = ask(json!({ "temperature": 0, "stop": [" great"] }));
    assert_eq!(stopped.text(), before);
    assert_eq!(stopped.json()["choices"][0]["finish_reason"], "stop");
    let tokens = server.post("/tokenize", &json!({ "content": " there" })).json();
    let mut bias = serde_json::Map::new();
    bias.insert(tokens["tokens"][0].to_string(), json!(-100));
    let biased = ask(json!({ "temperature": 0, "logit_bias": bias })).text();
    assert!(!biased.starts_with(" there"), "{biased}");
    let penalised = ask(json!({ "temperature": 0, "repetition_penalty": 50.0 })).text();
    assert_ne!(penalised, greedy);
}

fn logprobs(server: &Server) {
    let body = json!({ "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 3 });
    let reply = server.complete(&body);
    let logprobs = &reply.json()["choices"][0]["logprobs"];
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), reply.text());
    for (i, token) in tokens.iter().enumerate() {
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        assert_eq!(top.len(), 3);
        let chosen = logprobs["token_logprobs"][i].as_f64().unwrap();
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!(chosen <= 0.0 && chosen >= best - 1e-6, "{token} is the likeliest");
    }
    let messages = json!([{ "role": "user", "content": PROMPT }]);
    let body = json!({ "messages": messages, "max_tokens": 3, "temperature": 0,
        "logprobs": true, "top_logprobs": 2 });
    let reply = server.post("/v1/chat/completions", &body).json();
    let content = reply["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 3);
    assert_eq!(content[0]["top_logprobs"][0]["token"], content[0]["token"]);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

fn several_completions(server: &Server) {
    let body = json!({ "prompt": [PROMPT, "The king"], "n": 2, "max_tokens": 10,
        "temperature": 1.0, "seed": 5 });
    let reply = server.complete(&body).json();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(
        choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_ne!(choices[0]["text"], choices[1]["text"], "each has a seed of its own");
    assert_eq!(reply["usage"]["completion_tokens"], 40);
    let alone = json!({ "prompt": "The king", "max_tokens": 10, "temperature": 1.0, "seed": 5 });
    assert_eq!(server.complete(&alone).text(), choices[2]["text"].as_str().unwrap());
}

fn tokens(server: &Server) {
    let text = "Once upon a time — ‘hm’ 🐺";
    let tokens = server.post("/tokenize", &json!({ "content": text })).json();
    let back = server.post("/detokenize", &tokens).json();
    assert_eq!(back, json!({ "content": text }));
    let error = server.post("/detokenize", &json!({ "tokens": [99999] })).error(400);
    assert_eq!(error["param"], "tokens");
}

fn errors(server: &Server) {
    let check = |body: Value, status: u16, key: &str, value: &str| {
        let error = server.complete(&body).error(status);
        assert_eq!(error[key], value, "{body}: {error}");
    };
    check(json!({ "prompt": "a", "model": "gpt-4" }), 404, "code", "model_not_found");
    check(json!({ "prompt": "a", "n": 99 }), 400, "param", "n");
    check(json!({ "prompt": "a", "max_tokens": 600 }), 400, "code", "context_length_exceeded");
    check(json!({ "prompt": vec![1; 600] }), 400, "code", "context_length_exceeded");
    check(json!({ "prompt": [99999] }), 400, "type", "invalid_request_error");
    check(json!({ "prompt": "" }), 400, "type", "invalid_request_error");
    check(
        json!({ "prompt": "a", "logit_bias": { "99999": 1 } }),
        400,
        "type",
        "invalid_request_error",
    );
    check(json!({ "prompt": "a", "tools": [] }), 400, "type", "invalid_request_error");
    assert_eq!(server.get("/v2/none").error(404)["code"], "unknown_url");
    assert_eq!(server.get("/v1/completions").error(405)["code"], "method_not_allowed");
}

#[test]
fn an_api_key_is_required_if_set() {
    let server = Server::start(&["--api-key", "secret"]);
    assert_eq!(server.get("/v1/models").error(401)["code"], "invalid_api_key");
    assert_eq!(server.get("/health").status, 200);
    let with = |key: &str| {
        server.send(&format!(
            "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {key}\r\n\r\n"
        ))
    };
    assert_eq!(with("Bearer secret").status, 200);
    for wrong in ["Bearer secre", "Bearer secrets", "Basic secret", "secret", "Bearer "] {
        assert_eq!(with(wrong).status, 401, "{wrong}");
    }
}

/// OpenAI's own Python client; `cargo xtask ci --only openai-client` installs and runs it.
#[test]
#[ignore = "needs Python with the package openai"]
fn the_official_client_works() {
    let server = Server::start(&[]);
    let python = std::env::var("MLXCEL_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/server/openai_client.py");
    let url = format!("http://{}/v1", server.address);
    let output = std::process::Command::new(python).args([script, &url]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}
