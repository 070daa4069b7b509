"""The official OpenAI client sends images: BASE_URL and two data URLs as the arguments."""

import sys

from openai import BadRequestError, OpenAI

base_url, one, other = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key="none", max_retries=0)


def ask(url, **more):
    parts = [
        {"type": "text", "text": "what is it"},
        {"type": "image_url", "image_url": {"url": url, **more}},
    ]
    return client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": parts}], max_completion_tokens=5,
        temperature=0, logprobs=True,
    )


first, again, second = ask(one), ask(one, detail="auto"), ask(other)
assert first.usage.prompt_tokens > 256, first.usage
assert again.usage.prompt_tokens_details.cached_tokens >= 256, again.usage
# The text before the image is the same.
assert second.usage.prompt_tokens_details.cached_tokens < 50, second.usage
assert first.choices[0].logprobs == again.choices[0].logprobs != second.choices[0].logprobs

for url, more in [("https://example.org/a.png", {}), (one[:60], {}), (one, {"detail": "low"})]:
    try:
        ask(url, **more)
        raise AssertionError(f"{url[:40]} was answered")
    except BadRequestError as caught:
        assert caught.param == "messages", caught
print("all as OpenAI's client expects")
