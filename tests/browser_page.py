"""A real browser for the tests: the Chromium of the system, driven by Playwright, on pages of this machine alone."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]
PATIENCE = 120  # seconds for a page that starts a kernel, on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Open a headless Chromium for a module's tests; they are skipped where the system has none.

    While it lives, Playwright's event loop keeps nbclient from running one in this process.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on this system")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=OPTIONS)
        yield opened
        opened.close()


@contextmanager
def served(command: list[str], path: str) -> Iterator[str]:
    """Start a server with `{port}` in its command filled in, wait until it answers at `path`, and end it.

    Yields:
        its address, without a slash at the end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    printed = TemporaryFile()  # a pipe that nobody reads would fill up
    process = subprocess.Popen([part.format(port=port) for part in command], stdout=printed,
                               stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for(f"http://localhost:{port}{path}", process, printed)
        yield f"http://localhost:{port}"
    finally:
        subprocess.run(["pkill", "-TERM", "-s", str(process.pid)], check=False)  # and the kernels that it started
        process.wait(30)


def wait_for(address: str, process: subprocess.Popen, printed: IO[bytes]) -> None:
    """Return once a server answers; fail with what it printed when it ends before that."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE:
        if process.poll() is not None:
            printed.seek(0)
            pytest.fail(f"{process.args} ended: {printed.read().decode()[-2000:]}")
        try:
            urlopen(address, timeout=5).close()
            return
        except HTTPError:  # it answers
            return
        except (URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"no answer from {address} in {PATIENCE} s")


def keep(page, name: str) -> Path:
    """Save a screenshot of the page among the tests' output, for a person to look at."""
    folder = Path(__file__).parents[1] / "reports" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    return folder / f"{name}.png"
