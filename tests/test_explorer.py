"""The explorer: the same content with and without a kernel, and no text of a catalog becomes markup."""

from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from capture_lib import figures
from capture_lib.explorer import Explorer, open_explorer, write_app
from capture_lib.runs import open_run


@pytest.fixture(scope="module")
def explorer(smoke_report: Path) -> Explorer:
    return open_explorer(open_run("smoke"))


def test_a_page_shows_the_query_and_its_hits(explorer: Explorer):
    page = explorer.page(0, "capture-chosen/instance", most=6).data
    assert page.count("<figure") == 6
    assert explorer.queries.ids[0] in page
    right = explorer.gallery.labels[explorer.rankings["capture-chosen/instance"][0].rows[0]][0] in \
        explorer.queries.labels[0]
    assert ("✓" if right else "✗") in page


def test_text_from_a_catalog_stays_text(explorer: Explorer):
    hostile = '<script>alert("x")</script>'
    queries = replace(explorer.queries, captions=[hostile] * len(explorer.queries.ids),
                      labels=[[hostile]] * len(explorer.queries.ids))
    gallery = replace(explorer.gallery, labels=[[hostile]] * len(explorer.gallery.ids))
    page = Explorer(explorer.run, queries, gallery, explorer.choices).page(0, "image-only").data
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_live_view_follows_its_controls(explorer: Explorer):
    view = explorer.view()
    query, button, method = view.children[0].children
    page = view.children[1]
    before = page.value
    button.click()
    assert query.value == 1 and page.value != before
    method.value = "text-only"
    assert "box 1" not in page.value  # one vector a photo: no instance asked


def test_the_app_runs_in_a_kernel(smoke_report: Path, tmp_path: Path):
    app = nbformat.read(write_app("smoke", None, tmp_path / "explore.ipynb"), as_version=4)
    outputs = NotebookClient(app, timeout=120).execute().cells[0].outputs
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)


def test_a_gallery_escapes_and_frames():
    photo = np.zeros((20, 30, 3), np.uint8)
    shown = figures.gallery([photo, photo], ["<b>", "ok"], [figures.RIGHT, figures.WRONG]).data
    assert "&lt;b&gt;" in shown and figures.RIGHT in shown and figures.WRONG in shown
    assert shown.count("data:image/webp;base64,") == 2
