"""A record is kept of a whole report of the checkout's commit, whose notebooks are those of the checkout."""

import json
from pathlib import Path

import nbformat
import pytest

from capture_lib.report import record
from capture_lib.utils import InputError


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A report on one notebook, run at commit abc."""
    cells = [nbformat.v4.new_markdown_cell("# 01 · Data"), nbformat.v4.new_code_cell("x = 1")]
    book = nbformat.v4.new_notebook(cells=cells)
    out = tmp_path / "report"
    for folder in ("notebooks", "report/notebooks", "report/metrics", "report/rankings"):
        (tmp_path / folder).mkdir(parents=True)
    nbformat.write(book, tmp_path / "notebooks" / "01_data.ipynb")
    injected = nbformat.v4.new_code_cell(f"out = '{out}'", metadata={"tags": ["injected-parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[injected, *cells]), out / "notebooks" / "01_data.ipynb")
    (out / "notebooks" / "01_data.html").write_text("a page")
    (out / "metrics" / "01_data.json").write_text(json.dumps({"provenance": {"commit": "abc"}, "photos": 3}))
    (out / "timings.json").write_text("{}")
    monkeypatch.setattr(record, "NOTEBOOKS", tmp_path / "notebooks")
    return out


def test_what_is_kept(report: Path, tmp_path: Path):
    record.check(report, "abc")
    (tmp_path / "kept" / "old").mkdir(parents=True)  # of an earlier record
    record.keep(report, tmp_path / "kept")
    files = {str(file.relative_to(tmp_path / "kept")) for file in (tmp_path / "kept").rglob("*.*")}
    assert files == {"index.html", "figures.html", "figures.csv", "timings.json", "metrics/01_data.json",
                     "notebooks/01_data.ipynb"}
    executed = (tmp_path / "kept" / "notebooks" / "01_data.ipynb").read_text(encoding="utf-8")
    assert "out = 'reports/report'" in executed and str(tmp_path) not in executed
    assert 'href="notebooks/01_data.ipynb"' in (tmp_path / "kept" / "index.html").read_text(encoding="utf-8")


def test_what_is_refused(report: Path, tmp_path: Path):
    with pytest.raises(InputError, match="01_data was run at commit abc, not abd"):
        record.check(report, "abd")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 2")]),
                   tmp_path / "notebooks" / "01_data.ipynb")
    with pytest.raises(InputError, match="01_data.ipynb: differs from"):
        record.check(report, "abc")
    (report / "notebooks" / "01_data.ipynb").unlink()
    with pytest.raises(InputError, match="01_data.ipynb was not run"):
        record.check(report, "abc")


@pytest.mark.parametrize("described", ["abc+", ""])  # with changes, or no repository
def test_a_checkout_with_changes_is_refused(described: str, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture):
    monkeypatch.setattr(record.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": described + "\n"}))
    assert record.main(["smoke"]) == 2
    assert "commit them first" in capsys.readouterr().err
