"""Files are written whole or not at all, nothing that a user names is removed, and progress is one line in a log."""

import pytest

from capture_lib import cli
from capture_lib.experiments.run import claim_folder
from capture_lib.utils import InputError, progress, raise_faults, say, write_atomically, write_json


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    with pytest.raises(InputError, match="thesis: a folder stands where a file is to be written"):
        write_json(thesis, {})
    assert (thesis / "chapter.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_failed_write_keeps_what_was_there(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("old")
    with pytest.raises(RuntimeError):
        with write_atomically(file) as beside:
            beside.write_text("half")
            raise RuntimeError
    with pytest.raises(ValueError):
        write_json(file, float("nan"))
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_of_many_faults_twenty_are_told_and_the_rest_is_counted():
    raise_faults([])
    with pytest.raises(InputError) as error:
        raise_faults([f"line {number}" for number in range(1, 1_026)])
    lines = str(error.value).splitlines()
    assert lines[:20] == [f"line {number}" for number in range(1, 21)]
    assert lines[20:] == ["… and 1,005 more faults of this kind"]


def test_a_report_goes_only_into_an_empty_folder_or_one_that_a_run_made(tmp_path, capsys):
    project = tmp_path / "project"
    (project / "pictures").mkdir(parents=True)
    (project / "pictures" / "mine.png").write_bytes(b"mine")
    (project / "index.html").write_text("my page")
    assert cli.main(["run", "--profile", "smoke", "--out", str(project)]) == 2
    assert "holds files that no run made" in capsys.readouterr().err
    assert (project / "pictures" / "mine.png").read_bytes() == b"mine"
    assert (project / "index.html").read_text() == "my page"


def test_a_folder_that_a_run_made_is_taken_again(tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    claim_folder(out, tmp_path / "shop")  # empty
    (out / "index.html").write_text("a report")
    claim_folder(out, tmp_path / "shop")
    with pytest.raises(InputError, match="holds a report on .*/shop; name another folder with --out"):
        claim_folder(out, tmp_path / "other" / "shop")
    assert (out / "index.html").read_text() == "a report"


# ---- progress


@pytest.fixture
def in_a_report(monkeypatch):
    """Print lines instead of a live bar."""
    monkeypatch.setenv("CAPTURE_REPORT", "1")


@pytest.mark.usefixtures("in_a_report")
def test_a_log_gets_one_line_with_the_count_and_the_last_note(capsys):
    seen = []
    for item in progress([3, 5, 7], "things", note=lambda: f"last {seen[-1]}"):
        seen.append(item)
    out, err = capsys.readouterr()
    assert seen == [3, 5, 7]
    assert out.startswith("things: 3 in ") and out.endswith(" s; last 7\n") and err == ""


@pytest.mark.usefixtures("in_a_report")
def test_without_items_nothing_is_asked_for_a_note(capsys):
    assert list(progress([], "things", note=lambda: [][0])) == []
    assert list(progress([1], "things")) == [1]
    assert all(line.endswith(" s") for line in capsys.readouterr().out.splitlines())


@pytest.mark.usefixtures("in_a_report")
def test_of_many_processes_the_first_alone_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    say("made")
    assert list(progress([1, 2], "things")) == [1, 2]
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    say("made")
    assert list(progress([1, 2], "things")) == [1, 2]
    assert capsys.readouterr().out.startswith("made\nthings: 2 in ")


def test_the_live_bar_shows_the_note(monkeypatch):
    notes = []

    class Bar(list):
        def __init__(self, items, **_):
            super().__init__(items)

        def set_postfix_str(self, text, refresh):
            notes.append(text)

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("CAPTURE_REPORT", raising=False)
    monkeypatch.setattr("tqdm.tqdm", Bar)
    assert list(progress([1, 2], "things", note=lambda: "loss 3")) == [1, 2]
    assert notes == ["loss 3", "loss 3"]
