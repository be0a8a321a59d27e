"""Fetching a catalog's photos, verified and resumable. Requests go wherever its addresses lead: mind a stranger's."""

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import httpx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tenacity

from capture_lib.catalog import quality
from capture_lib.catalog.photos import load_photo, what_is
from capture_lib.catalog.table import Catalog, is_url
from capture_lib.utils import InputError, claim_file, progress, say, write_atomically

EXPORT_MARK = rb"PAR1.*\x18\x07made_by\x18\x10capture download"  # as a parquet file holds metadata of its schema
HEADERS = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
MIN_SIDE = 8  # pixels; less is a tracking pixel
MAX_SAME = 4  # addresses that may give the same bytes, as one photo in several offers; more: a placeholder


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
    user_agent: str = "capture-lib"
    referer: str = ""

Seen = dict[str, dict[str, list[Path]]]  # of a run: the digest of a photo, the addresses that gave it, the files


def download(catalog: Catalog, settings: DownloadSettings) -> pd.DataFrame:
    """Fetch every photo that is not on disk; return `missing.csv`: sample_id, address and reason of a failure."""
    claim_file(catalog.folder / "missing.csv", b"sample_id,address,reason")
    headers = {"User-Agent": settings.user_agent.strip(" ") or DownloadSettings.user_agent,
               "Referer": settings.referer.strip(" ")}
    for name, value in headers.items():
        if not re.fullmatch("[ -~]*", value):
            raise InputError(f"{name} {value!r:.80}: ASCII letters, digits and signs only, in one line")
    client = httpx.Client(headers=HEADERS | {name: value for name, value in headers.items() if value},
                          timeout=min(20, settings.seconds), follow_redirects=True, max_redirects=5)
    ask = tenacity.retry(
        retry=tenacity.retry_if_exception_type(httpx.TransportError), reraise=True,
        stop=tenacity.stop_after_attempt(settings.tries),
        wait=tenacity.wait_random_exponential(settings.pause, max=60))(read_answer)
    hosts: dict[str, threading.Semaphore] = {}
    seen: Seen = {}

    def fetch(row: tuple) -> list[tuple[str, str, str]]:
        """Fetch one photo from its address or its mirror; return the lines of `missing.csv` if both fail."""
        lines = []
        for address in filter(None, dict.fromkeys((row.image, row.mirror))):
            host = address.split("/")[2]
            try:
                with hosts.setdefault(host, threading.Semaphore(settings.per_host)):
                    time.sleep(settings.interval * settings.per_host)
                    body = ask(client, address, settings)
                save(body, catalog.photo_path(row.sample_id, row.image), address, seen)
                return []
            except OSError:  # our disk is full, for example: the run ends
                raise
            except Exception as error:  # odd hosts and ports make the layers below fail in many ways
                reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__} {error}"
                reason = quality.printable(reason)  # a server's words, in part
            lines.append((row.sample_id, address, " ".join(reason.split())[:100]))
        return lines

    rows = absent(catalog)
    lines = []
    with ThreadPool(settings.connections) as pool:
        try:
            while len(rows):
                for missing in progress(pool.imap_unordered(fetch, rows.itertuples()), "photos fetched", len(rows)):
                    lines += missing
                # those removed as placeholders are asked for again: there may be a mirror
                rows = absent(Catalog(catalog.folder, rows))
                rows = rows[~rows["sample_id"].isin([line[0] for line in lines])]
        finally:  # after Ctrl-C as well
            table = pd.DataFrame(lines, columns=["sample_id", "address", "reason"])
            quality.write(table, catalog.folder / "missing.csv")
    say_doubles(seen)
    return table


def absent(catalog: Catalog) -> pd.DataFrame:
    """Return the rows that have an address and no photo on disk now; InputError: their photos would go elsewhere."""
    photos = Catalog(catalog.folder, catalog.table).photos
    rows = catalog.table[catalog.table["image"].map(is_url) & ~catalog.table["sample_id"].isin(photos)]
    inside = (catalog.folder / "images").resolve()
    for folder in {catalog.photo_path(row.sample_id, row.image).parent for row in rows.itertuples()}:
        if not folder.resolve().is_relative_to(inside):
            raise InputError(f"{folder}: a link leads out of the catalog; remove it")
    return rows


