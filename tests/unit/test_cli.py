"""The command line: what a user types, what comes out, and one clear line for every mistake."""

import inspect
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from drawn import make_catalog
from PIL import Image

from capture_lib import cli, experiments, explorer, profiles, report, world
from capture_lib.experiments.search import Answer
from capture_lib.report.execute import STOPPED, NotebookFailed
from capture_lib.report.figures import PICTURE_MARK
from capture_lib.report.schedule import ProcessKilled
from capture_lib.utils import ROOT, write_json

METRICS = Path(__file__).parents[1] / "data" / "reference" / "metrics_small"


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def complaint(capsys: pytest.CaptureFixture) -> str:
    """Return what was said on the error stream: never a traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.startswith("capture: ")
    return text


def test_help_lists_the_commands_and_brings_no_heavy_module():
    command = [sys.executable, "-X", "importtime", "-m", "capture_lib", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("run", "catalog", "download", "evaluate", "search", "explore"):
        assert f"\n  {name} " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "pandas", "numpy", "pyarrow", "httpx", "rich", "matplotlib"}


def test_evaluate_prints_what_the_released_script_printed(tmp_path: Path, capsys):
    file = tmp_path / "figures.json"
    assert run("evaluate", "--lists", METRICS, "--rankings", METRICS / "retrieval_id_list.txt", "--json", file) == 0
    expected = json.loads((METRICS / "released_script_results.json").read_text())
    ours = json.loads(file.read_text())
    for top, figures in expected.items():
        for figure, value in figures.items():
            assert ours["released"][f"{figure}@{top.removeprefix('top')}"]["value"] == pytest.approx(value, abs=1e-9)
    printed = capsys.readouterr().out
    assert "released" in printed and "standard" in printed
    assert f"{100 * expected['top10']['mAP']:.2f}" in printed
    assert "120 of 120 queries are labelled and scored" in printed


def test_evaluate_says_what_is_missing_and_never_writes_over_what_it_reads(tmp_path: Path, capsys):
    line = "{}#####c#####http://a#####http://b#####{}\n"
    inputs = {tmp_path / "x_gallery.txt": line.format("g", "A"), tmp_path / "r.csv": "q,g\n",
              tmp_path / "x_test.txt": line.format("q", "A") + line.format("p", "A") + line.format("o", "")}
    for file, text in inputs.items():
        file.write_text(text)
    (tmp_path / "link").symlink_to(tmp_path / "r.csv")
    command = ("evaluate", "--lists", tmp_path, "--rankings", tmp_path / "r.csv")
    for option, middle in ((), "50.00"), (("--missing", "zero"), "50.00"), (("--missing", "leave-out"), "100.00"):
        assert run(*command, *option) == 0
        said = capsys.readouterr()
        assert f"standard mAP@10     {middle:>6}" in said.out and "queries have no ranking and" in said.err
        assert ("2 of 3" if middle == "50.00" else "1 of 1") + " queries are labelled and scored" in said.out
    for target in (*inputs, tmp_path / "link", tmp_path / ".." / tmp_path.name / "r.csv"):
        assert run(*command, "--json", target) == 2
        assert ("is a link" if target.is_symlink() else "is there already") in complaint(capsys)
    assert {file: file.read_text() for file in inputs} == inputs
    assert run(*command, "--json", tmp_path / "new" / "figures.json") == 0
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert (figures["queries"], figures["labelled"]) == (3, 2)


def test_figures_and_addresses_replace_their_own_kind_alone(tmp_path: Path, capsys):
    evaluate = ("evaluate", "--lists", METRICS, "--rankings", METRICS / "retrieval_id_list.txt", "--json")
    assert run(*evaluate, tmp_path / "a.json") == run(*evaluate, tmp_path / "a.json") == 0
    ours = json.loads((tmp_path / "a.json").read_text())
    write_json(tmp_path / "mine.json", {"labelled": 3, "said": '"made_by": "capture evaluate"', "figures": ours})

    (tmp_path / "t.csv").write_text("sample_id,image,caption\na,http://127.0.0.1/a.jpg,made_by capture download\n")
    made = tmp_path / "made"
    assert run("catalog", "--images", tmp_path, "--out", made, "--table", tmp_path / "t.csv") == 0
    export = ("download", made, "--export")
    assert run(*export, tmp_path / "a.parquet") == run(*export, tmp_path / "a.parquet") == 0
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert list(table) == ["sample_id", "url", "mirror"]
    table.to_parquet(tmp_path / "mine.parquet")

    os.link(made / "catalog.parquet", tmp_path / "link.parquet")
    taken = [tmp_path / "mine.parquet", made / "catalog.parquet", tmp_path / "link.parquet", tmp_path / "mine.json"]
    before = [file.read_bytes() for file in taken]
    capsys.readouterr()
    for file in taken:
        assert run(*(evaluate if file.suffix == ".json" else export), file) == 2
        assert f"{file}: is there already" in complaint(capsys)
    assert [file.read_bytes() for file in taken] == before
    assert run(*export, tmp_path / "e.csv") == 2
    assert "end its name with .parquet" in complaint(capsys) and not (tmp_path / "e.csv").exists()


def test_catalog_of_lists_writes_what_is_odd_in_them(tmp_path: Path, capsys):
    line = "7#####cap#####http://127.0.0.1/7.jpg#####http://127.0.0.1/7m.jpg#####A b#;#A b\r\n"
    (tmp_path / "product1m_test.txt").write_bytes(line.encode())
    assert run("catalog", "--lists", tmp_path, "--out", tmp_path / "made") == 0
    out = capsys.readouterr().out
    assert "\ntest    1\n" in out and "split gallery: no samples" in out
    assert "\ntest: 1 CRLF line ends (" in out and "\ntest: 1 the same label twice in one photo (" in out
    assert "CRLF line ends,test,1" in (tmp_path / "made" / "quality.csv").read_text(encoding="utf-8-sig")


def test_a_catalog_grows(tmp_path: Path, capsys):
    (tmp_path / "a.csv").write_text("sample_id,image\na,http://127.0.0.1/a.jpg\n")
    (tmp_path / "b.csv").write_text("sample_id,image\nb,http://127.0.0.1/b.jpg\n")
    (tmp_path / "product1m_train.txt").write_text("9#####cap#####http://127.0.0.1/9.jpg#####http://127.0.0.1/9m.jpg\n")
    table = ("catalog", "--images", tmp_path, "--out", tmp_path / "made", "--table")
    assert run(*table, tmp_path / "a.csv", "--add") == 2
    assert "--add: there is no catalog in" in complaint(capsys)
    assert run(*table, tmp_path / "a.csv") == run(*table, tmp_path / "a.csv") == 0
    assert run(*table, tmp_path / "b.csv") == 2
    assert "--add" in complaint(capsys)
    assert run(*table, tmp_path / "b.csv", "--add") == 0
    assert run("catalog", "--lists", tmp_path, "--out", tmp_path / "made", "--add") == 0
    out = capsys.readouterr().out
    assert "\ntrain    3\n" in out
    assert run("download", tmp_path / "made", "--export", tmp_path / "urls.parquet") == 0
    assert "urls.parquet: 3 addresses" in capsys.readouterr().out
    assert run("download", tmp_path / "made", "--import", tmp_path / "none") == 2
    assert "no such folder" in complaint(capsys)


def test_a_catalog_in_the_present_folder_and_photos_that_nobody_can_fetch(tmp_path: Path, capsys, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    (tmp_path / "t.csv").write_text("sample_id,image\na,a.png\n")
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    assert run("catalog", "--table", tmp_path / "t.csv", "--images", photos, "--out", ".") == 0
    (tmp_path / "made" / "images" / "a.png").unlink()
    assert run("download", ".") == 1
    assert "1 have no address on the web" in capsys.readouterr().out


def test_more_faults_than_are_said_lie_in_a_file(tmp_path: Path, capsys):
    rows = "".join(f"s{number},none-{number}.jpg\n" for number in range(60))
    (tmp_path / "t.csv").write_text("sample_id,image\n" + rows)
    command = ("catalog", "--table", tmp_path / "t.csv", "--images", tmp_path, "--out", tmp_path / "made")
    file = tmp_path / "made-faults.csv"
    for _ in range(2):  # our own file is written anew
        assert run(*command) == 2
        assert f"and 40 more faults of this kind; all are in {file}" in complaint(capsys)
        assert sum("no such photo" in line for line in file.read_text(encoding="utf-8-sig").splitlines()) == 60
    assert run(*command, "--skip-broken") == 2
    assert f"all are in {file}" in complaint(capsys)
    (tmp_path / "fine.csv").write_text("sample_id,image\na,http://127.0.0.1/a.jpg\n")
    fine = ("catalog", "--table", tmp_path / "fine.csv", "--images", tmp_path, "--out")
    assert run(*fine, tmp_path / "made") == 0 and not file.exists()
    (tmp_path / "taken" / "catalog.parquet").mkdir(parents=True)
    assert run(*fine, tmp_path / "taken") == 2
    assert "a folder stands where a file is to be written" in complaint(capsys)
    shutil.rmtree(tmp_path / "made")
    file.write_text("a file of the user's")
    assert run(*command) == 2
    assert "made-faults.csv: is there already" in complaint(capsys)
    assert file.read_text() == "a file of the user's" and not (tmp_path / "made").exists()


def test_a_quality_file_that_is_not_ours_stays(tmp_path: Path, capsys):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "quality.csv").write_text("mine")
    (tmp_path / "a.csv").write_text("sample_id,image\na,http://127.0.0.1/a.jpg\n")
    command = ("catalog", "--images", tmp_path, "--out", tmp_path / "made", "--table", tmp_path / "a.csv")
    assert run(*command) == 2
    assert "is there already" in complaint(capsys)
    assert [path.read_text() for path in (tmp_path / "made").iterdir()] == ["mine"]


def test_names_of_columns_are_mapped_and_what_is_odd_is_printed(tmp_path: Path, capsys):
    (tmp_path / "t.csv").write_text("filepath\ttitle\nhttp://127.0.0.1/a.jpg\tnan\n")
    command = ("catalog", "--images", tmp_path, "--out", tmp_path / "made", "--table", tmp_path / "t.csv", "--columns")
    assert run(*command, "caption=title") == 2
    assert "column image is missing; the header reads 'filepath,title'" in complaint(capsys)
    assert run(*command, "image=filepath,caption=name") == 2
    assert "column caption is missing" in complaint(capsys)
    assert run(*command, "picture=filepath") == 2
    assert "--columns 'picture=filepath': write OURS=THEIRS" in complaint(capsys)
    assert run(*command, "image=filepath,caption=title", "--strict") == 2
    assert "--strict: all: 1 caption: texts that mean 'missing' ('nan')" in complaint(capsys)
    assert not (tmp_path / "made").exists()
    assert run(*command, "image=filepath,caption=title") == 0
    assert "all: 1 rows without sample_id ('t-1'): numbered" in capsys.readouterr().out


def test_a_world_is_named_by_its_size_scenes_and_seed(tmp_path: Path, monkeypatch):
    built = {}

    def build(settings, out: Path) -> None:
        built[out.name] = settings
        make_catalog(out)

    monkeypatch.setattr("capture_lib.world.build", build)
    monkeypatch.setattr(cli, "DATA", tmp_path)
    assert run("catalog", "--world", "mini") == 0
    assert run("catalog", "--world", "mini", "--seed", 4, "--scenes", tmp_path / "rooms") == 0
    assert list(built) == ["world-mini", "world-mini-rooms-seed4"]
    assert built["world-mini-rooms-seed4"].seed == 4
    assert built["world-mini-rooms-seed4"].scenes == str(tmp_path / "rooms")


def test_wrong_paths_and_names(tmp_path: Path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("sample_id,split,caption,image,labels\na,nowhere,x,a.jpg,\n")
    (tmp_path / "gbk.csv").write_bytes("sample_id,image\na,精华.jpg\n".encode("gbk"))
    (tmp_path / "empty.csv").touch()
    images = ("--images", tmp_path)
    wrong = {
        ("run", "--profile", "huge"): "'huge' is not one of 'smoke', 'cpu', 'thorough', 'full', 'gpu', 'product1m'",
        ("run", "--profile", "product1m"): "--catalog",
        ("run", "--profile", "smoke", "--catalog", tmp_path / "none"): "no catalog.parquet",
        ("run", "--profile", "smoke", "--only", "77"): "no notebook 77",
        ("run", "--profile", "smoke", "--only", ""): "--only '': give the number",
        ("evaluate", "--lists", METRICS, "--rankings", "/dev/zero"): "/dev/zero: is a device; name a file",
        ("catalog", "--lists", tmp_path / "none"): "no such folder",
        ("catalog", "--table", tmp_path / "none.csv", *images): "cannot be read",
        ("catalog", "--table", tmp_path, *images): "cannot be read",
        ("catalog", "--table", tmp_path / "empty.csv", *images): "is an empty file",
        ("catalog", "--table", tmp_path / "gbk.csv", *images): "line 2: not UTF-8",
        ("catalog", "--table", table): "--images",
        ("catalog", "--table", table, *images, "--out", tmp_path / "made"): "split 'nowhere'",
        ("catalog", "--world", "gigantic"): "'mini', 'small', 'full'",
        ("catalog", "--world", "mini", "--add"): "--add with --lists, --table or --dataset",
        ("catalog", "--lists", tmp_path, "--scenes", tmp_path): "--scenes and --seed go with --world",
        ("catalog", "--lists", tmp_path, "--skip-broken"): "--skip-broken go with --table",
        ("catalog", "--world", "mini", "--strict"): "--strict with --lists, --table or --dataset",
        ("catalog", "--table", table, *images, "--image", "a"): "--dataset takes --image COLUMN",
        ("catalog", "--dataset", tmp_path, "--caption", "a"): "--dataset takes --image COLUMN",
        ("catalog", "--lists", tmp_path, "--table", table): "one source",
        ("download", tmp_path / "none"): "no catalog.parquet",
        ("evaluate", "--lists", tmp_path / "none", "--rankings", table): "no such folder",
        ("search", tmp_path / "none", "--image", table): "the photo does not decode",
        ("explore", tmp_path / "none"): "no catalog.parquet",
    }
    for arguments, part in wrong.items():
        assert run(*arguments) == 2, arguments
        assert part in complaint(capsys), arguments
    assert not (tmp_path / "made").exists()


def test_options_name_the_profiles_and_the_worlds():
    parameters = inspect.signature(cli.catalog).parameters
    assert list(get_args(cli.ProfileName)) == list(profiles.PROFILES)
    assert list(get_args(get_args(parameters["world"].annotation)[0])) == list(world.SIZES)


@pytest.mark.parametrize("arguments, part", [
    ("", "Missing command"), ("rnu", "No such command 'rnu'"), ("--fast", "No such option: --fast"),
    ("run --seed -1", "'--seed'"), ("run --seed x", "'--seed'"), ("run --seed 99999999999999999999", "'--seed'"),
    ("search made", "Missing option '--image'"), ("search made --image a.jpg --out b.xyz", "one of .jpg"),
    ("search made --image a.jpg --out FOLDER/a.jpg", "is a directory"),
    ("evaluate --lists a --rankings b --json FOLDER", "'--json'"), ("download made --export FOLDER", "'--export'"),
    ("catalog --world mini --out FILE", "'--out'"), ("run --out FILE", "'--out'"),
    ("search made --image a.jpg --out LINK", "link.jpg is a link or a device; name a file or a folder"),
    ("search made --image a.jpg --out PIPE", "pipe.jpg is a link or a device"),
    ("search made --image a.jpg --out FILE/a.jpg", "file is no folder that can be written to"),
    ("search made --image a.jpg --out FILE/far/below/a.jpg", "file is no folder that can be written to"),
    ("evaluate --lists a --rankings b --json FILE/a.json", "file is no folder that can be written to"),
    ("evaluate --lists a --rankings b --json LINK", "is a link"), ("download made --export PIPE", "or a device"),
    ("run --out FILE/a", "no folder that can be"), ("catalog --world mini --out FILE/a", "no folder that can be"),
    ("catalog --world mini --out GONE", "is a link or a device"),
    ("search made --image a.jpg --out result.v2", "--out result.v2: end the picture's name with one of .jpg"),
    ("search made --image a.jpg --seed -1", "'--seed'"), ("catalog --world mini --seed -1", "'--seed'"),
    ("explore --port 70000", "'--port'"), ("download made --interval nan", "'--interval'"),
    ("download made --interval inf", "'--interval'"), ("download made --connections 0", "'--connections'"),
    ("download made --seconds nan", "'--seconds'"), ("download made --tries 0", "'--tries'"),
    ("download made --per-host 1000000000", "'--per-host'"),
])
def test_a_wrong_option_is_one_line_before_any_work(tmp_path: Path, capsys, arguments: str, part: str):
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "file")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    before = sorted(tmp_path.rglob("*"))
    for word, name in {"FOLDER": "", "FILE": "file", "LINK": "link.jpg", "PIPE": "pipe.jpg", "GONE": "gone"}.items():
        arguments = arguments.replace(word, str(tmp_path / name))
    assert run(*arguments.split()) == 2
    assert sorted(tmp_path.rglob("*")) == before
    line = complaint(capsys)
    assert part in line and line.count("\n") == 1


@pytest.mark.parametrize("error, code, line", [
    (OSError(28, "No space left on device", "images"), 2, "images: No space left on device"),
    (TimeoutError("no answer from the kernel"), 2, "no answer from the kernel"), (TimeoutError(), 2, "TimeoutError"),
    (FloatingPointError("the loss is NaN"), 2, "the loss is NaN"),
    (KeyboardInterrupt(), 130, "interrupted; what was done is kept")])
def test_an_error_is_one_line_and_an_exit_code(monkeypatch, capsys, error, code, line):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("capture_lib.catalog.table.read_catalog", fail)
    assert run("download", "made") == code
    assert complaint(capsys).startswith(f"capture: {line}")


def test_what_nobody_thought_of_is_one_line_too(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("capture_lib.catalog.table.read_catalog", lambda folder: {}["columns"])
    assert run("download", "made") == 70
    line = complaint(capsys)
    assert line.startswith("capture: KeyError: 'columns' (a fault of this program; its traceback is in ")
    assert line.count("\n") == 1 and "KeyError" in next(tmp_path.iterdir()).read_text()


# ---- as a process: bytes of the command line, terminals, pipes


def process(*arguments: str | bytes, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "capture_lib", *arguments]
    return subprocess.run(command, capture_output=True, cwd=ROOT, check=False, **options)


def test_the_module_is_the_command():
    done = process("rnu")
    assert done.returncode == 2 and b"No such command 'rnu'" in done.stderr and done.stdout == b""


@pytest.mark.parametrize("arguments", [
    ("search", "made", "--image", "a.jpg", "--caption", "é口红".encode("gbk", "replace") + b"\xff"),
    ("download", b"\xe9t\xe9"), ("catalog", "--lists", b"\xff\xfe")])
def test_bytes_that_are_not_utf8_are_a_line(arguments):
    done = process(*arguments, env={**os.environ, "PYTHONUTF8": "1"})
    said = done.stderr.decode()
    assert done.returncode == 2 and said.count("\n") == 1 and done.stdout == b""
    assert said.startswith("capture: argument '") and "holds bytes that are not UTF-8" in said


def test_an_argument_may_hold_no_zero(capsys):
    assert run("download", "a\0b") == 2
    assert "argument 'a\\x00b': holds bytes" in complaint(capsys)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_that_lacks_a_character_gets_a_question_mark(tmp_path: Path, monkeypatch, encoding: str):
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    assert run("download", "商店") == 2
    assert error.buffer.getvalue().startswith(b"capture: ??: no catalog.parquet here")
    make_catalog(tmp_path / "商店", 1, 1, 0, 0)
    assert run("download", tmp_path / "商店") == 0
    assert b"/??: 2 of 2 photos are on disk" in out.buffer.getvalue()


def test_a_reader_that_has_seen_enough_is_no_fault():
    command = f"{sys.executable} -m capture_lib --help; echo $? >&2"
    done = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr in ("141\n", "0\n")  # the second: all fitted into the pipe before it closed
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run([sys.executable, "-m", "capture_lib", "--help"], stdout=closed, stderr=subprocess.PIPE,
                              cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_output_is_no_fault():
    command = f"{sys.executable} -m capture_lib --help >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- run, search, explore


def test_run_returns_1_where_it_stops_and_builds_the_report_all_the_same(tmp_path: Path, monkeypatch, capsys):
    def run_notebooks(profile, catalog, out, seed, only, resume, jobs) -> None:
        calls.append((profile, catalog, out, seed, only, resume, jobs))
        if only in stops:
            raise stops[only]

    calls, built = [], []
    stops = {"03": NotebookFailed("notebook 03_detector, cell 7: no memory"),
             "04": ProcessKilled("a process was killed while pretraining ran")}
    execute = SimpleNamespace(run_notebooks=run_notebooks, STOPPED=STOPPED)

    def build(out: Path) -> None:
        built.append(out)
        if full:
            raise OSError(28, "No space left on device", str(out))

    full = []
    site = SimpleNamespace(build=build, summary=lambda out: ["8 claims", "all is well"])
    monkeypatch.setattr(report, "execute", execute, raising=False)
    monkeypatch.setattr(report, "site", site, raising=False)
    assert run("run", "--out", tmp_path, "--profile", "smoke", "--seed", 3, "--resume", "--jobs", 5) == 0
    assert capsys.readouterr().out == "8 claims\nall is well\n"
    assert run("run", "--out", tmp_path, "--only", "03") == 1
    assert complaint(capsys) == "capture: notebook 03_detector, cell 7: no memory\n"
    assert run("run", "--out", tmp_path, "--only", "04") == 1
    assert complaint(capsys) == "capture: a process was killed while pretraining ran\n"
    assert calls[:2] == [("smoke", None, tmp_path, 3, None, True, 5), ("cpu", None, tmp_path, 0, "03", False, 0)]
    assert built == [tmp_path] * 3
    full.append(True)
    assert run("run", "--out", tmp_path, "--only", "03") == 1
    assert complaint(capsys) == "capture: notebook 03_detector, cell 7: no memory\n"  # and nothing of the index


def test_search_prints_the_hits_of_each_product_and_draws_them(tmp_path: Path, monkeypatch, capsys):
    made = make_catalog(tmp_path / "made")
    caption = "kind2\x1b[31m\x9b\u202e\n霜\u3000\\"
    hit = SimpleNamespace(score=0.75, sample_id="gallery-2", labels=["kind 2\x07"], caption=caption)
    answer = SimpleNamespace(how="CAPTURE, text\nOn val, words answer better.", scores=[0.9], hits=[[hit] * 10])
    asked, drawn = [], []
    opening = SimpleNamespace(open_run=lambda profile, catalog, seed: (profile, catalog, seed))
    monkeypatch.setattr(experiments, "run", opening, raising=False)
    answering = SimpleNamespace(answer=lambda *query: asked.append(query) or answer)
    monkeypatch.setattr(experiments, "search", answering, raising=False)
    drawing = SimpleNamespace(draw_answer=lambda *call: drawn.append(call), PICTURE_MARK=PICTURE_MARK)
    monkeypatch.setattr(report, "figures", drawing, raising=False)
    photo = next(iter(made.photos.values()))
    options = ("--image", photo, "--caption", "kind2 lot", "--profile", "smoke", "--out", tmp_path / "answer.PNG")
    assert run("search", made.folder, *options) == 0
    out = capsys.readouterr().out
    assert "1 products, compared by CAPTURE, text\nOn val, words answer better.\nproduct 1 (objectness 0.90):\n" in out
    escaped = "kind2\\x1b[31m\\x9b\\u202e\\n霜\u3000\\"  # no code reaches the terminal
    assert out.count(f"  0.750  gallery-2  kind 2\\x07  {escaped}\n") == 5
    assert asked == [(("smoke", str(made.folder), 0), photo, "kind2 lot")]
    assert drawn == [(answer, tmp_path / "answer.PNG")]

    answer.scores, answer.hits = [], []
    assert run("search", made.folder, *options) == 0
    assert "0 products, compared" in capsys.readouterr().out
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    assert run("search", made.folder, "--image", tmp_path / "broken.jpg") == 2
    assert "broken.jpg: the photo does not decode" in complaint(capsys)
    assert len(asked) == 2  # nothing is opened for a photo that cannot be read


def test_search_replaces_its_own_pictures_alone(tmp_path: Path, monkeypatch, capsys):
    made = make_catalog(tmp_path / "made")
    opened = []
    photo = np.zeros((9, 9, 3), np.uint8)
    answer = Answer("image-only", "regions", "image alone", photo, np.zeros((0, 4)), np.zeros(0), [])
    opening = SimpleNamespace(open_run=lambda *_, **__: None)
    monkeypatch.setattr(experiments, "run", opening, raising=False)
    monkeypatch.setattr(experiments, "search", SimpleNamespace(
        answer=lambda run, *_: opened.append(run) or answer), raising=False)
    photos = list(made.photos.values())
    before = [photo.read_bytes() for photo in photos]
    (tmp_path / "thesis.pdf").write_bytes(b"%PDF-1.7 years of work")
    for ending in ("jpg", "jpeg", "png", "webp", "tif", "pdf", "svg", "PNG"):
        out = tmp_path / "far" / f"answer.{ending}"
        for _ in range(2):
            assert run("search", made.folder, "--image", photos[0], "--out", out) == 0, capsys.readouterr().err
        assert out.stat().st_size
    assert len(opened) == 16
    own = tmp_path / "far" / "answer.jpg"
    for out, image, part in ((photos[0], photos[0], "is there already, and no such command made it"),
                             (photos[1], photos[0], "is there already"),
                             (tmp_path / "thesis.pdf", photos[0], "is there already"),
                             (own, own, "is the query photo")):
        assert run("search", made.folder, "--image", image, "--out", out) == 2
        assert part in complaint(capsys)
    assert len(opened) == 16  # refused before any work
    assert [photo.read_bytes() for photo in photos] == before
    assert (tmp_path / "thesis.pdf").read_bytes() == b"%PDF-1.7 years of work"


def test_explore_serves_the_page(tmp_path: Path, monkeypatch):
    made = make_catalog(tmp_path / "made")
    served = []
    widget = SimpleNamespace(serve=lambda *call: served.append(call) or 0)
    monkeypatch.setattr(explorer, "widget", widget, raising=False)
    assert run("explore", made.folder, "--port", 9000, "--no-browser") == 0
    assert run("explore", "--profile", "smoke") == 0
    assert served == [("cpu", made.folder, 9000, False), ("smoke", None, None, True)]
