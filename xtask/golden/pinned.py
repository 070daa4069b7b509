"""The versions that goldens are made with."""

import importlib.metadata
import pathlib
import re


def versions():
    """Installed versions of the pinned packages; exits where they differ from the pins."""
    found = {}
    text = pathlib.Path(__file__).with_name("requirements.txt").read_text()
    for name, pin in re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)$", text, re.MULTILINE):
        found[name] = importlib.metadata.version(name)
        if found[name] != pin:
            raise SystemExit(f"{name} is {found[name]}, the goldens are pinned to {pin}")
    return found
