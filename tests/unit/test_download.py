"""Downloading from a server on this machine that answers like the real ones, good and bad."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from drawn import refused
from PIL import Image

from capture_lib import cli
from capture_lib.catalog.download import DownloadSettings, download, export_addresses, import_photos
from capture_lib.catalog.table import Catalog, read_catalog, write_catalog

FAST = DownloadSettings(per_host=16, interval=0, tries=1, seconds=2, pause=0.01, max_bytes=200_000)


def picture(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if size == (64, 48) else "1", size).save(buffer, kind)
    return buffer.getvalue()


JPEG, PNG = picture("JPEG"), picture("PNG")
BODIES = {"png.jpg": PNG, "html": b"<html>gone</html>", "truncated": JPEG[:200], "empty": b"", "removed": JPEG,
          "pixel": picture("GIF", (1, 1)),
          "bomb": picture("PNG", (11_000, 10_000)), "large": JPEG + bytes(300_000)}
REDIRECTS = {"loop": "/loop", "moved": "/good", "file": "file:///etc/hostname", "odd": "//[::"}


def photo_of(path: str) -> bytes:
    """A photo of an address: whatever follows its end is not decoded."""
    return JPEG + path.encode()


class Server(BaseHTTPRequestHandler):
    """Each path is one kind of answer; what follows a second slash tells samples, and their photos, apart."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        state = self.server.state
        with state.lock:
            state.headers.append(dict(self.headers))
            state.asked[self.path] += 1
            first = state.asked[self.path] == 1
        try:
            self.reply(kind, first)
        except OSError:
            pass

    def reply(self, kind: str, first: bool) -> None:
        if kind == "denied" or kind == "busy" and first:
            self.answer(403 if kind == "denied" else 503, b"")
        elif kind in REDIRECTS:
            self.answer(302, b"", Location=REDIRECTS[kind])
        elif kind == "slow":
            self.count(1)
            time.sleep(0.05)
            self.count(-1)  # before the client has its answer, and asks again
            self.answer(200, photo_of(self.path))
        elif kind == "typed":
            self.answer(404, b"<html>", **{"Content-Type": "text/html\x1b]0;a\x07\x9b2J"})
        elif kind == "choosy":
            self.answer(200 if self.headers["User-Agent"].startswith("Mozilla") else 403, photo_of(self.path))
        elif kind == "gone":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif kind == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not self.server.state.over.wait(0.05):
                self.wfile.write(b"\xff")
        else:
            good = kind in ("good", "busy")
            self.answer(200 if kind in BODIES or good else 404, BODIES.get(kind, photo_of(self.path)))

    def count(self, more: int) -> None:
        state = self.server.state
        with state.lock:
            state.now += more
            state.most = max(state.most, state.now)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class State:
    """What the server has seen."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0  # requests at the same time


class Loopback(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:  # a client that hangs up is no news
        pass


@pytest.fixture
def server():
    httpd = Loopback(("127.0.0.1", 0), Server)
    httpd.state = State()
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    yield httpd
    httpd.state.over.set()
    httpd.shutdown()
    httpd.server_close()


def catalog_of(folder: Path, addresses: dict[str, tuple[str, str | None]]) -> Catalog:
    rows = [{"sample_id": name, "split": "train", "image": image, "mirror": mirror}
            for name, (image, mirror) in addresses.items()]
    write_catalog(pd.DataFrame(rows, dtype=object), folder)
    return read_catalog(folder)


def many(folder: Path, server: Loopback, kind: str, count: int) -> Catalog:
    return catalog_of(folder, {f"s{n}": (f"{server.url}/{kind}/{n}", None) for n in range(count)})


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as text:
        return list(csv.DictReader(text))


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the size
def test_good_and_bad_answers(server, tmp_path: Path):
    good = {"good", "png.jpg", "moved"}
    bad = {"html": "the answer is a web page, SVG or XML, not a photo", "truncated": "is not a photo that decodes",
           "empty": "the answer is an empty file, not a photo", "denied": "status 403", "nothing": "status 404",
           "typed": "status 404 text/html ]0;a 2J", "pixel": "1×1 pixels are no photo",
           "loop": "TooManyRedirects", "file": "UnsupportedProtocol", "odd": "Invalid URL", "gone": "Protocol",
           "large": "more than 200,000 bytes", "bomb": "decode", "drip": "slower than 2 s"}
    catalog = catalog_of(tmp_path, {kind: (f"{server.url}/{kind}", None) for kind in [*good, *bad]})
    missing = download(catalog, FAST)
    reasons = dict(zip(missing["sample_id"], missing["reason"], strict=True))
    assert set(reasons) == set(bad)
    assert {kind: part for kind, part in bad.items() if part not in reasons[kind]} == {}
    assert set(missing["address"]) == {f"{server.url}/{kind}" for kind in bad}
    assert all(map(str.isprintable, missing["reason"]))
    assert set(read_catalog(tmp_path).photos) == good
    assert read_rows(tmp_path / "missing.csv") == missing.to_dict("records")
    assert not list(tmp_path.rglob(".capture-*"))  # nothing half-written


def test_a_spreadsheet_finds_no_formulas_in_the_table(server, tmp_path: Path):
    download(catalog_of(tmp_path, {name: (f"{server.url}/nothing", None) for name in ("=1+1", "@SUM(A1)")}), FAST)
    assert sorted(row["sample_id"] for row in read_rows(tmp_path / "missing.csv")) == ["'=1+1", "'@SUM(A1)"]


def test_an_address_may_be_in_capitals(server, tmp_path: Path):
    assert download(catalog_of(tmp_path, {"a": (server.url.upper() + "/good", None)}), FAST).empty


@pytest.mark.parametrize("option", [[], ["--import", "fetched"]])
def test_nothing_is_written_where_a_link_leads_out(server, tmp_path: Path, monkeypatch, capsys, option: list[str]):
    monkeypatch.chdir(tmp_path)
    link = many(tmp_path / "made", server, "good", 1).photo_path("s0", server.url).parent
    for folder in (Path("elsewhere"), Path("fetched"), link.parent):
        folder.mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "fetched/0.jpg").write_bytes(JPEG)
    (tmp_path / "fetched/0.json").write_text('{"sample_id": "s0"}')
    assert cli.main(["download", "made", *option]) == 2
    assert "a link leads out of the catalog" in capsys.readouterr().err
    assert not any(Path("elsewhere").iterdir()) and not server.state.asked


@pytest.mark.parametrize("fetched", [False, True])
def test_what_is_odd_in_the_photos_that_came_is_told(server, tmp_path: Path, capsys, fetched: bool):
    rows = [{"sample_id": f"s{n}", "split": split, "image": f"{server.url}/removed/{n}", "labels": ["A"]}
            for n, split in enumerate(("train", "gallery"))]
    write_catalog(pd.DataFrame(rows, dtype=object), tmp_path / "made")
    (tmp_path / "fetched").mkdir()
    for row in rows:
        (tmp_path / f"fetched/{row['sample_id']}.jpg").write_bytes(JPEG)
        (tmp_path / f"fetched/{row['sample_id']}.json").write_text(json.dumps(row))
    command = ["download", str(tmp_path / "made")]
    assert cli.main([*command, "--import", str(tmp_path / "fetched")] if fetched else command) == 0
    assert "gallery: 1 photo that stands in train too ('s1'): kept: a leak" in capsys.readouterr().out
    assert "photo that stands in train too" in (tmp_path / "made/quality.csv").read_text()
    (tmp_path / "made/quality.csv").write_text("mine")
    assert cli.main(command) == 2


def test_both_addresses_are_tried(server, tmp_path: Path):
    catalog = catalog_of(tmp_path, {"a": (f"{server.url}/denied", f"{server.url}/png.jpg"),
                                    "b": (f"{server.url}/good", f"{server.url}/never")})
    assert download(catalog, FAST).empty
    assert server.state.asked["/never"] == 0
    photos = read_catalog(tmp_path).photos
    assert photos["a"].read_bytes() == PNG and photos["b"].read_bytes() == photo_of("/good")


@pytest.mark.parametrize("kind, tries, asked, found", [
    ("busy", 2, 2, True), ("busy", 1, 1, False), ("gone", 3, 3, False), ("denied", 3, 1, False), ("html", 3, 1, False)])
def test_only_what_may_pass_is_tried_again(server, tmp_path: Path, kind: str, tries: int, asked: int, found: bool):
    missing = download(many(tmp_path, server, kind, 1), replace(FAST, tries=tries))
    assert server.state.asked[f"/{kind}/0"] == asked
    assert missing.empty == found


@pytest.mark.parametrize("limits, most", [({"per_host": 3}, 3), ({"connections": 5}, 5)])
def test_no_more_requests_at_the_same_time_than_allowed(server, tmp_path: Path, limits: dict[str, int], most: int):
    assert download(many(tmp_path, server, "slow", 24), replace(FAST, **limits)).empty
    assert 1 < server.state.most <= most


def test_a_second_run_fetches_only_what_is_not_there(server, tmp_path: Path):
    catalog = many(tmp_path, server, "good", 4)
    by_hand = catalog.photo_path("s3", server.url)
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(PNG)  # a person put it there
    assert download(catalog, FAST).empty
    catalog.photos["s1"].unlink()
    catalog.photos["s2"].write_bytes(b"")  # as a power cut may leave it
    assert download(catalog, FAST).empty
    assert [server.state.asked[f"/good/{n}"] for n in range(4)] == [1, 2, 2, 0]
    assert catalog.photos["s2"].read_bytes() == photo_of("/good/2") and by_hand.read_bytes() == PNG


def start(folder: Path) -> subprocess.Popen:
    """Run `capture download` in a process of its own."""
    command = [sys.executable, "-m", "capture_lib", "download", str(folder), "--interval", "0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_photos(folder: Path, count: int) -> None:
    until = time.monotonic() + 60
    while len(list(folder.glob("images/*/*.jpg"))) < count:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_killed_run_goes_on_where_it_was(server, tmp_path: Path):
    catalog = many(tmp_path, server, "slow", 60)
    process = start(tmp_path)
    wait_for_photos(tmp_path, 8)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    there = set(read_catalog(tmp_path).photos)
    assert 8 <= len(there) < 60
    before = server.state.asked.copy()
    assert download(catalog, FAST).empty
    assert {f"s{path.rpartition('/')[2]}" for path in server.state.asked - before} == set(catalog.photos) - there
    assert {name: photo.read_bytes() for name, photo in catalog.photos.items()} == {
        f"s{n}": photo_of(f"/slow/{n}") for n in range(60)}


def test_ctrl_c_stops_and_keeps_what_is_there(server, tmp_path: Path):
    catalog_of(tmp_path, {f"s{n}": (f"{server.url}/{'good' if n < 3 else 'drip'}/{n}", None) for n in range(9)})
    process = start(tmp_path)
    wait_for_photos(tmp_path, 3)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]  # an answer may take 60 s: nobody waits for it
    assert process.returncode == 130
    assert error.startswith("capture: interrupted") and "Traceback" not in error
    assert (tmp_path / "missing.csv").is_file() and len(read_catalog(tmp_path).photos) == 3


def test_the_command_counts_the_reasons(server, tmp_path: Path, capsys):
    catalog_of(tmp_path, {"a": (f"{server.url}/denied", f"{server.url}/nothing"), "b": (f"{server.url}/good", None)})
    assert cli.main(["download", str(tmp_path), "--tries", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 photos are on disk" in out and "missing.csv" in out and "no address" not in out
    assert "status 403    1" in out and "status 404    1" in out
    next(iter(read_catalog(tmp_path).photos.values())).unlink()
    server.state.over.set()
    server.server_close()
    server.shutdown()
    assert cli.main(["download", str(tmp_path), "--tries", "1"]) == 1  # not a single photo is no success
    assert "ConnectError" in capsys.readouterr().out


# ---- what a server wants to read, and what it answers in a photo's place


def test_a_server_that_wants_another_user_agent(server, tmp_path: Path, capsys):
    many(tmp_path, server, "choosy", 2)
    assert cli.main(["download", str(tmp_path), "--tries", "1", "--interval", "0"]) == 1
    assert "status 403    2" in capsys.readouterr().out
    command = ["download", str(tmp_path), "--user-agent", "Mozilla/5.0 (X11)", "--referer", "https://shop.example/a?b=1"]
    assert cli.main([*command, "--interval", "0"]) == 0
    assert len(read_catalog(tmp_path).photos) == 2
    assert "Referer" not in server.state.headers[0]
    assert cli.main(["download", str(many(tmp_path / "b", server, "good", 1).folder), "--user-agent", ""]) == 0
    assert server.state.headers.pop()["User-Agent"] == "capture-lib"
    assert server.state.headers[-1]["Referer"] == "https://shop.example/a?b=1"


@pytest.mark.parametrize("option", ["--user-agent", "--referer"])
@pytest.mark.parametrize("value", ["a\r\nCookie: x", "a\nb", "a\x01", "中文", "\x7f"])
def test_a_header_that_is_more_than_a_line_is_refused_before_any_request(server, tmp_path: Path, capsys, option, value):
    many(tmp_path, server, "good", 1)
    assert cli.main(["download", str(tmp_path), option, value]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and option[2:] in error.lower() and "ASCII" in error
    assert not server.state.asked and not (tmp_path / "missing.csv").exists()


def test_one_picture_at_many_addresses_is_a_placeholder(server, tmp_path: Path, capsys):
    addresses = {f"gone{n}": (f"{server.url}/removed/{n}", None) for n in range(30)}
    addresses["mirrored"] = (f"{server.url}/removed/x", f"{server.url}/good/mirror")
    addresses["fine"] = (f"{server.url}/good/1", None)
    catalog = catalog_of(tmp_path, addresses | {"own": (f"{server.url}/removed/own", None)})
    own = catalog.photo_path("own", server.url)  # a person put it there
    own.parent.mkdir(parents=True)
    own.write_bytes(JPEG)
    assert cli.main(["download", str(tmp_path), "--interval", "0"]) == 0
    assert "3 of 33 photos are on disk" in capsys.readouterr().out
    photos = read_catalog(tmp_path).photos
    assert set(photos) == {"mirrored", "fine", "own"} and photos["mirrored"].read_bytes() == photo_of("/good/mirror")
    rows = read_rows(tmp_path / "missing.csv")
    assert {row["sample_id"] for row in rows} == {f"gone{n}" for n in range(30)}
    assert all(row["reason"].startswith("a placeholder") for row in rows) and len(rows) == 30
    assert not list(tmp_path.rglob(".capture-*"))


def test_a_photo_in_a_few_places_is_no_placeholder(server, tmp_path: Path, capsys):
    few = {f"few{n}": (f"{server.url}/removed/{n}", None) for n in range(4)}
    one = {f"one{n}": (f"{server.url}/png.jpg", None) for n in range(9)}  # a single address for all
    missing = download(catalog_of(tmp_path, few | one), FAST)
    assert missing.empty and len(read_catalog(tmp_path).photos) == 13
    assert "11 photos have the same bytes as another one" in capsys.readouterr().out


def test_a_target_that_is_a_folder_is_refused_before_any_request(server, tmp_path: Path, capsys):
    many(tmp_path / "catalog", server, "good", 1)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.txt").write_text("mine")
    assert cli.main(["download", str(tmp_path / "catalog"), "--export", str(folder)]) == 2
    (tmp_path / "catalog" / "missing.csv").mkdir()
    assert cli.main(["download", str(tmp_path / "catalog")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and str(folder) in errors[0] and "missing.csv: a folder stands" in errors[1]
    assert (folder / "a.txt").read_text() == "mine" and not server.state.asked


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999/x", "http://[::1", "http://ex..com/", "http://?", "http://-",
                                     "http://%00/", "http://127.0.0.1:0/", f"http://{'a' * 300}/", "http://\u202e/"])
def test_an_odd_address_is_one_line_in_the_table(tmp_path: Path, address: str):
    missing = download(catalog_of(tmp_path, {"a": (address, None)}), FAST)
    assert len(missing["reason"].item().splitlines()) == 1


def test_a_full_disk_stops_the_run(server, tmp_path: Path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "images")

    many(tmp_path, server, "good", 5)
    monkeypatch.setattr("capture_lib.catalog.download.save", full)
    assert cli.main(["download", str(tmp_path)]) == 2
    assert "images: No space left on device" in capsys.readouterr().err


# ---- img2dataset


def test_addresses_go_out_for_what_is_not_on_disk(tmp_path: Path):
    catalog = catalog_of(tmp_path, {"a": ("http://x/a.jpg", None), "b": ("http://x/b.jpg", "http://y/b.jpg"),
                                    "c": ("http://x/c.jpg", None)})
    photo = catalog.photo_path("c", "http://x/c.jpg")
    photo.parent.mkdir(parents=True)
    photo.write_bytes(JPEG)
    assert export_addresses(catalog, tmp_path / "urls.parquet") == 2
    assert pd.read_parquet(tmp_path / "urls.parquet").to_dict("records") == [
        {"sample_id": "a", "url": "http://x/a.jpg", "mirror": "http://x/a.jpg"},
        {"sample_id": "b", "url": "http://x/b.jpg", "mirror": "http://y/b.jpg"}]


def test_what_img2dataset_fetched_is_verified_and_taken_in(tmp_path: Path):
    catalog = catalog_of(tmp_path / "catalog", {name: (f"http://x/{name}.jpg", None) for name in ("a", "b", "c")})
    fetched = {"000": ("a", JPEG), "001": ("b", b"<html>"), "002": ("stranger", JPEG), "003": ("../../c", JPEG)}
    folder = tmp_path / "out" / "00000"
    folder.mkdir(parents=True)
    for key, (sample, photo) in fetched.items():
        (folder / f"{key}.jpg").write_bytes(photo)
        (folder / f"{key}.json").write_text(json.dumps({"sample_id": sample, "url": f"http://x/{sample}.jpg"}))
    (folder / "000.jpg").rename(folder / "000.JPEG")
    (folder / "004.jpg").write_bytes(JPEG)  # without a note
    (folder / "000.1.png").write_bytes(JPEG)
    (folder / "000.1.json").mkdir()
    (folder / "005.jpg").write_bytes(JPEG)
    (folder / "005.json").write_text("[1")
    assert import_photos(catalog, tmp_path / "out") == (1, 6)
    again = read_catalog(tmp_path / "catalog")
    assert set(again.photos) == {"a"}
    assert import_photos(again, tmp_path / "out") == (0, 7)
    refused(lambda: import_photos(catalog, tmp_path / "nowhere"), "nowhere: no such folder")


def test_of_img2dataset_too_placeholders_and_links_that_lead_out_are_left(tmp_path: Path, capsys):
    names = [f"p{n}" for n in range(12)] + ["link", "good", "deep"]
    catalog_of(tmp_path / "catalog", {name: (f"http://x/{name}.jpg", None) for name in names})
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "outside.jpg").write_bytes(photo_of("outside"))
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps({"sample_id": name}))
        (folder / f"{name}.jpg").write_bytes(JPEG if name[0] == "p" else photo_of(name))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "link.jpg").unlink()
    (folder / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    assert cli.main(["download", str(tmp_path / "catalog"), "--import", str(folder)]) == 0
    assert "1 photos taken in, 14 left" in capsys.readouterr().out
    assert set(read_catalog(tmp_path / "catalog").photos) == {"good"}
    assert len(list(folder.iterdir())) == 2 * len(names)
