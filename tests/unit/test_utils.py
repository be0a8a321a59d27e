"""Files are written whole or not at all, nothing that a user names is removed, and progress is one line in a log."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from launched import processes

from capture_lib import cli
from capture_lib.experiments.run import claim_folder
from capture_lib.utils import (
    ROOT,
    InputError,
    claim_file,
    explain,
    one_at_a_time,
    progress,
    raise_faults,
    read_text,
    remove,
    say,
    write_atomically,
    write_json,
)


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


def test_nothing_beside_a_file_is_touched_and_no_device_replaced(tmp_path):
    for name in (".figures.json.part", ".figures.json", "figures.json.part"):
        (tmp_path / name).write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    write_json(tmp_path / "figures.json", {})
    with pytest.raises(InputError, match="pipe: a device stands where a file is to be written"):
        write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()
    mine = [path for path in tmp_path.iterdir() if path.is_file() and path.read_text() == "mine"]
    assert len(mine) == 3 and len(list(tmp_path.iterdir())) == 5


def test_a_long_name_is_no_longer_while_it_is_written(tmp_path):
    write_json(tmp_path / f"{'霜' * 83}.json", {})  # 254 bytes, of 255 that a name may have
    assert len(list(tmp_path.iterdir())) == 1


def test_many_processes_write_one_file_whole(tmp_path):
    """Each of them sees its own, or that of another, and never half of one."""
    started = [processes().Process(target=write_often, args=(tmp_path / "a.json", number)) for number in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    assert len(set(json.loads((tmp_path / "a.json").read_text()))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def write_often(file: Path, number: int) -> None:
    for _ in range(50):
        write_json(file, [number] * 2_000)
        assert len(json.loads(file.read_text())) == 2_000


def test_of_a_link_what_it_leads_to_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    remove(tmp_path / "link")
    assert not (tmp_path / "link").exists() and (tmp_path / "mine" / "a.txt").read_text() == "mine"


@pytest.mark.parametrize("text, ours", [
    ("mark: a", True), ("\ufeffmark: a", True), ("a\nmark: a", False), ("a,mark: a", False), ("", False)])
def test_a_file_of_ours_begins_with_a_mark(tmp_path, text, ours):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with nullcontext() if ours else pytest.raises(InputError, match="a.csv: is there already"):
        claim_file(tmp_path / "a.csv", b"other", b"mark")


@pytest.mark.parametrize("raw, kind", [
    (b"PK\x03\x04\x00", "a spreadsheet or a zip archive"), (b"PAR1\x15\x00", "parquet"), (b"\x1f\x8b\x08\x00", "gzip"),
    (b"ARROW1\x00\x00", "feather"), ("口红".encode("gbk"), "GBK")])
def test_what_is_no_text_is_named(tmp_path, raw, kind):
    (tmp_path / "a.csv").write_bytes(raw)
    with pytest.raises(InputError, match=f"a.csv, line 1: not UTF-8 .{kind}.*; save it as text in UTF-8"):
        read_text(tmp_path / "a.csv")


# ---- what stops a command is one line


@pytest.mark.parametrize("error, line", [
    (OSError(28, "No space left on device"), "FILE: No space left on device"),
    (OSError(28, "Error writing bytes to file. Detail: [errno 28]"), "FILE: No space left on device"),
    (OSError("1000000 requested and 65504 written"), "FILE: cannot be written; is the disk full?"),
    (OSError("problem writing element 131072 to file"), "FILE: cannot be written; is the disk full?"),
    (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos"), "FILE: cannot be written; is the"),
    (RuntimeError("basic_ios::clear: iostream error"), "FILE: cannot be written; is the disk full?"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), "FILE: cannot be written; is the disk full?"),
    (FileNotFoundError(2, "No such file or directory", "other.jpg"), "other.jpg: No such file or directory"),
    (InputError("a.csv, line 3: odd (os error 28)"), "a.csv, line 3: odd (os error 28)"),
])
def test_a_failed_write_is_one_line_with_the_file(tmp_path, error, line):
    with pytest.raises((OSError, InputError)) as failure:
        with write_atomically(tmp_path / "made" / "a.json"):
            raise error
    said, code = explain(failure.value)
    assert said.startswith(line.replace("FILE", str(tmp_path / "made" / "a.json")))
    assert code == 2 and "\n" not in said and list((tmp_path / "made").iterdir()) == []


def test_the_words_of_a_worker_are_its_last_line():
    error = OSError("Caught OSError in DataLoader worker process 0.\nTraceback:\n  File …\nOSError: a.jpg: gone\n")
    assert explain(error) == ("OSError: a.jpg: gone", 2)
    assert explain(MemoryError()) == ("not enough memory; a smaller --profile needs less", 2)


def test_what_nobody_thought_of_is_one_line_and_its_traceback_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        raise KeyError("霜")
    except KeyError as error:
        said, code = explain(error)
    file = next(tmp_path.iterdir())
    assert said == f"KeyError: '霜' (a fault of this program; its traceback is in {file})" and code == 70
    assert file.read_text(encoding="utf-8").startswith("Traceback") and "raise KeyError" in file.read_text("utf-8")


# ---- two at once


def hold(lock: Path, begun: object) -> None:
    with one_at_a_time(lock, "sleeps"):
        begun.set()
        time.sleep(60)


def test_a_lock_goes_with_its_process(tmp_path, capsys):
    begun = processes().Event()
    process = processes().Process(target=hold, args=(tmp_path / "far" / "a.lock", begun))
    process.start()
    assert begun.wait(60)
    threading.Timer(0.2, process.kill).start()
    with one_at_a_time(tmp_path / "far" / "a.lock", "draws a world"):
        assert not process.is_alive() or process.join(5) is None
    with one_at_a_time(tmp_path / "far" / "a.lock", "is alone"):
        pass
    assert capsys.readouterr().err == "waiting for another process that draws a world …\n"


def test_of_a_launch_the_main_process_alone_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with one_at_a_time(tmp_path / "a.lock", "sleeps"):
        assert list(tmp_path.iterdir()) == []


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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems leave such processes behind")
def test_the_workers_of_a_killed_process_end_with_it(tmp_path):
    script = tmp_path / "maps.py"
    script.write_text("import time\nfrom capture_lib.utils import process_map\nif __name__ == '__main__':\n"
                      "    with process_map(2) as mapped:\n        list(mapped(abs, range(4)))\n"
                      "        print('ready', flush=True)\n        time.sleep(600)\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [number for number in listed if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()]
        process.kill()
    assert len(workers) == 2
    for _ in range(600):
        left = [number for number in workers if b"spawn_main" in command_of(number)]
        if not left:
            break
        time.sleep(0.1)
    assert not left


def command_of(process: str) -> bytes:
    """The command line of a process; empty when it has ended."""
    file = Path(f"/proc/{process}/cmdline")
    return file.read_bytes() if file.exists() else b""
