"""The command line against 300 made-up inputs: no traceback crosses it, and no file of the user's is lost or changed.

Everything follows from one seed. A failing case is named by its number: `case(NUMBER, folder)` makes it again.
"""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from capture_lib.cli import main

CASES = 300
BATCH = 30
WORDS = [
    "", "nan", "NULL", "0", "-1", "1e999", "=1+1", "@SUM(A1)", "../../passwd", "/etc/passwd", "C:\\a.jpg", "a" * 3000,
    "x,y", 'say "so"', "<script>alert(1)</script>", "{{7*7}}", "口红", "ＡＢ", "a\u200bb", "🧴" * 40, "\x1b[31m",
    "a\tb", "a\nb", "[1, 2", "[[0, 0, 9, 9]]", "[[9, 9, 0, 0]]", "[[-5, 0, 500, 9]]", '["a", "b"]', "[" * 5000,
    "a#;#b", "#;#", "http://", "https://x/\x00", "good.jpg", "cut.jpg", "page.jpg", "none.jpg", "out.jpg",
    "deep/good.png", "[MASK] [SEP]"]
NAMES = ["sample_id", "split", "caption", "image", "labels", "products", "boxes", "box_labels", "mirror", "IMAGE ",
         "title"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "gb18030", "latin-1"]


def pick(rng: np.random.Generator, options: list) -> object:
    """One of some options."""
    return options[int(rng.integers(len(options)))]


def damage(raw: bytes, rng: np.random.Generator) -> bytes:
    """Bytes as they are, cut, with a few changed, or none."""
    kind = rng.integers(12)
    if kind == 0:
        return raw[:int(rng.integers(len(raw) + 1))]
    if kind == 1 and raw:
        changed = bytearray(raw)
        for place in rng.integers(len(raw), size=5):
            changed[place] = int(rng.integers(256))
        return bytes(changed)
    return raw


def write_photos(folder: Path, rng: np.random.Generator) -> None:
    """Photos, damaged ones, and what only has the name of one."""
    (folder / "deep").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(buffer, pick(rng, ["JPEG", "PNG", "GIF", "WEBP"]))
    (folder / "good.jpg").write_bytes(buffer.getvalue())
    (folder / "deep" / "good.png").write_bytes(buffer.getvalue())
    (folder / "cut.jpg").write_bytes(damage(buffer.getvalue(), rng))
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><p>gone</p>")
    (folder / "out.jpg").symlink_to(folder.parent / "mine" / "notes.txt")


def write_table(file: Path, rng: np.random.Generator) -> None:
    """A table with some of our columns and odd cells, in some encoding, with some separator, maybe damaged."""
    names = [str(name) for name in rng.permutation(NAMES)[:int(rng.integers(1, len(NAMES)))]]
    if rng.random() < 0.7:
        names = [*dict.fromkeys(["sample_id", "image", *names])]
        names = [name for name in names if name != "IMAGE "]
    rows = []
    for number in range(int(rng.integers(0, 8))):
        row = {name: str(pick(rng, WORDS)) for name in names}
        if rng.random() < 0.9:  # one that could pass
            good = {"sample_id": f"s{number}", "image": "good.jpg", "split": pick(rng, ["train", "gallery", "val"]),
                    "mirror": "", "products": "", "boxes": pick(rng, ["", "[[1, 2, 20, 15]]"]), "box_labels": ""}
            good["box_labels"] = '["a"]' if good["boxes"] else ""
            row |= {name: str(value) for name, value in good.items() if name in row and rng.random() < 0.98}
        rows.append(row)
    table = pd.DataFrame(rows, columns=names)
    if file.suffix == ".parquet":
        buffer = io.BytesIO()
        table.loc[:, ~table.columns.duplicated()].to_parquet(buffer)
        raw = buffer.getvalue()
    else:
        text = table.to_csv(index=False, sep=str(pick(rng, [",", ";", "\t", "|"])))
        raw = text.encode(str(pick(rng, ENCODINGS)), errors="replace")
    file.write_bytes(damage(raw, rng))


def write_lists(folder: Path, rng: np.random.Generator) -> None:
    """Released lists of a gallery and of queries, with odd fields now and then."""
    folder.mkdir()
    for name in ("gallery", "test"):
        lines = []
        for number in range(5):
            caption = str(pick(rng, WORDS)).replace("\n", " ")
            fields = [f"{name}{number}", caption, f"http://x/{number}.jpg", "", f"l{number % 3}"]
            if rng.random() < 0.05:
                fields[int(rng.integers(5))] = str(pick(rng, WORDS)).replace("\n", " ")
            lines.append("#####".join(fields))
        raw = ("\r\n" if rng.random() < 0.3 else "\n").join(lines).encode()
        (folder / f"product1m_{name}_ossurl_v2.txt").write_bytes(damage(raw, rng) if rng.random() < 0.1 else raw)


