"""Fetching the photos of a catalog: both addresses of each, verified, resumable, with a table of what is missing.

`downloads.csv` in the catalog's folder has a line for each photo on disk, written as it arrives; `missing.csv` has one
for each address that gave none. Addresses are data, and whoever wrote the catalog chose them: a request may go to any
host that this machine reaches, private ones too. Fetch strangers' catalogs from where that does no harm.
"""

import asyncio
import csv
import hashlib
import queue
import random
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog, is_url
from capture_lib.utils import InputError, progress, write_atomically

LOG_COLUMNS = ("sample_id", "sha256", "bytes", "width", "height", "address", "time")
WORTH_ANOTHER = {408, 425, 429, 500, 502, 503, 504}  # states that pass
WAITING = 4  # photos under way for each connection: one slow host shall not hold up the others


@dataclass(frozen=True)
class DownloadSettings:
    """Limits that a photo server, or a hostile one, must keep; and what we ask of it at most."""

    connections: int = 16
    per_host: int = 4  # requests to one host at the same time
    interval: float = 0.02  # seconds between two requests to one host
    tries: int = 3  # of each address
    first_pause: float = 1.0  # seconds before the second try; doubled before each later one
    most_pause: float = 60.0  # seconds, also where a server asks for more (Retry-After)
    timeout: float = 20.0  # seconds without a byte
    max_seconds: float = 60.0  # for one answer
    max_bytes: int = 20_000_000
    most_redirects: int = 5

    def __post_init__(self) -> None:
        if min(self.connections, self.per_host, self.tries) < 1 or min(self.interval, self.timeout) < 0:
            raise InputError(f"connections, requests per host and tries start at 1, seconds at 0: {self}")


class Refused(Exception):
    """No photo at an address: why, whether another try may help, and how many seconds the server asks us to wait."""

    def __init__(self, reason: str, worth_another: bool = False, pause: float | None = None) -> None:
        super().__init__(reason)
        self.worth_another, self.pause = worth_another, pause


Outcome = tuple[str, tuple | None, dict[str, str]]  # sample id, cells of the log (None: no photo), reason by address


def download(catalog: Catalog, settings: DownloadSettings | None = None) -> dict[str, dict[str, str]]:
    """Fetches every photo that is not on disk yet, each checked by decoding it.

    A run that was stopped, even killed, goes on where it was. `missing.csv` is of the latest run.

    Returns:
        Of each sample without a photo its addresses, each with the reason.
    """
    missing: dict[str, dict[str, str]] = {}
    with closing(DownloadLog(catalog)) as log:
        rows = [row for row in progress(catalog.table.itertuples(), "samples looked up", len(catalog.table))
                if is_url(row.image) and not log.holds(row.sample_id, row.image)]
        try:
            with closing(fetch_all(rows, catalog, settings or DownloadSettings())) as outcomes:
                for sample, cells, reasons in progress(outcomes, "photos fetched", len(rows)):
                    if cells:
                        log.write(sample, *cells)
                    else:
                        missing[sample] = reasons
        finally:  # after Ctrl-C as well
            lines = [(sample, *pair) for sample, reasons in missing.items() for pair in reasons.items()]
            with write_atomically(catalog.folder / "missing.csv") as beside, beside.open("w", newline="") as file:
                csv.writer(file).writerows([("sample_id", "address", "reason"), *lines])
    return missing


class DownloadLog:
    """`downloads.csv`: one line a photo, appended and flushed as it comes; a line that a kill cut off is dropped."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog, path, end = catalog, catalog.folder / "downloads.csv", 0
        self.sizes: dict[str, str] = {}
        self.file = path.open("a+", encoding="utf-8", newline="")
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    cells = [*line.decode("utf-8", "replace").split(","), "", ""]
                    end, self.sizes[cells[0]] = end + len(line), cells[2]
        self.file.truncate(end)
        if not end:
            self.write(*LOG_COLUMNS)

    def write(self, *cells: object) -> None:
        """Appends a line with the cells of `LOG_COLUMNS`."""
        csv.writer(self.file, lineterminator="\n").writerow(cells)
        self.file.flush()

    def holds(self, sample: str, image: str) -> bool:
        """True where the photo is on disk as logged; one that is there without a line is verified and logged."""
        path = self.catalog.photo_path(sample, image)
        if not path.is_file():
            return False
        if self.sizes.get(sample) == str(path.stat().st_size):
            return True
        try:
            self.write(sample, *verified(path), "", now())
        except InputError:
            return False
        return True

    def close(self) -> None:
        self.file.close()


def verified(path: Path) -> tuple[str, int, int, int]:
    """SHA-256, size in bytes, width and height of a photo that decodes; InputError of any other."""
    height, width = load_photo(path).shape[:2]
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), len(content), width, height


def save(body: bytes, target: Path) -> tuple[str, int, int, int]:
    """Puts a photo in its place if it decodes; see `verified`."""
    with write_atomically(target) as beside:
        beside.write_bytes(body)
        return verified(beside)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def fetch_all(rows: list[tuple], catalog: Catalog, settings: DownloadSettings) -> Iterator[Outcome]:
    """Fetches the photos of rows and yields what came of each; closing it stops what is under way.

    The requests run in a thread of their own, because a notebook's thread has an event loop already.
    """
    outcomes: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    work = loop.create_task(Fetcher(catalog, settings).run(iter(rows), outcomes.put))
    work.add_done_callback(lambda task: outcomes.put(None if task.cancelled() else task.exception()))

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.get_loop().run_until_complete(asyncio.wait([work]))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while isinstance(outcome := outcomes.get(), tuple):
            yield outcome
        if outcome is not None:
            raise outcome
    finally:
        if not work.done():
            loop.call_soon_threadsafe(work.cancel)
        thread.join()


class Host:
    """One host: so many requests at the same time, so long apart, and none while it asks for rest."""

    def __init__(self, settings: DownloadSettings) -> None:
        self.slots, self.interval, self.next = asyncio.Semaphore(settings.per_host), settings.interval, 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until a request may go out; holds its slot while it runs."""
        clock = asyncio.get_running_loop().time
        async with self.slots:
            while (pause := self.next - clock()) > 0:
                await asyncio.sleep(pause)
            self.next = clock() + self.interval
            yield

    def rest(self, seconds: float) -> None:
        """No request for so long."""
        self.next = max(self.next, asyncio.get_running_loop().time() + seconds)


