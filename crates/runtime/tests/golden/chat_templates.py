"""Renders the conversations in `CASES` with transformers and writes `chat_templates.json`.

Run with mlx-lm 0.32.2 and transformers 5.23.0 installed:

    python chat_templates.py

Each case goes through mlx-lm's server preparation of messages and transformers' renderer, so the
file holds what a model behind `mlx_lm.server` would be given. The templates are written for this
test, in the idioms of the families they are named after.
"""

import copy
import json
from pathlib import Path

from mlx_lm.server import process_message_content
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def say(role, content, **extra):
    return {"role": role, "content": content, **extra}


def call(name, arguments, id="call12345"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "What's the weather <now> & \"later\"? 天気",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city"},
                "days": {"type": "integer", "default": 1, "minimum": 0.5},
                "items": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
            },
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "description": "now", "parameters": {}}}

PLAIN = [say("user", "Hello!")]
SYSTEM = [say("system", "  Be brief. "), say("user", " Hi \n")]
LONG = [
    say("system", "Be brief."),
    say("user", "1 < 2 & 'so'?"),
    say("assistant", "<think>\nhm\n</think>\n\nYes."),
    say("user", "Sure?\n"),
]
TWO_USERS = [say("user", "a"), say("user", "b")]
TOOLS = [
    say("user", "Weather in Paris?"),
    say(
        "assistant",
        None,
        thinking="I must look.\n",
        tool_calls=[call("get_weather", '{"city": "Paris", "days": 2.0}')],
    ),
    say("tool", '{"temp": 21.5}', tool_call_id="call12345"),
]
TWO_CALLS = [
    say("user", "Weather in Paris and Rome?"),
    say(
        "assistant",
        "Let me look.",
        reasoning="Two cities.",
        tool_calls=[
            call("get_weather", {"city": "Paris"}),
            call("get_weather", {"city": "Röm\n"}, "call67890"),
        ],
    ),
    say("tool", "21", tool_call_id="call12345"),
    say("tool", "25", tool_call_id="call67890"),
    say("assistant", "21 and 25."),
    say("user", "Thanks"),
]
PARTS = [say("user", [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}])]
IMAGE = [
    say("system", "Look."),
    say("user", [{"type": "image"}, {"type": "text", "text": " What is it? "}]),
]
NO_THINK = [say("system", "Be brief. /no_think"), say("user", "Hi"), say("assistant", "\nHo")]
OVERRIDE = [say("system", "Only this. /system_override"), say("user", "Hi")]

CONVERSATIONS = {
    "plain": {"messages": PLAIN},
    "system": {"messages": SYSTEM},
    "long": {"messages": LONG},
    "closed": {"messages": LONG[:3], "add_generation_prompt": False},
    "two_users": {"messages": TWO_USERS},
    "tools": {"messages": TOOLS, "tools": [WEATHER, TIME]},
    "two_calls": {"messages": TWO_CALLS, "tools": [WEATHER]},
    "first_tools": {"messages": SYSTEM, "tools": [WEATHER]},
    "parts": {"messages": PARTS},
    "image": {"messages": IMAGE},
    "no_think": {"messages": NO_THINK},
    "override": {"messages": OVERRIDE},
    "thinking_off": {"messages": PLAIN, "variables": {"enable_thinking": False}},
    "thinking_on": {"messages": LONG, "variables": {"enable_thinking": True, "cutoff": "today"}},
}


def render(template, case):
    messages = copy.deepcopy(case["messages"])
    try:
        process_message_content(messages, keep_images=False)
    except ValueError:
        # A part that is no text: the content stays a list, as for a model that takes images.
        pass
    try:
        rendered, _ = render_jinja_template(
            [messages],
            tools=case.get("tools"),
            chat_template=template,
            add_generation_prompt=case.get("add_generation_prompt", True),
            **SPECIAL,
            **case.get("variables", {}),
        )
        return {"prompt": rendered[0]}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def main():
    goldens = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        for name, case in CONVERSATIONS.items():
            result = render(path.read_text(), case)
            goldens.append({"template": path.stem, "conversation": name, **result})
    out = {"special_tokens": SPECIAL, "conversations": CONVERSATIONS, "goldens": goldens}
    text = json.dumps(out, indent=1, ensure_ascii=False)
    (HERE / "chat_templates.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
