"""Downloading against a server on this machine that answers like the real ones, good and bad."""

import csv
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from capture_lib.catalog import Catalog, read_catalog, write_catalog
from capture_lib.download import DownloadSettings, download
from capture_lib.photos import load_photo

SETTINGS = DownloadSettings(connections=4, tries=1, timeout=1, most_seconds=2, most_bytes=200_000, most_redirects=3)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


class Server(BaseHTTPRequestHandler):
    """Each path is one kind of answer."""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name == "loop":
            self.answer(302, b"", {"Location": "/loop"})
        elif name == "denied":
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(65_536))
            except OSError:
                return
        elif name == "stalled":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.server.release.wait(5)
        else:
            bodies = {"good": picture("JPEG"), "png.jpg": picture("PNG"), "html": b"<html>gone</html>",
                      "truncated": picture("JPEG")[:400]}
            self.answer(200 if name in bodies else 404, bodies.get(name, b""))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    httpd.release = threading.Event()
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.release.set()
    httpd.shutdown()


def catalog_of(folder: Path, addresses: dict[str, tuple[str, str | None]]) -> Catalog:
    rows = [{"sample_id": name, "split": "train", "caption": name, "image": image, "mirror": mirror, "labels": []}
            for name, (image, mirror) in addresses.items()]
    write_catalog(pd.DataFrame(rows, dtype=object), folder)
    return read_catalog(folder)


def test_good_and_bad_answers(server: str, tmp_path: Path):
    kinds = ("good", "png.jpg", "html", "truncated", "denied", "nothing", "loop", "endless", "stalled")
    catalog = catalog_of(tmp_path, {kind: (f"{server}/{kind}", None) for kind in kinds})
    missing = download(catalog, SETTINGS)
    assert set(missing) == {"html", "truncated", "denied", "nothing", "loop", "endless", "stalled"}
    assert "403" in missing["denied"] and "404" in missing["nothing"] and "bytes" in missing["endless"]
    assert "decode" in missing["html"] and "decode" in missing["truncated"]
    assert set(read_catalog(tmp_path).photos) == {"good", "png.jpg"}
    with (tmp_path / "missing.csv").open() as file:
        assert {row["sample_id"] for row in csv.DictReader(file)} == set(missing)
    assert not list(tmp_path.rglob("*.part"))  # nothing half-written


def test_the_mirror_is_tried_and_a_second_run_fetches_only_the_rest(server: str, tmp_path: Path):
    catalog = catalog_of(tmp_path, {"a": (f"{server}/denied", f"{server}/good"), "b": (f"{server}/good", None)})
    assert download(catalog, SETTINGS) == {}
    again = read_catalog(tmp_path)
    times = {name: path.stat().st_mtime_ns for name, path in again.photos.items()}
    assert load_photo(again.photos["a"]).shape == (48, 64, 3)
    assert download(again, SETTINGS) == {}
    assert times == {name: path.stat().st_mtime_ns for name, path in again.photos.items()}