class Fetcher:
    """The requests of one run: its connections and the hosts that it has met."""

    def __init__(self, catalog: Catalog, settings: DownloadSettings) -> None:
        self.catalog, self.settings, self.hosts = catalog, settings, {}
        self.connections = asyncio.Semaphore(settings.connections)

    async def run(self, rows: Iterable[tuple], tell: callable) -> None:
        """Fetches all photos, a bounded number of them at a time, and tells the outcome of each."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.settings.connections)
        headers = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "capture-lib"}

        async def work() -> None:
            for row in rows:  # one iterator for all
                tell(await self.photo(row))

        async with httpx.AsyncClient(timeout=self.settings.timeout, limits=limits, headers=headers) as self.client:
            await asyncio.gather(*(work() for _ in range(WAITING * self.settings.connections)))

    async def photo(self, row: tuple) -> Outcome:
        """Fetches one photo from its address or its mirror."""
        target, reasons = self.catalog.photo_path(row.sample_id, row.image), {}
        for address in dict.fromkeys(filter(None, (row.image, row.mirror))):
            for attempt in range(self.settings.tries):
                try:
                    body = await self.body(address)
                    cells = await asyncio.to_thread(save, body, target)
                    return row.sample_id, (*cells, address, now()), {}
                except InputError as error:
                    pixels = "pixels" in str(error)
                    reasons[address] = "too many pixels" if pixels else "the answer is not a photo that decodes"
                    break
                except Refused as refused:
                    reasons[address] = str(refused)
                    if not refused.worth_another or attempt == self.settings.tries - 1:
                        break
                    pause = min(self.settings.first_pause * 2 ** attempt, self.settings.most_pause)
                    await asyncio.sleep(0 if refused.pause else pause * random.uniform(0.5, 1))
        return row.sample_id, None, reasons

    async def body(self, address: str) -> bytes:
        """The body behind an address, redirects followed one by one, each hop at its own host's pace."""
        for _ in range(self.settings.most_redirects + 1):
            answer = await self.ask(address)
            if isinstance(answer, bytes):
                return answer
            address = answer
        raise Refused(f"more than {self.settings.most_redirects} redirects")

    async def ask(self, address: str) -> bytes | str:
        """One request: a body, or the address that it redirects to."""
        try:
            url = httpx.URL(address)
            if url.scheme not in ("http", "https") or not url.host:
                raise Refused(f"leads to {address!r:.80}, which is no web address")
            host = self.hosts.setdefault(url.netloc, Host(self.settings))
            async with host.turn(), self.connections, asyncio.timeout(self.settings.max_seconds):
                async with self.client.stream("GET", url) as answer:
                    if answer.has_redirect_location:
                        return str(url.join(answer.headers["location"]))
                    if answer.status_code != 200:
                        pause = min(retry_after(answer.headers.get("retry-after", "")), self.settings.most_pause)
                        host.rest(pause)
                        raise Refused(f"status {answer.status_code}", answer.status_code in WORTH_ANOTHER, pause)
                    return await self.read(answer)
        except Refused:
            raise
        except TimeoutError:
            raise Refused(f"slower than {self.settings.max_seconds:g} s", True) from None
        except httpx.HTTPError as error:
            raise Refused(f"{type(error).__name__} {error}".strip()[:100], True) from None
        except Exception as error:  # odd hosts and ports make the layers below fail in many ways; go on with the rest
            raise Refused(f"cannot be asked ({type(error).__name__} {error})"[:100]) from None

    async def read(self, answer: httpx.Response) -> bytes:
        """The body as it was sent: nothing is unpacked, and nothing is read beyond the limit."""
        body = bytearray()
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > self.settings.max_bytes:
                raise Refused(f"more than {self.settings.max_bytes:,} bytes")
        return bytes(body)


def retry_after(text: str) -> float:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; 0 without one."""
    try:
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
