"""Fetching the photos of a catalog: both addresses of each, verified, resumable, with a table of what is missing."""

import csv
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import requests

from capture_lib.catalog import Catalog, is_url
from capture_lib.faults import InputError
from capture_lib.paths import write_atomically
from capture_lib.photos import load_photo
from capture_lib.progress import progress


@dataclass(frozen=True)
class DownloadSettings:
    """Limits that a photo server, or a hostile one, must keep."""

    connections: int = 8
    tries: int = 2  # of each address
    timeout: float = 20.0  # seconds without a byte
    most_seconds: float = 60.0  # for one photo
    most_bytes: int = 20_000_000
    most_redirects: int = 5


def download(catalog: Catalog, settings: DownloadSettings | None = None) -> dict[str, str]:
    """Fetches every photo that is not on disk yet; returns sample id to reason for those that cannot be had.

    A photo counts only when it decodes. `missing.csv` in the catalog's folder lists the rest with their reasons.
    """
    settings = settings or DownloadSettings()
    rows = [row for row in catalog.table.itertuples() if is_url(row.image) and row.sample_id not in catalog.photos]
    with ThreadPoolExecutor(settings.connections) as pool:
        work = pool.map(partial(fetch, catalog=catalog, settings=settings), rows)
        reasons = list(progress(work, "photos fetched", len(rows)))
    missing = {row.sample_id: reason for row, reason in zip(rows, reasons, strict=True) if reason}
    with write_atomically(catalog.folder / "missing.csv") as beside, beside.open("w", newline="") as file:
        csv.writer(file).writerows([("sample_id", "reason"), *missing.items()])
    return missing


def fetch(row: tuple, catalog: Catalog, settings: DownloadSettings) -> str | None:
    """Fetches one photo from its address or its mirror; None on success, else the reason of each address."""
    target = catalog.photo_path(row.sample_id, row.image)
    reasons = []
    for address in filter(None, (row.image, row.mirror)):
        for attempt in range(settings.tries):
            time.sleep(attempt)  # a second before the second try
            reason, worth_another = fetch_once(address, target, settings)
            if reason is None:
                return None
            if not worth_another:
                break
        reasons.append(f"{address}: {reason}")
    return "; ".join(reasons)


def fetch_once(address: str, target: Path, settings: DownloadSettings) -> tuple[str | None, bool]:
    """One request: (None, False) when the photo is in place, else the reason and whether another try may help."""
    started = time.monotonic()
    try:
        with requests.Session() as session, write_atomically(target) as beside:
            session.max_redirects = settings.most_redirects
            with session.get(address, timeout=settings.timeout, stream=True) as answer:
                if answer.status_code != 200:
                    raise PhotoRefused(f"status {answer.status_code}", answer.status_code >= 500)
                with beside.open("wb") as file:
                    for chunk in answer.iter_content(65_536):
                        file.write(chunk)
                        if file.tell() > settings.most_bytes:
                            raise PhotoRefused(f"more than {settings.most_bytes:,} bytes", False)
                        if time.monotonic() - started > settings.most_seconds:
                            raise PhotoRefused(f"slower than {settings.most_seconds:.0f} s", True)
            load_photo(beside)
    except PhotoRefused as refused:
        return str(refused), refused.worth_another
    except InputError:
        return "the answer is not a photo that decodes", False
    except requests.RequestException as error:
        return type(error).__name__, not isinstance(error, requests.TooManyRedirects)
    return None, False


class PhotoRefused(Exception):
    """An answer that is no photo, and whether another try may help."""

    def __init__(self, reason: str, worth_another: bool) -> None:
        super().__init__(reason)
        self.worth_another = worth_another
