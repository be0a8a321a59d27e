"""Downloading against a server on this machine that answers like the real ones, good and bad."""

import csv
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections import Counter
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from capture_lib import cli
from capture_lib.catalog import shards
from capture_lib.catalog.download import DownloadLog, DownloadSettings, download, retry_after
from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog, InputError, read_catalog, write_catalog

SETTINGS = DownloadSettings(connections=16, per_host=16, interval=0, tries=1, first_pause=0.01, most_pause=1, timeout=1,
                            max_seconds=1.5, max_bytes=200_000, most_redirects=3)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a hundred bytes that claims side × side pixels."""
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


JPEG, PNG = picture("JPEG"), picture("PNG")
BODIES = {"good": JPEG, "png.jpg": PNG, "html": b"<html>gone</html>", "truncated": JPEG[:400], "empty": b"",
          "bomb": bomb(50_000), "small-bomb": bomb(11_000), "large": JPEG + bytes(300_000)}
REDIRECTS = {"loop": "/loop", "moved": "/good", "file": "file:///etc/hostname", "nowhere": "http://", "odd": "//[::"}
PASSING = {"busy": 429, "shaky": 500, "resting": 503}  # the first answer; the next one is a photo


class Server(BaseHTTPRequestHandler):
    """Each path is one kind of answer; what follows a second slash tells samples apart."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        state, name = self.server.state, self.path.split("/")[1]
        with state.lock:
            state.asked[self.path] += 1
            state.times.append(time.monotonic())
            state.now += 1
            state.most = max(state.most, state.now)
            count = state.asked[self.path]
        try:
            self.reply(name, count)
        except OSError:
            self.close_connection = True
        finally:
            with state.lock:
                state.now -= 1

    def reply(self, name: str, count: int) -> None:
        if name in REDIRECTS:
            self.answer(302, b"moved", Location=REDIRECTS[name])
        elif name in PASSING and count == 1:
            rest = {"busy": {"Retry-After": "1"}, "resting": {"Retry-After": "86400"}}.get(name, {})
            self.answer(PASSING[name], b"", **rest)
        elif name == "denied":
            self.answer(403, b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")
        elif name == "slow":
            time.sleep(0.08)
            self.answer(200, JPEG)
        elif name == "short":
            self.answer(200, JPEG[:300], **{"Content-Length": str(len(JPEG))})
            self.close_connection = True
        elif name == "gone":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif name in ("endless", "stalled", "drip"):
            self.send_response(200)
            self.send_header("Content-Length", str(10 ** 12))
            self.end_headers()
            self.without_end(name, bytes(65_536) if name == "endless" else b"\xff")
        elif name == "headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self.without_end(name, b"X-Wait: yes\r\n")
        else:
            self.answer(200 if name in BODIES or name in PASSING else 404, BODIES.get(name, JPEG))

    def without_end(self, name: str, piece: bytes) -> None:
        """Sends a piece again and again: as fast as it goes, slowly, or (stalled) never."""
        while not self.server.state.over.wait(0 if name == "endless" else 0.1):
            if name != "stalled":
                self.wfile.write(piece)
                self.wfile.flush()

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class State:
    """What the server has seen."""

    def __init__(self) -> None:
        self.lock, self.over, self.asked = threading.Lock(), threading.Event(), Counter()
        self.times: list[float] = []
        self.now = self.most = 0


class Loopback(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def handle_error(self, *_: object) -> None:  # a client that hangs up is no news
        pass


@pytest.fixture
def server():
    httpd = Loopback(("127.0.0.1", 0), Server)
    httpd.state, httpd.url = State(), f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    yield httpd
    httpd.state.over.set()
    httpd.shutdown()
    httpd.server_close()


def catalog_of(folder: Path, addresses: dict[str, tuple[str, str | None]]) -> Catalog:
    rows = [{"sample_id": name, "split": "train", "caption": name, "image": image, "mirror": mirror, "labels": []}
            for name, (image, mirror) in addresses.items()]
    write_catalog(pd.DataFrame(rows, dtype=object), folder)
    return read_catalog(folder)


def many(folder: Path, server: Loopback, kind: str, count: int) -> Catalog:
    return catalog_of(folder, {f"s{n}": (f"{server.url}/{kind}/{n}", None) for n in range(count)})


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "downloads.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the size
def test_good_and_bad_answers(server, tmp_path: Path):
    good = {"good", "png.jpg", "moved"}
    bad = {"html": "decode", "truncated": "decode", "empty": "decode", "denied": "status 403", "nothing": "status 404",
           "loop": "more than 3 redirects", "endless": "more than 200,000 bytes", "large": "more than 200,000 bytes",
           "stalled": "ReadTimeout", "drip": "slower than 1.5 s", "headers": "slower than 1.5 s", "short": "Protocol",
           "bomb": "too many pixels", "small-bomb": "too many pixels", "gone": "Protocol", "file": "no web address",
           "nowhere": "more than 3 redirects", "odd": "Invalid URL"}
    catalog = catalog_of(tmp_path, {kind: (f"{server.url}/{kind}", None) for kind in [*good, *bad]})
    started = time.monotonic()
    missing = download(catalog, SETTINGS)
    assert time.monotonic() - started < 8
    assert set(missing) == set(bad)
    assert {kind: reason for kind, reason in bad.items() if reason not in missing[kind][f"{server.url}/{kind}"]} == {}
    assert set(read_catalog(tmp_path).photos) == good
    with (tmp_path / "missing.csv").open(newline="") as file:
        lines = [tuple(row.values()) for row in csv.DictReader(file)]
    assert lines == [(sample, address, reason) for sample, told in missing.items() for address, reason in told.items()]
    assert not list(tmp_path.rglob("*.part"))  # nothing half-written
    assert max(server.state.asked[f"/{kind}"] for kind in bad if REDIRECTS.get(kind) is None) == 1


def test_the_log_holds_hash_size_and_address_of_what_is_on_disk(server, tmp_path: Path):
    catalog = catalog_of(tmp_path, {"a": (f"{server.url}/denied", f"{server.url}/png.jpg"),
                                    "b": (f"{server.url}/good", None)})
    assert download(catalog, SETTINGS) == {}
    lines = {line["sample_id"]: line for line in logged(tmp_path)}
    for sample, path in catalog.photos.items():
        content = path.read_bytes()
        assert lines[sample]["sha256"] == hashlib.sha256(content).hexdigest()
        assert lines[sample]["bytes"] == str(len(content))
        assert (lines[sample]["width"], lines[sample]["height"]) == ("64", "48") and lines[sample]["time"]
    assert lines["a"]["address"].endswith("/png.jpg") and lines["b"]["address"].endswith("/good")
    assert catalog.photos["a"].read_bytes() == PNG and catalog.photos["b"].read_bytes() == JPEG


@pytest.mark.parametrize(("kind", "tries", "asked"), [
    ("busy", 2, 2), ("shaky", 2, 2), ("resting", 2, 2), ("denied", 3, 1), ("html", 3, 1), ("gone", 3, 3),
    ("shaky", 1, 1)])
def test_tries(server, tmp_path: Path, kind: str, tries: int, asked: int):
    missing = download(many(tmp_path, server, kind, 1), DownloadSettings(**vars(SETTINGS) | {"tries": tries}))
    assert server.state.asked[f"/{kind}/0"] == asked
    assert bool(missing) == (kind in ("denied", "html", "gone") or tries == 1)


def test_a_host_rests_as_long_as_it_asks_but_not_longer_than_the_limit(server, tmp_path: Path):
    settings = DownloadSettings(**vars(SETTINGS) | {"tries": 2, "most_pause": 0.5})
    download(many(tmp_path, server, "resting", 1), settings)  # the server asks for a day
    first, second = server.state.times
    assert 0.45 < second - first < 2


def test_retry_after_as_seconds_date_or_nonsense():
    assert retry_after("7") == 7 and retry_after("") == retry_after("soon") == retry_after("-3") == 0
    assert retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 1e6
    assert retry_after("Fri, 01 Jan 1999 00:00:00 GMT") == 0


def test_a_host_gets_no_more_requests_at_a_time_and_none_closer_than_allowed(server, tmp_path: Path):
    catalog = many(tmp_path, server, "slow", 24)
    assert download(catalog, DownloadSettings(**vars(SETTINGS) | {"per_host": 3, "interval": 0.03})) == {}
    times = sorted(server.state.times)
    assert server.state.most == 3
    assert (times[-1] - times[0]) / 23 > 0.025


def test_no_more_connections_than_given_over_all_hosts(server, tmp_path: Path):
    other = server.url.replace("127.0.0.1", "localhost")
    catalog = catalog_of(tmp_path, {f"s{n}": (f"{(server.url, other)[n % 2]}/slow/{n}", None) for n in range(24)})
    assert download(catalog, DownloadSettings(**vars(SETTINGS) | {"connections": 5, "per_host": 4})) == {}
    assert server.state.most == 5


def test_a_stalled_host_does_not_hold_up_the_others(server, tmp_path: Path):
    other = server.url.replace("127.0.0.1", "localhost")
    rows = {f"a{n}": (f"{server.url}/stalled/{n}", None) for n in range(8)} | {"b": (f"{other}/good", None)}
    catalog = catalog_of(tmp_path, rows)
    settings = DownloadSettings(**vars(SETTINGS) | {"connections": 4, "per_host": 2, "timeout": 0.5})
    assert set(download(catalog, settings)) == {f"a{n}" for n in range(8)}
    assert list(server.state.asked).index("/good") <= 3


def test_a_second_run_fetches_only_the_rest(server, tmp_path: Path):
    catalog = many(tmp_path, server, "good", 3)
    assert download(catalog, SETTINGS) == {}
    catalog.photos["s1"].unlink()
    catalog.photos["s2"].write_bytes(b"cut")  # not the size that the log tells
    assert download(catalog, SETTINGS) == {}
    assert [server.state.asked[f"/good/{n}"] for n in range(3)] == [1, 2, 2]
    assert all(load_photo(path).shape == (48, 64, 3) for path in read_catalog(tmp_path).photos.values())


def test_photos_that_the_log_does_not_know_are_verified_and_logged(server, tmp_path: Path):
    catalog = many(tmp_path, server, "good", 3)
    for sample, content in (("s0", PNG), ("s1", b"no photo")):
        path = catalog.photo_path(sample, server.url)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert download(catalog, SETTINGS) == {}
    assert server.state.asked == {"/good/1": 1, "/good/2": 1}
    assert {line["sample_id"]: line["sha256"] for line in logged(tmp_path)} == {
        "s0": hashlib.sha256(PNG).hexdigest(), **dict.fromkeys(("s1", "s2"), hashlib.sha256(JPEG).hexdigest())}


def start(folder: Path, *options: str) -> subprocess.Popen:
    """`capture download` in a process of its own."""
    code = "import sys; from capture_lib.cli import main; sys.exit(main(['download', *sys.argv[1:]]))"
    return subprocess.Popen([sys.executable, "-c", code, str(folder), "--interval", "0", *options],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_killed_run_goes_on_where_it_was(server, tmp_path: Path):
    catalog = many(tmp_path, server, "slow", 60)
    process = start(tmp_path)
    wait_for(lambda: (tmp_path / "downloads.csv").is_file() and len(logged(tmp_path)) > 15)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    log = tmp_path / "downloads.csv"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-2]) + b"s7,abc")  # as a kill may cut it
    there = set(read_catalog(tmp_path).photos)
    assert 10 < len(there) < 60
    before = server.state.asked.copy()
    assert download(catalog, SETTINGS) == {}
    asked = {f"s{path.rsplit('/', 1)[1]}" for path in server.state.asked - before}
    assert asked == {f"s{n}" for n in range(60)} - there
    assert sorted(line["sample_id"] for line in logged(tmp_path)) == sorted(f"s{n}" for n in range(60))
    assert {line["sha256"] for line in logged(tmp_path)} == {hashlib.sha256(JPEG).hexdigest()}
    assert not list(tmp_path.rglob("*.part"))


