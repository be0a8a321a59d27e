"""Notebooks are executed, kept, resumed; the page of one opens offline and escapes what it shows."""

import base64
import json
import re
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from drawn import make_catalog
from launched import processes

from capture_lib.experiments.run import MARK
from capture_lib.report import NUMBERED, site
from capture_lib.report import execute as reports
from capture_lib.report import page as pages
from capture_lib.report.kernel import OwnKernels
from capture_lib.utils import NOTEBOOKS, InputError

PARAMETERS = 'profile: str = "smoke"\ncatalog: str = ""\nout: str = ""\nseed: int = 0'
LOADED = re.compile(r"""<script|<link|@import|src(set)?\s*=\s*["']?(https?:)?//|url\(\s*["']?(https?:)?//""")


def write_notebook(file: Path, head: str, *cells: str) -> None:
    """A notebook with a head, a cell of parameters, and cells of code."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_markdown_cell(head),
                      nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, file)


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Two notebooks: a good one with everything a page can hold, and one that divides by zero."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(
        folder / "01_good.ipynb",
        "# The 数据\n\n**Goal.** Show `what` is\nthere.\n\nThen more. With $\\tau \\le 1$.",
        "from pathlib import Path\nimport os\n(Path(out) / 'ran.txt').open('a').write(f'{seed}')",
        "print('report', os.environ['CAPTURE_REPORT'], profile)",
        "from ipywidgets import IntSlider\nIntSlider()",
    )
    write_notebook(folder / "02_bad.ipynb", "# Bad", "fine = 1", "fine / 0", "'never reached'")
    monkeypatch.setattr(reports, "NEEDED", {"01": (), "02": ()})
    return folder


def execute_here(file, parameters, folder):
    """Leave a page and the seed, without a kernel."""
    with (folder.parent / "ran.txt").open("a") as ran:
        ran.write(str(parameters["seed"]))
    folder.mkdir(exist_ok=True)
    (folder / f"{file.stem}.html").write_text("page")


def run_tasks_here(tasks, jobs, past):
    """Do tasks one after another, in this process."""
    for name, task in tasks.items():
        task.work()
        yield name, 0.1


@pytest.fixture
def here(monkeypatch):
    """Nothing is executed, nor in another process."""
    monkeypatch.setattr(reports, "execute", execute_here)
    monkeypatch.setattr(reports, "run_tasks", run_tasks_here)


def run(notebooks, out, **options):
    return reports.run_notebooks("smoke", None, out, seed=7, notebooks=notebooks, **options)


def execute(file, out):
    """Execute a notebook in this process."""
    reports.execute(file, {"profile": "smoke", "catalog": "", "out": str(out), "seed": 7}, out / "notebooks")


def ran(out):
    """How many times the good notebook was executed, and with which seed."""
    return (out / "ran.txt").read_text()


def test_a_run_executes_keeps_fails_clearly_and_resumes(notebooks, tmp_path, capsys):
    out = tmp_path / "out {1}"  # papermill takes braces in a path for a format
    out.mkdir()
    with pytest.raises(reports.NotebookFailed) as failure:
        run(notebooks, out, jobs=1)
    assert re.fullmatch(r"\[1/2\] 01_good: [\d.]+ s; [\d.]+ s gone\n", capsys.readouterr().out)

    kept = out / "notebooks" / "02_bad.failed.ipynb"
    message = str(failure.value)  # the injected parameters are a cell too
    assert message.startswith("notebook 02_bad, cell 4: ZeroDivisionError: division by zero")
    assert str(kept) in message and "--resume" in message and "\n" not in message
    assert "division by zero" in kept.read_text()
    assert {file.name for file in (out / "notebooks").iterdir()} == {
        "01_good.ipynb", "01_good.html", "02_bad.failed.ipynb", "02_bad.failed.html"}

    executed = nbformat.read(out / "notebooks" / "01_good.ipynb", as_version=4)
    assert "widgets" not in executed.metadata and "papermill" not in executed.metadata
    printed = [output.get("text") for cell in executed.cells for output in cell.get("outputs", [])]
    assert "report 1 smoke\n" in printed

    index = site.build(out).read_text()
    assert "Failed in its last run" in index and 'href="notebooks/02_bad.failed.html"' in index
    assert "ZeroDivisionError: division by zero" in index
    assert "The 数据" in index and "Show what is\nthere." in index and "Then more" not in index

    write_notebook(notebooks / "02_bad.ipynb", "# Bad", "'mended'")
    run(notebooks, out, resume=True, jobs=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "01_good: kept from an earlier run" and lines[1].startswith("[1/1] 02_bad: ")
    assert ran(out) == "7"
    assert not kept.exists() and not kept.with_suffix(".html").exists()
    assert "Failed" not in site.build(out).read_text()


def test_a_run_in_two_sittings_keeps_the_seconds_of_both(notebooks, tmp_path, here, monkeypatch):
    def interrupted(*_):
        yield "training", 300.0
        raise KeyboardInterrupt

    def finished(*_):
        yield from {"training": 2.0, "01_good": 1.0, "02_bad": 1.0}.items()

    file = tmp_path / "out" / "timings.json"
    monkeypatch.setattr(reports, "run_tasks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(notebooks, tmp_path / "out")
    timings = json.loads(file.read_text())
    assert timings.keys() == {"training", reports.SO_FAR}
    timings[reports.SO_FAR]["seconds"] = 5000.0  # as if it had taken so long
    file.write_text(json.dumps(timings | {"odd": 5}))

    monkeypatch.setattr(reports, "run_tasks", finished)
    run(notebooks, tmp_path / "out", resume=True)
    timings = json.loads(file.read_text())
    assert timings.keys() == {"training", "01_good", "02_bad", reports.WHOLE}
    assert timings["training"]["seconds"] == 300.0 and timings[reports.WHOLE]["seconds"] >= 5000
    run(notebooks, tmp_path / "out")  # not a sitting of the same run
    timings = json.loads(file.read_text())
    assert timings["training"]["seconds"] == 2.0 and timings[reports.WHOLE]["seconds"] < 1000


def test_resume_runs_again_what_has_changed(notebooks, tmp_path, here, capsys):
    out = tmp_path / "out"
    run(notebooks, out, only="01")
    assert [file.name for file in (out / "notebooks").iterdir()] == ["01_good.html"]
    reports.run_notebooks("smoke", None, out, seed=8, notebooks=notebooks, only="01", resume=True)
    assert ran(out) == "78" and capsys.readouterr().out == ""
    reports.run_notebooks("smoke", None, out, seed=8, notebooks=notebooks, resume=True)
    assert ran(out) == "788" and capsys.readouterr().out == "01_good: kept from an earlier run\n"
    files = sorted(notebooks.glob("*.ipynb"))
    parameters = {"profile": "smoke", "catalog": "", "out": str(out), "seed": 8}
    before = reports.fingerprints(files, parameters, "")
    write_notebook(files[1], "# Other")
    after = reports.fingerprints(files, parameters, "")
    assert before[files[0]] == after[files[0]] and before[files[1]] != after[files[1]]
    write_notebook(files[0], "# Other")  # later notebooks build on this one
    assert reports.fingerprints(files, parameters, "")[files[1]] != after[files[1]]
    assert reports.fingerprints(files, parameters, "other photos")[files[0]] != before[files[0]]


def test_a_change_anywhere_in_the_library_is_heeded(notebooks, tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "room" / "templates").mkdir(parents=True)
    (package / "room" / "__pycache__").mkdir()
    monkeypatch.setattr(reports, "PACKAGE", package)
    found = []
    for name in ("room/module.py", "room/templates/page.j2", "words.json"):
        (package / name).write_text("1")
        found.append(reports.fingerprints(sorted(notebooks.glob("*.ipynb"))))
    (package / "room" / "__pycache__" / "module.pyc").write_text("2")
    assert reports.fingerprints(sorted(notebooks.glob("*.ipynb"))) == found[-1]
    assert len({str(prints) for prints in found}) == 3


def test_cells_that_need_what_a_catalog_lacks_are_left_out():
    cells = [nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("2", metadata={"tags": ["needs: labels"]}),
             nbformat.v4.new_code_cell("3", metadata={"tags": ["picture", "needs: labels", "needs: boxes"]})]
    notebook = nbformat.v4.new_notebook(cells=cells)
    reports.skip(notebook, {"boxes", "captions"})
    assert [cell.cell_type for cell in notebook.cells] == ["code", "code", "markdown"]
    assert notebook.cells[2].source == "*Left out: it needs boxes, which this catalog does not have.*"
    nbformat.validate(notebook)


def test_what_catalogs_lack(smoke_run, tmp_path):
    assert reports.lacking(smoke_run) == set()
    little = replace(smoke_run, catalog=make_catalog(tmp_path / "shop", 2, 1, 0, 0))
    assert {"training", "world", "queries", "labels", "comparison", "boxes"} <= reports.lacking(little)
    books = "\n".join(file.read_text(encoding="utf-8") for file in NOTEBOOKS.glob(NUMBERED))
    tags = set(re.findall('"needs: ([^"]*)"', books))
    assert tags <= {"gallery", "queries", "labels", "comparison", "boxes", "labelled boxes", "captions", "training",
                    "world"}  # a misspelt one would never be heeded


def test_the_kernel_is_this_interpreters_whatever_is_called_python3(tmp_path, monkeypatch):
    spec = {"argv": ["/no/such/python", "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    for variable in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
        kernels = tmp_path / variable / "kernels" / "python3"
        kernels.mkdir(parents=True)
        (kernels / "kernel.json").write_text(json.dumps(spec))
        monkeypatch.setenv(variable, str(tmp_path / variable))
    write_notebook(tmp_path / "01_where.ipynb", "# Where", "import sys\nprint(sys.executable)")
    execute(tmp_path / "01_where.ipynb", tmp_path)
    cells = nbformat.read(tmp_path / "notebooks" / "01_where.ipynb", 4).cells
    assert cells[-1].outputs[0].text == f"{sys.executable}\n"
    assert OwnKernels().find_kernel_specs().keys() == {"python3"}
    assert OwnKernels().get_kernel_spec("python3").argv[0] == sys.executable


def test_what_there_was_no_room_for_is_told_by_its_cause(notebooks, tmp_path, monkeypatch):
    def execute_half(source, target, *arguments, **options):
        Path(target).write_text('{"cells": [')
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("papermill.execute_notebook", execute_half)
    with pytest.raises(reports.NotebookFailed, match="notebook 01_good, .*No space left on device"):
        execute(notebooks / "01_good.ipynb", tmp_path)


def test_the_report_of_another_catalog_is_left_alone(notebooks, tmp_path, here):
    one, other = (make_catalog(tmp_path / place / "shop", 1, 1, 0, 0).folder for place in "ab")
    reports.run_notebooks("smoke", one, tmp_path / "out", notebooks=notebooks, only="01")
    with pytest.raises(InputError, match=f"out: holds a report on {one}; name another folder with --out"):
        reports.run_notebooks("smoke", other, tmp_path / "out", notebooks=notebooks, only="01")
    with pytest.raises(InputError, match="out: holds a report on"):
        run(notebooks, tmp_path / "out", only="01")
    assert ran(tmp_path / "out") == "0"


def run_in_a_process(notebooks, out, said):
    def execute(file, parameters, folder):
        limit = time.monotonic() + 300
        while "waiting for another process" not in said.read_text():  # which the second says
            assert time.monotonic() < limit
            time.sleep(0.01)
        execute_here(file, parameters, folder)

    reports.execute, reports.run_tasks = execute, run_tasks_here  # in this process alone
    with said.open("a") as file, redirect_stderr(file), redirect_stdout(file):
        run(notebooks, out, only="01")


def test_two_runs_into_one_folder_take_turns(notebooks, tmp_path):
    out, said = tmp_path / "out", tmp_path / "said"
    both = [processes().Process(target=run_in_a_process, args=(notebooks, out, said)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    assert f"waiting for another process that makes the report in {out} …\n" in said.read_text()
    assert ran(out) == "77"


def test_a_users_files_in_a_report_stay(notebooks, tmp_path, here):
    out = tmp_path / "out"
    out.mkdir()
    reports.claim_folder(out, reports.world_folder(reports.profiles.get("smoke")))
    mine = [out / "notes.md", out / "pictures" / "a.png", out / "metrics.txt"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    run(notebooks, out, only="01")
    site.build(out)
    assert [file.read_text() for file in mine] == ["mine"] * 3


def test_a_dead_kernel_is_told_like_any_failure(tmp_path):
    write_notebook(tmp_path / "01_dies.ipynb", "# Dies", "import os; 'done'", "os._exit(1)", "'never reached'")
    with pytest.raises(reports.NotebookFailed, match="notebook 01_dies, the kernel died"):
        execute(tmp_path / "01_dies.ipynb", tmp_path)
    kept = nbformat.read(tmp_path / "notebooks" / "01_dies.failed.ipynb", as_version=4)
    assert any(output["data"]["text/plain"] == "'done'" for cell in kept.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("error, reason", [
    (TimeoutError("Cell timed out"), "Cell timed out"),
    (OSError(28, "No space left on device"), r"\[Errno 28\] No space left on device"),
])
def test_what_the_machine_lacks_is_told_like_any_failure(notebooks, tmp_path, monkeypatch, error, reason):
    def fail(*arguments, iopub_timeout, **options):
        assert iopub_timeout == reports.MAX_SILENCE
        raise error
    monkeypatch.setattr("papermill.execute_notebook", fail)
    with pytest.raises(reports.NotebookFailed, match=f"notebook 01_good, {reason}"):
        execute(notebooks / "01_good.ipynb", tmp_path)


def test_a_folder_that_no_run_made_is_left_alone(notebooks, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(InputError, match="holds files that no run made"):
        run(notebooks, tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["index.html"]
    (tmp_path / MARK).write_text(str(tmp_path / "shop"))
    reports.claim_folder(tmp_path, tmp_path / "shop")


def test_wrong_choices_are_refused(notebooks, tmp_path):
    with pytest.raises(InputError, match="no notebook 09…ipynb here"):
        run(notebooks, tmp_path / "out", only="09")
    with pytest.raises(InputError, match="no notebook NN…ipynb here"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="no catalog.parquet here"):
        reports.run_notebooks("smoke", tmp_path / "nothing", tmp_path / "out", notebooks=notebooks)


@pytest.mark.parametrize("out", ["file", "file/below", "file/far/below"])
def test_a_report_below_a_file_is_refused_before_anything_runs(notebooks, tmp_path, capsys, out):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="; name another folder with --out"):
        run(notebooks, tmp_path / out)
    assert (tmp_path / "file").read_text() == "kept" and capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["{half", "[1]"])
def test_damaged_timings_are_named(notebooks, tmp_path, text):
    out = tmp_path / "out"
    reports.claim_folder(out, reports.world_folder(reports.profiles.get("smoke")))
    (out / "timings.json").write_text(text)
    with pytest.raises(InputError, match="timings.json: not a JSON object; remove it"):
        run(notebooks, out)


def test_an_interruption_leaves_no_half(notebooks, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt
    monkeypatch.setattr("papermill.execute_notebook", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(notebooks / "01_good.ipynb", tmp_path)
    assert {file.name for file in notebooks.iterdir()} == {"01_good.ipynb", "02_bad.ipynb"}  # as before
    assert not list(tmp_path.rglob("*.html"))


# ---- the pages


def test_a_notebook_page_is_offline_and_whole():
    code = nbformat.v4.new_code_cell("1", execution_count=1, outputs=[
        nbformat.v4.new_output("display_data", {"text/latex": r"$\frac{a}{b}$"}),
        nbformat.v4.new_output("stream", name="stdout", text="<script>alert('caption')</script>"),
    ])
    text = ("# 标题 <b>bold</b>\n\nInline $x_i \\leq \\tau$, [next](05_retrieval.ipynb#top), "
            "[paper](https://arxiv.org).\n\n"
            "$$ a = \\frac{1}{2} $$\n\n$\\nosuchcommand{x} < 1$")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), code])
    page = pages.to_html(notebook, "title")
    assert not LOADED.search(page)
    assert "标题" in page and "Noto Sans CJK SC" in page
    assert 'href="05_retrieval.html#top"' in page and 'href="https://arxiv.org"' in page
    assert len(re.findall(r'<img[^>]*class="math"', page)) == 3  # x, a and the cell's output
    assert page.count('class="math-block"') == 1
    assert r'<code class="math">\nosuchcommand{x} &lt; 1</code>' in page
    assert "$" not in re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize("tex", [
    r"H = H_{\mathrm{IMG}} \odot H_{\mathrm{TXT}}", r"\Vert x \Vert_2 \leq 1",
    r"\sum_{i=1}^{N} \dfrac{1}{i}", r"\operatorname{softmax}(QK^\top / \sqrt{d}) V",
    "\\mathbb{R}^{B \\times R\n\\times D}",
])
def test_common_formulas_are_drawn(tex):
    drawn = pages.formula(tex)
    assert drawn.startswith("<img")
    assert b"<path" in base64.b64decode(re.search(r"base64,([^\"]+)", drawn)[1])
