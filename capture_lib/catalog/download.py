"""Fetching the photos of a catalog: both addresses of each, verified, resumable.

Addresses are data, and whoever wrote the catalog chose them: a request may go to any host that
this machine reaches, private ones too. Fetch strangers' catalogs from where that does no harm.
"""

import csv
import hashlib
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import TimeoutError as NoOutcome
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TextIO

import httpx
import pandas as pd
import tenacity

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog, is_url
from capture_lib.utils import InputError, progress, write_atomically

LOG_COLUMNS = ("sample_id", "sha256", "bytes", "width", "height", "address", "time")
HEADERS = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "capture-lib"}
PASSING = {408, 425, 429, 500, 502, 503, 504}  # states that a later try may find gone
WAITING = 4  # photos under way for each connection: one slow host shall not hold up the others
Reasons = dict[str, str]  # by address


@dataclass(frozen=True)
class DownloadSettings:
    """Limits that a photo server, or a hostile one, must keep; and what we ask of it at most."""

    connections: int = 16
    per_host: int = 4  # photos of one host at the same time
    interval: float = 0.02  # seconds between two requests to one host, on average
    seconds: float = 60.0  # for one answer
    tries: int = 3  # of each address
    pause: float = 1.0  # seconds before the second try; doubled before each later one
    max_pause: float = 60.0  # seconds, also where a server asks for more (Retry-After)
    max_bytes: int = 20_000_000


class Refused(Exception):
    """No photo at an address: the reason, and whether another try may help, after which pause."""

    def __init__(self, reason: str, passing: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.passing = passing
        self.pause = pause


def download(catalog: Catalog, settings: DownloadSettings | None = None) -> dict[str, Reasons]:
    """Fetch every photo that is not on disk; go on where an earlier run was stopped, even killed.

    Returns:
        The reasons for each sample without a photo, as in `missing.csv`.
    """
    fetcher = Fetcher(catalog, settings or DownloadSettings())
    rows = {row.sample_id: row for row in absent(catalog).itertuples()}
    missing: dict[str, Reasons] = {}
    with open_log(catalog.folder) as log, fetcher.client, ThreadPool(fetcher.threads) as pool:
        results = pool.imap_unordered(fetcher.photo, list(rows.values()))
        outcomes = iter(lambda: results.next(fetcher.patience), None)
        try:
            for sample, cells, reasons in progress(outcomes, "photos fetched", len(rows)):
                del rows[sample]
                if cells:
                    csv.writer(log).writerow((sample, *cells))
                else:
                    missing[sample] = reasons
        except NoOutcome:  # servers that send their headers without end
            reason = f"no answer in {fetcher.patience:g} s"
            missing |= {sample: {row.image: reason} for sample, row in rows.items()}
        finally:  # after Ctrl-C as well
            fetcher.stopped.set()
            lines = [(sample, *pair) for sample, reasons in missing.items() for pair in reasons.items()]
            with write_atomically(catalog.folder / "missing.csv") as beside:
                pd.DataFrame(lines, columns=["sample_id", "address", "reason"]).to_csv(beside, index=False)
    return missing


def absent(catalog: Catalog) -> pd.DataFrame:
    """Return the rows that have an address and no photo on disk, or an empty one."""
    sizes = Catalog(catalog.folder, catalog.table).sizes  # as they are now
    table = catalog.table
    return table[table["image"].map(is_url) & ~table["sample_id"].map(sizes).fillna(0).astype(bool)]


def open_log(folder: Path) -> TextIO:
    """Open `downloads.csv`, a line for each photo as it comes; drop one that a kill cut off."""
    file = (folder / "downloads.csv").open("a+", encoding="utf-8", newline="", buffering=1)
    end = (folder / "downloads.csv").read_bytes().rfind(b"\n") + 1
    file.truncate(end)
    if not end:
        csv.writer(file).writerow(LOG_COLUMNS)
    return file


def save(body: bytes, target: Path, address: str) -> tuple:
    """Put a photo in its place if it decodes, else raise InputError; return its cells of the log."""
    with write_atomically(target) as beside:
        beside.write_bytes(body)
        height, width = load_photo(beside).shape[:2]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return hashlib.sha256(body).hexdigest(), len(body), width, height, address, now


class Fetcher:
    """The requests of one run: its connections and the hosts that it has met."""

    def __init__(self, catalog: Catalog, settings: DownloadSettings) -> None:
        self.catalog = catalog
        self.settings = settings
        self.threads = WAITING * settings.connections  # they end with the process at the latest
        self.rest = settings.interval * settings.per_host  # seconds after a request of each slot of a host
        self.patience = 2 * settings.tries * (settings.seconds + settings.max_pause + self.rest)  # for a photo
        self.connections = threading.Semaphore(settings.connections)
        self.hosts: dict[str, threading.Semaphore] = {}
        self.stopped = threading.Event()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.connections)
        self.client = httpx.Client(headers=HEADERS, limits=limits, timeout=min(20, settings.seconds),
                                   follow_redirects=True, max_redirects=5)

    def photo(self, row: tuple) -> tuple[str, tuple | None, Reasons]:
        """Fetch one photo from its address or its mirror: id, cells of the log, reasons."""
        target = self.catalog.photo_path(row.sample_id, row.image)
        reasons = {}
        for address in filter(None, dict.fromkeys((row.image, row.mirror))):
            try:
                return row.sample_id, save(self.body(address), target, address), {}
            except Refused as refused:
                reasons[address] = str(refused)
            except InputError as error:
                bomb = "pixels" in str(error)
                reasons[address] = "too many pixels" if bomb else "the answer is not a photo that decodes"
        return row.sample_id, None, reasons

    def body(self, address: str) -> bytes:
        """Return the body behind an address, tried again after growing pauses where that may help."""
        settings = self.settings
        backoff = tenacity.wait_random_exponential(settings.pause, settings.max_pause)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: error.passing),
            wait=lambda state: max(backoff(state), state.outcome.exception().pause),
            stop=tenacity.stop_after_attempt(settings.tries), sleep=self.stopped.wait, reraise=True)
        host = address.split("/")[2]
        with self.hosts.setdefault(host, threading.Semaphore(settings.per_host)):
            return retrying(self.attempt, address)

    def attempt(self, address: str) -> bytes:
        """Ask once; return the body, or raise Refused."""
        if self.stopped.is_set():
            raise Refused("stopped")
        try:
            with self.connections, self.client.stream("GET", address) as answer:
                return self.read(answer)
        except Refused:
            raise
        except Exception as error:  # odd hosts and ports make the layers below fail in many ways
            passing = isinstance(error, httpx.TransportError)
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise Refused(reason[:100], passing) from None
        finally:
            self.stopped.wait(self.rest)

    def read(self, answer: httpx.Response) -> bytes:
        """Return the body as it was sent, and read nothing beyond the limits."""
        settings = self.settings
        if answer.status_code != 200:
            asked = answer.headers.get("retry-after", "")
            pause = min(float(asked), settings.max_pause) if asked.isdecimal() else 0.0
            raise Refused(f"status {answer.status_code}", answer.status_code in PASSING, pause)
        end = time.monotonic() + settings.seconds
        body = bytearray()
        for chunk in answer.iter_raw():
            body += chunk
            if len(body) > settings.max_bytes:
                raise Refused(f"more than {settings.max_bytes:,} bytes")
            if time.monotonic() > end or self.stopped.is_set():
                raise Refused(f"slower than {settings.seconds:g} s", passing=True)
        return bytes(body)
