"""The progress bar: what it says at its end, and that one process alone says it."""

import pytest

from capture_lib.utils import progress, say


@pytest.fixture(autouse=True)
def into_a_log(monkeypatch):
    """As in a report; else the bar is live where some other test has imported ipykernel."""
    monkeypatch.setenv("CAPTURE_REPORT", "1")


def test_a_log_gets_one_line_with_the_count_and_the_last_note(capsys):
    seen = []
    for item in progress([3, 5, 7], "things", note=lambda: f"last {seen[-1]}"):
        seen.append(item)
    out, err = capsys.readouterr()
    assert seen == [3, 5, 7] and out.startswith("things: 3 in ") and out.endswith(" s; last 7\n") and err == ""


@pytest.mark.parametrize("items", [[], [1]])
def test_without_a_note_there_is_none(capsys, items):
    assert list(progress(items, "things")) == items
    assert capsys.readouterr().out.endswith(" s\n")


def test_nothing_is_asked_for_a_note_where_nothing_was_done(capsys):
    assert list(progress([], "things", note=lambda: [][0])) == []


def test_of_many_processes_the_first_alone_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    say("made")
    assert list(progress([1, 2], "things")) == [1, 2] and capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    say("made")
    assert list(progress([1, 2], "things")) == [1, 2] and capsys.readouterr().out.startswith("made\nthings: 2 in ")


def test_the_live_bar_shows_the_note(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("CAPTURE_REPORT", raising=False)
    monkeypatch.setattr("capture_lib.progress.tqdm", lambda *a, **k: Bar(*a, **k))
    assert list(progress([1, 2], "things", note=lambda: "loss 3")) == [1, 2] and Bar.said == ["loss 3", "loss 3"]


class Bar:
    """Takes what the bar is told."""

    said: list[str] = []

    def __init__(self, items, **_):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def set_postfix_str(self, text, refresh):
        self.said.append(text)