def test_ctrl_c_stops_at_once_and_keeps_what_is_there(server, tmp_path: Path):
    catalog_of(tmp_path, {f"s{n}": (f"{server.url}/{'good' if n < 3 else 'stalled'}/{n}", None) for n in range(9)})
    process = start(tmp_path)
    wait_for(lambda: (tmp_path / "downloads.csv").is_file() and len(logged(tmp_path)) == 3)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert time.monotonic() - started < 2 and process.returncode == 130
    assert said.strip().startswith("capture: interrupted") and "Traceback" not in said
    assert (tmp_path / "missing.csv").is_file() and len(read_catalog(tmp_path).photos) == 3


def test_the_command_counts_the_reasons(server, tmp_path: Path, capsys):
    catalog_of(tmp_path, {"a": (f"{server.url}/denied", f"{server.url}/nothing"), "b": (f"{server.url}/good", None)})
    assert cli.main(["download", str(tmp_path), "--tries", "1"]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 photos are on disk" in said and "missing.csv" in said
    assert "status 403 (1)" in said and "status 404 (1)" in said
    assert cli.main(["download", str(tmp_path), "--connections", "0"]) == 2


def test_a_run_without_a_single_photo_is_no_success(server, tmp_path: Path):
    many(tmp_path, server, "denied", 2)
    assert cli.main(["download", str(tmp_path), "--tries", "1"]) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999/x", "http://[::1", "http://ex..com/", "http://?", "http://-",
                                     "http://%00/", "http://127.0.0.1:0/", f"http://{'a' * 300}/", "http://\u202e/"])
