"""Tables of words, shapes and settings, which lie beside this module as JSON."""

import json
from pathlib import Path
from types import SimpleNamespace


def read_table(name: str) -> dict:
    """Return the content of `<name>.json`."""
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))


def read_settings(name: str) -> SimpleNamespace:
    """Return the settings of `<name>.json`, where each has a value and a note that explains it."""
    return SimpleNamespace(**{key: value for key, (value, _) in read_table(name).items()})
