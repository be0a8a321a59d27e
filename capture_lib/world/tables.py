"""Tables of words and shapes, which lie beside this module as JSON."""

import json
from pathlib import Path


def read_table(name: str) -> dict:
    """Return the content of `<name>.json`."""
    file = Path(__file__).with_name(f"{name}.json")
    return json.loads(file.read_text(encoding="utf-8"))