def write_rankings(file: Path, rng: np.random.Generator) -> None:
    """Rankings in the layout of the contract, or in another one."""
    between = str(pick(rng, [","] * 8 + [" ", "\t", ";", ":0.5,"]))
    lines = []
    for number in range(int(rng.integers(0, 6))):
        items = [f"gallery{item}" for item in rng.permutation(5)[:int(rng.integers(0, 6))]]
        if rng.random() < 0.2:
            items.append(str(pick(rng, WORDS)))
        lines.append(between.join([f"test{number}", *items]))
    file.write_bytes(damage("\n".join(lines).encode(), rng))


def case(number: int, folder: Path) -> list[str]:
    """Write the inputs of a case below `folder`; return the arguments."""
    rng = np.random.default_rng([2021, number])
    mine = folder / "mine"  # what nobody may touch
    (mine / "pictures").mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    (mine / "index.html").write_text("mine")
    (mine / "pictures" / "a.jpg").write_bytes(b"mine")
    write_photos(folder / "images", rng)
    table = folder / str(pick(rng, ["table.csv", "table.parquet", "table.tsv"]))
    write_table(table, rng)
    write_lists(folder / "lists", rng)
    write_rankings(folder / "rankings.csv", rng)
    images, lists, rankings = folder / "images", folder / "lists", folder / "rankings.csv"

    # targets: mostly a fresh one, else something that is there already
    taken = [mine, mine / "notes.txt", mine / "pictures", mine / "index.html", images / "out.jpg", images, lists, table,
             rankings]
    fresh = folder / str(pick(rng, ["out", "out.json", "a/b/c.json", "口红.jpg", "out.v2", "x" * 300, "-"]))
    target = str(pick(rng, taken) if rng.random() < 0.3 else fresh)
    made = folder / "catalog"
    if rng.random() < 0.5:
        rows = {"sample_id": ["a", "b"], "split": ["gallery", "test"], "image": ["good.jpg", "http://x.invalid/1"]}
        pd.DataFrame(rows).to_csv(folder / "fine.csv", index=False)
        main(["catalog", "--table", str(folder / "fine.csv"), "--images", str(images), "--out", str(made)])
    strange = str(pick(rng, WORDS))
    arguments = [
        ["catalog", "--table", str(table), "--images", str(images), "--out", target],
        ["catalog", "--table", str(table), "--images", str(images), "--out", str(folder / "fresh")],
        ["catalog", "--table", str(table), "--images", str(images), "--out", str(made), "--add"],
        ["catalog", "--lists", str(lists), "--out", target],
        ["evaluate", "--lists", str(lists), "--rankings", str(rankings)],
        ["evaluate", "--lists", str(lists), "--rankings", str(rankings), "--json", target],
        ["download", str(made), "--export", target],
        ["download", str(made), "--import", str(pick(rng, taken))],
        ["search", str(pick(rng, [made, mine, table])), "--image", str(images / "page.jpg"), "--out", target],
        ["search", str(mine), "--image", str(images / "good.jpg"), "--out", target, "--seed", strange],
        ["run", "--profile", "smoke", "--only", "99", "--out", target],
        ["run", "--profile", strange, "--out", target],
        ["explore", str(pick(rng, [mine, table, folder / "none"])), "--no-browser"],
        [str(pick(rng, ["catalog", "download", "evaluate", "--help", strange])), strange]]
    return list(map(str, pick(rng, arguments)))


def digests(folder: Path) -> dict[str, str]:
    """The files of the user's own, by their content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("first", range(0, CASES, BATCH))
def test_no_traceback_and_no_lost_file(first: int, tmp_path: Path, monkeypatch, capsys):
    for number in range(first, first + BATCH):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        arguments = case(number, folder)
        before = digests(folder)
        capsys.readouterr()
        code = main(arguments)
        told = capsys.readouterr()
        after = digests(folder)
        lost = {name for name, content in before.items() if after.get(name) != content}
        lost -= {name for name in lost if Path(name).is_relative_to(folder / "catalog")}  # ours, with --add
        assert not lost, (number, arguments, lost)
        assert code in (0, 1, 2), (number, arguments, code, told.err)
        assert "Traceback" not in told.err + told.out, (number, arguments)
        last = told.err.rpartition("\r")[2]  # behind a bar, in a session that looks like a notebook's
        assert code == 0 or last.startswith("capture: "), (number, arguments, told.err)
