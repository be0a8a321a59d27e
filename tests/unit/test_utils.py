"""Files are written whole or not at all, and nothing that a user names is ever removed."""

import pytest

from capture_lib import cli
from capture_lib.report import execute as reports
from capture_lib.utils import InputError, write_atomically


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    with pytest.raises(InputError, match="thesis: a folder stands where a file is to be written"):
        with write_atomically(thesis) as beside:
            beside.write_text("{}")
    assert (thesis / "chapter.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis"]


def test_a_failed_write_keeps_what_was_there(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("old")
    with pytest.raises(RuntimeError):
        with write_atomically(file) as beside:
            beside.write_text("half")
            raise RuntimeError
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["figures.json"]


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
    reports.check_ours(out)  # empty
    (out / reports.MARK).touch()
    (out / "index.html").write_text("a report")
    reports.check_ours(out)
    assert (out / "index.html").read_text() == "a report"