def read_answer(client: httpx.Client, address: str, settings: DownloadSettings) -> bytes:
    """Ask once; return the body. TransportError where a later try may help, else InputError."""
    end = time.monotonic() + settings.seconds
    body = bytearray()
    with client.stream("GET", address) as answer:
        status = answer.status_code
        if status in (408, 425, 429) or status >= 500:
            raise httpx.TransportError(f"status {status}")
        if status != 200:
            raise InputError(f"status {status} {answer.headers.get('content-type', '')}")
        for chunk in answer.iter_raw():  # and nothing beyond the limits
            body += chunk
            if len(body) > settings.max_bytes:
                raise InputError(f"more than {settings.max_bytes:,} bytes")
            if time.monotonic() > end:
                raise httpx.TransportError(f"slower than {settings.seconds:g} s")
    return bytes(body)


def save(body: bytes, target: Path, address: str, seen: Seen) -> None:
    """Put a photo in its place; InputError: it does not decode, or is a placeholder, whose files of this run go."""
    same = seen.setdefault(hashlib.sha256(body).hexdigest(), {})
    if len(same) <= MAX_SAME:
        with write_atomically(target) as beside:
            beside.write_bytes(body)
            try:
                height, width = load_photo(beside).shape[:2]
            except InputError:
                kind = what_is(body[:1024]).partition(";")[0]
                raise InputError(f"the answer is {kind + ', ' if kind else ''}not a photo that decodes") from None
            if min(height, width) < MIN_SIDE:
                raise InputError(f"{width}×{height} pixels are no photo")
        same.setdefault(address, []).append(target)
    if len(same) > MAX_SAME:
        for photo in sum(same.copy().values(), []):
            photo.unlink(missing_ok=True)
        raise InputError(f"a placeholder: more than {MAX_SAME} addresses gave this same picture")


def say_doubles(seen: Seen) -> int:
    """Say how many of the photos that came have the bytes of another one; return how many came."""
    kept = [sum(map(len, same.values())) for same in seen.values() if len(same) <= MAX_SAME]
    if sum(kept) > len(kept):
        say(f"{sum(kept) - len(kept):,} photos have the same bytes as another one; they are kept")
    return sum(kept)


# ---- with img2dataset, for catalogs too large for one machine (see data/README.md)


def export_addresses(catalog: Catalog, file: Path) -> int:
    """Write sample_id, url and mirror of the photos that are not on disk, as parquet; return how many."""
    table = absent(catalog)[["sample_id", "image", "mirror"]].astype("string")
    table["mirror"] = table["mirror"].fillna(table["image"])
    rows = pa.Table.from_pandas(table.rename(columns={"image": "url"}), preserve_index=False)
    with write_atomically(file) as beside:
        pq.write_table(rows.replace_schema_metadata({"made_by": "capture download"}), beside)
    return len(table)


def import_photos(catalog: Catalog, folder: Path) -> tuple[int, int]:
    """Take in the photos that img2dataset wrote as files, a note (JSON) beside each; return how many, and the rest."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give the output folder of img2dataset")
    wanted = dict(absent(catalog)[["sample_id", "image"]].itertuples(index=False))
    kinds = (".jpg", ".jpeg", ".png", ".webp")
    photos = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in kinds]
    inside = Path(folder).resolve()
    seen: Seen = {}
    for photo in progress(photos, "photos taken in", len(photos)):
        try:
            sample = json.loads(photo.with_suffix(".json").read_bytes())["sample_id"]
            if photo.is_file() and photo.resolve().is_relative_to(inside):  # no link that leads out
                save(photo.read_bytes(), catalog.photo_path(sample, wanted[sample]), wanted[sample], seen)
        except (FileNotFoundError, IsADirectoryError, LookupError, RecursionError, TypeError, ValueError):
            pass  # no note of ours, no photo
    taken = say_doubles(seen)
    return taken, len(photos) - taken
