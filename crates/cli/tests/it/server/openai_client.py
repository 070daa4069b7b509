"""The official OpenAI client against a running server: BASE_URL as the only argument."""

import sys

from openai import BadRequestError, NotFoundError, OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
prompt = "Once upon a time"

models = client.models.list()
assert [m.id for m in models.data] == ["demo"], models

completion = client.completions.create(
    model="demo", prompt=prompt, max_tokens=12, temperature=0, logprobs=2, stop=["zzz"], seed=1
)
text = completion.choices[0].text
assert text.startswith(" there was") and completion.usage.completion_tokens == 12, completion
assert len(completion.choices[0].logprobs.tokens) == 12, completion

streamed = client.completions.create(
    model="demo", prompt=prompt, max_tokens=12, temperature=0, stream=True
)
assert "".join(chunk.choices[0].text for chunk in streamed) == text

messages = [{"role": "system", "content": "Tell a tale."}, {"role": "user", "content": prompt}]
chat = client.chat.completions.create(
    model="demo", messages=messages, max_completion_tokens=10, n=2, temperature=1.0, seed=3,
    logprobs=True, top_logprobs=2, presence_penalty=0.5, frequency_penalty=0.5,
    logit_bias={"5": -100}, user="test",
)
assert len(chat.choices) == 2 and chat.choices[0].message.role == "assistant", chat
assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2, chat

usage, parts, finish = None, [], None
for chunk in client.chat.completions.create(
    model="demo", messages=messages, max_tokens=10, temperature=0, stream=True,
    stream_options={"include_usage": True},
):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        parts.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
assert usage.completion_tokens == 10 and finish == "length" and "".join(parts), (usage, parts)

for error, code, arguments in [
    (NotFoundError, "model_not_found", {"model": "gpt-4", "prompt": "a"}),
    (BadRequestError, "context_length_exceeded", {"model": "demo", "prompt": "a", "max_tokens": 999}),
]:
    try:
        client.completions.create(**arguments)
        raise AssertionError(f"{code} was expected")
    except error as caught:
        assert caught.code == code, caught
print("all as OpenAI's client expects")
