"""Fetching a catalog's photos, verified and resumable. Requests go wherever its addresses lead: mind a stranger's."""

import json
import threading
import time
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import httpx
import pandas as pd
import tenacity

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog, is_url
from capture_lib.utils import InputError, progress, write_atomically

HEADERS = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "capture-lib"}


@dataclass(frozen=True)
class DownloadSettings:
    """What we ask of a photo server at most, and what it may send."""

    connections: int = 16  # 100 at most
    per_host: int = 4  # photos of one host at the same time
    interval: float = 0.02  # seconds between two requests to one host, on average
    seconds: float = 60.0  # for one answer
    tries: int = 3  # of each address
    pause: float = 1.0  # seconds before the second try; doubled before each later one
    max_bytes: int = 20_000_000


def download(catalog: Catalog, settings: DownloadSettings | None = None) -> pd.DataFrame:
    """Fetch every photo that is not on disk; return `missing.csv`: sample_id, address and reason of a failure."""
    settings = settings or DownloadSettings()
    client = httpx.Client(headers=HEADERS, timeout=min(20, settings.seconds), follow_redirects=True, max_redirects=5)
    retry = tenacity.retry(
        retry=tenacity.retry_if_exception_type(httpx.TransportError), reraise=True,
        stop=tenacity.stop_after_attempt(settings.tries), wait=tenacity.wait_random_exponential(settings.pause, max=60))
    ask = retry(read_answer)
    hosts: dict[str, threading.Semaphore] = {}

    def fetch(row: tuple) -> list[tuple[str, str, str]]:
        """Fetch one photo from its address or its mirror; return the lines of `missing.csv` if both fail."""
        lines = []
        for address in filter(None, dict.fromkeys((row.image, row.mirror))):
            host = address.split("/")[2]
            try:
                with hosts.setdefault(host, threading.Semaphore(settings.per_host)):
                    time.sleep(settings.interval * settings.per_host)
                    body = ask(client, address, settings)
                save(body, catalog.photo_path(row.sample_id, row.image))
                return []
            except InputError:
                reason = "the answer is not a photo that decodes"
            except OSError:  # our disk is full, for example: the run ends
                raise
            except Exception as error:  # odd hosts and ports make the layers below fail in many ways
                reason = " ".join(f"{type(error).__name__} {error}".split())[:100]
            lines.append((row.sample_id, address, reason))
        return lines

    rows = absent(catalog)
    lines = []
    with ThreadPool(settings.connections) as pool:
        try:
            for missing in progress(pool.imap_unordered(fetch, rows.itertuples()), "photos fetched", len(rows)):
                lines += missing
        finally:  # after Ctrl-C as well
            table = pd.DataFrame(lines, columns=["sample_id", "address", "reason"])
            with write_atomically(catalog.folder / "missing.csv") as beside:
                table.to_csv(beside, index=False)
    return table


def absent(catalog: Catalog) -> pd.DataFrame:
    """Return the rows that have an address and no photo on disk now."""
    photos = Catalog(catalog.folder, catalog.table).photos
    return catalog.table[catalog.table["image"].map(is_url) & ~catalog.table["sample_id"].isin(photos)]


def read_answer(client: httpx.Client, address: str, settings: DownloadSettings) -> bytes:
    """Ask once and return the body; TransportError where a later try may help, ValueError where not."""
    end = time.monotonic() + settings.seconds
    body = bytearray()
    with client.stream("GET", address) as answer:
        status = answer.status_code
        if status in (408, 425, 429) or status >= 500:
            raise httpx.TransportError(f"status {status}")
        if status != 200:
            raise ValueError(f"status {status}")
        for chunk in answer.iter_raw():  # and nothing beyond the limits
            body += chunk
            if len(body) > settings.max_bytes:
                raise ValueError(f"more than {settings.max_bytes:,} bytes")
            if time.monotonic() > end:
                raise httpx.TransportError(f"slower than {settings.seconds:g} s")
    return bytes(body)


def save(body: bytes, target: Path) -> None:
    """Put a photo in its place if it decodes, else raise InputError."""
    with write_atomically(target) as beside:
        beside.write_bytes(body)
        load_photo(beside)


# ---- with img2dataset, for catalogs too large for one machine (see data/README.md)


def export_addresses(catalog: Catalog, file: Path) -> int:
    """Write sample_id, url and mirror of the photos that are not on disk, as parquet; return how many."""
    table = absent(catalog)[["sample_id", "image", "mirror"]].astype("string")
    table["mirror"] = table["mirror"].fillna(table["image"])
    with write_atomically(file) as beside:
        table.rename(columns={"image": "url"}).to_parquet(beside, index=False)
    return len(table)


def import_photos(catalog: Catalog, folder: Path) -> tuple[int, int]:
    """Take in the photos that img2dataset wrote as files, a note (JSON) beside each; return how many, and the rest."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give the output folder of img2dataset")
    wanted = dict(absent(catalog)[["sample_id", "image"]].itertuples(index=False))
    photos = [path for path in sorted(Path(folder).rglob("*")) if path.suffix in (".jpg", ".png", ".webp")]
    taken = 0
    for photo in progress(photos, "photos taken in", len(photos)):
        try:
            sample = json.loads(photo.with_suffix(".json").read_bytes())["sample_id"]
            save(photo.read_bytes(), catalog.photo_path(sample, wanted[sample]))
            taken += 1
        except (FileNotFoundError, LookupError, TypeError, ValueError):  # no note, no sample of ours, no photo
            pass
    return taken, len(photos) - taken