def test_an_odd_address_is_one_line_in_the_table(tmp_path: Path, address: str):
    missing = download(catalog_of(tmp_path, {"a": (address, None)}), SETTINGS)
    assert len(missing["a"][address].splitlines()) == 1


def test_an_address_with_a_line_break_is_no_address(tmp_path: Path):
    with pytest.raises(InputError, match="must be a URL or a path"):
        catalog_of(tmp_path, {"a": ("http://127.0.0.1/\nx.jpg", None)})


def test_a_full_disk_stops_the_run(server, tmp_path: Path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "images")

    many(tmp_path, server, "good", 5)
    monkeypatch.setattr("capture_lib.download.save", full)
    assert cli.main(["download", str(tmp_path)]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_it_runs_where_an_event_loop_runs_already(server, tmp_path: Path):
    import asyncio

    async def notebook() -> dict:
        return download(many(tmp_path, server, "good", 2), SETTINGS)

    assert asyncio.run(notebook()) == {}


# ---------------------------------------------------------------------------------------- img2dataset


def test_addresses_go_out_for_what_is_not_on_disk(server, tmp_path: Path):
    catalog = catalog_of(tmp_path, {"a": (f"{server.url}/good", None), "b": ("http://x/b.jpg", "http://y/b.jpg")})
    download(catalog_of(tmp_path, {"a": (f"{server.url}/good", None)}), SETTINGS)
    assert shards.export_addresses(catalog, tmp_path / "urls.parquet") == 1
    assert pd.read_parquet(tmp_path / "urls.parquet").to_dict("records") == [
        {"sample_id": "b", "url": "http://x/b.jpg", "mirror": "http://y/b.jpg"}]


@pytest.mark.parametrize("kind", ["files", "webdataset"])
def test_what_img2dataset_fetched_is_verified_and_taken_in(tmp_path: Path, kind: str):
    catalog = catalog_of(tmp_path / "catalog", {name: (f"http://x/{name}.jpg", None) for name in ("a", "b", "c")})
    notes = {"000": ("a", JPEG), "001": ("b", b"<html>"), "002": ("stranger", JPEG), "003": ("../../c", JPEG)}
    parts = {f"{key}{suffix}": content for key, (sample, photo) in notes.items() for suffix, content in
             ((".jpg", photo), (".json", f'{{"sample_id": "{sample}", "url": "http://x/a.jpg"}}'.encode()))}
    parts |= {"_stats.json": b"{}", "004.json": b"[1", "004.jpg": JPEG}
    folder = tmp_path / "out" / "00000"
    folder.mkdir(parents=True)
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    if kind == "webdataset":
        with tarfile.open(tmp_path / "out" / "00000.tar", "w") as shard:
            for name in parts:
                shard.add(folder / name, name)
                (folder / name).unlink()
    assert shards.import_photos(catalog, tmp_path / "out") == (1, 3)
    assert [line["sha256"] for line in logged(tmp_path / "catalog")] == [hashlib.sha256(JPEG).hexdigest()]
    again = read_catalog(tmp_path / "catalog")
    assert set(again.photos) == {"a"} and shards.import_photos(again, tmp_path / "out") == (0, 3)


def test_a_cut_tar_and_a_missing_folder_are_named(tmp_path: Path):
    catalog = catalog_of(tmp_path / "catalog", {"a": ("http://x/a.jpg", None)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match="00000.tar: not a whole tar file"):
        shards.import_photos(catalog, tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        shards.import_photos(catalog, tmp_path / "nowhere")


def test_a_log_that_a_person_damaged_is_no_obstacle(tmp_path: Path):
    catalog = catalog_of(tmp_path, {"a": ("http://x/a.jpg", None)})
    (tmp_path / "downloads.csv").write_bytes(b"\xff\xfe\n,,,\nshort\n\ncut")
    with closing(DownloadLog(catalog)) as log:
        log.write("a", "hash", 1, 2, 3, "http://x/a.jpg,b", "now")
    assert (tmp_path / "downloads.csv").read_bytes().endswith(b'\n\na,hash,1,2,3,"http://x/a.jpg,b",now\n')
