"""The live explorer: a widget for notebooks, and an app in the browser through Voilà.

Python draws the pieces of the page and the browser shows them (`templates/explorer.js`); what is clicked comes
back as a message. All that a reader has chosen is one `State`.
"""

import socket
import subprocess
import sys
from contextlib import suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import anywidget
import traitlets

from capture_lib.catalog.table import read_catalog
from capture_lib.explorer.answers import OWN, State
from capture_lib.explorer.view import PIECES, TEMPLATES, Explorer
from capture_lib.report import figures
from capture_lib.utils import InputError

APP = """from capture_lib.experiments.run import open_run
from capture_lib.explorer.view import open_explorer
from capture_lib.explorer.widget import ExplorerWidget

ExplorerWidget(open_explorer(open_run({profile!r}, {catalog!r})))"""
OWN_STYLES = "style-src 'self' 'unsafe-inline'"  # Voilà asks another server for icons that nothing here needs
MAX_BYTES = 8 * 2**20  # of an own photo: the browser sends smaller ones, unless it cannot read it
PORTS = range(8866, 8966)


class ExplorerWidget(anywidget.AnyWidget):
    """The live view of an explorer."""

    _esm = (TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    _css = (TEMPLATES / "explorer.css").read_text(encoding="utf-8")
    font = traitlets.Unicode().tag(sync=True)
    answered = traitlets.Int().tag(sync=True)
    controls, picker, query, answers, beside, note = (traitlets.Unicode().tag(sync=True) for _ in PIECES)

    def __init__(self, shown: Explorer) -> None:
        super().__init__()
        self.explorer = shown
        self.state = shown.settle(State())
        self.font = figures.font_face("".join(all_texts(shown)))
        self.draw()
        self.on_msg(self.hear)

    def draw(self, note: str = "") -> None:
        """Show the state; pieces that are as before are not sent again."""
        with self.hold_sync():
            for name, piece in self.explorer.show(self.state, note).items():
                setattr(self, name, piece)
            self.answered += 1

    def hear(self, _: object, message: dict, buffers: list[memoryview]) -> None:
        """Do what was clicked; a fault becomes a line of the page, and all stays as it was."""
        try:
            self.draw(self.follow(message, buffers))
        except InputError as error:
            self.draw(str(error))

    def follow(self, message: dict, buffers: list[memoryview]) -> str:
        """Change the state as a message asks; return what is to be said about it."""
        action = message.get("do")
        patch = {}
        note = ""
        if action == "set":
            patch = message["patch"]
            if patch.get("map") and not self.state.map:
                self.note = "laying out the map, some seconds the first time …"
        elif action in ("next", "previous"):
            passing = self.explorer.passing(self.state)
            earlier = passing[passing < self.state.query][::-1]
            other = earlier if action == "previous" else passing[passing > self.state.query]
            patch = {"query": int(other[0])} if len(other) else {}
        elif action == "wrong":
            number = self.explorer.next_wrong(self.state)
            patch = {} if number is None else {"query": number}
            note = "no query here has a wrong first hit" if number is None else ""
        elif action == "photo":
            name = str(message.get("name", "photo"))[:80]
            content = b"".join(buffers)
            if len(content) > MAX_BYTES:
                raise InputError(f"{name}: larger than 8 MB, and not a photo that the browser can make smaller")
            self.explorer.take_photo(content, name)
            patch = {"query": OWN}
            note = f"asked with {name}; type what its seller might say, or leave it"
        self.state = self.explorer.settle(self.state.changed(patch))
        return note


def all_texts(shown: Explorer) -> list[str]:
    """Return every text that may be shown, for the characters that the font must hold."""
    items = list(shown.searcher.items.values())
    labels = chain(*shown.queries["labels"], *(item.labels for item in items))
    return [*shown.queries["caption"], *(item.caption for item in items), *labels]


def write_app(profile: str, catalog: Path | None, file: Path) -> Path:
    """Write the notebook of one cell that Voilà serves as the app."""
    import nbformat

    source = APP.format(profile=profile, catalog=str(catalog.resolve()) if catalog else "")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, file)
    return file


def serve(profile: str, catalog: Path | None, port: int | None = None, browser: bool = True) -> int:
    """Make the stages that are missing, then open the explorer in the browser; return the exit code.

    Stages are made here, where progress is seen and an interrupt is heard, and not by the page: two of them at
    once would make the same ones.

    Raises:
        InputError: the catalog is not there or has no photo on disk, or the port is taken.
    """
    if catalog and not read_catalog(catalog).photos:
        raise InputError(f"{catalog}: none of its photos is on disk, so there is nothing to explore")
    port = free_port(port)
    print("loading what was trained, or training it first if there is nothing yet …", flush=True)
    named = ["--catalog", str(catalog.resolve())] if catalog else []
    stages = [sys.executable, "-m", "capture_lib.experiments.stages", "--profile", profile, *named]
    code = subprocess.run(stages, check=False).returncode
    if code:
        return code
    options = [f"--port={port}", "--Voila.port_retries=0", "--Voila.log_level=ERROR",
               "--MappingKernelManager.cull_interval=60", "--MappingKernelManager.cull_idle_timeout=60",  # closed tabs
               f"--Voila.tornado_settings={{'headers': {{'Content-Security-Policy': {OWN_STYLES!r}}}}}",
               *([] if browser else ["--no-browser"])]
    print(f"the explorer: http://localhost:{port}/ (each page takes some seconds to load the models; Ctrl-C ends it)",
          flush=True)
    with TemporaryDirectory() as folder:  # two explorers don't share a notebook
        app = write_app(profile, catalog, Path(folder) / "explore.ipynb")
        with subprocess.Popen([sys.executable, "-m", "voila", str(app), *options]) as server:
            try:
                return server.wait()
            except KeyboardInterrupt:  # the server has heard it too, and ends its kernels
                server.wait()
                return 0


def free_port(wanted: int | None) -> int:
    """Return the port that is wanted, or else the first free one from 8866 on.

    Raises:
        InputError: it is taken or out of range.
    """
    for port in PORTS if wanted is None else [wanted]:
        with socket.socket() as probe, suppress(OSError, OverflowError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(("localhost", port))
            return port
    if wanted is None:
        raise InputError(f"every port from {PORTS[0]} to {PORTS[-1]} is taken: name one with --port")
    raise InputError(f"--port {wanted}: taken, or no port of this machine; leave --port out and a free one is found")
