"""The live explorer: a widget for notebooks, and an app in the browser through Voilà.

Python draws the pieces of the page and the browser shows them (`templates/explorer.js`); what is clicked comes back as
a message. All that a reader has chosen is one `explorer.State`.
"""

import socket
import subprocess
import sys
from pathlib import Path

import anywidget
import nbformat
import traitlets

from capture_lib.catalog.table import read_catalog
from capture_lib.explorer import view as explorer
from capture_lib.explorer.view import OWN, PIECES, TEMPLATES, Explorer
from capture_lib.report import figures
from capture_lib.utils import REPORTS, InputError

OWN_STYLES = "style-src 'self' 'unsafe-inline'"  # Voilà's page asks another server for icons that nothing here needs
LARGEST_FILE = 8 * 2**20  # bytes of an own photo: the browser sends smaller ones, unless it cannot read it


class ExplorerWidget(anywidget.AnyWidget):
    """The live view of an explorer."""

    _esm = (TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    _css = explorer.style()
    font = traitlets.Unicode().tag(sync=True)
    answered = traitlets.Int().tag(sync=True)
    controls, picker, query, answers, beside, note = (traitlets.Unicode().tag(sync=True) for _ in PIECES)

    def __init__(self, shown: Explorer) -> None:
        super().__init__()
        self.explorer = shown
        self.state = shown.settle(shown.start())
        self.font = figures.font_face("".join(all_texts(shown)))
        self.draw()
        self.on_msg(self.hear)

    def draw(self, note: str = "") -> None:
        """Shows the state; pieces that are as before are not sent again."""
        pieces = self.explorer.show(self.state, note)
        with self.hold_sync():
            for name, piece in pieces.items():
                setattr(self, name, piece)
            self.answered += 1

    def hear(self, _: object, message: dict, buffers: list[memoryview]) -> None:
        """Does what was clicked; a fault becomes a line of the page, and all stays as it was."""
        try:
            self.draw(self.follow(message, buffers))
        except InputError as error:
            self.draw(str(error))

    def follow(self, message: dict, buffers: list[memoryview]) -> str:
        """Changes the state as a message asks; returns what is to be said about it."""
        asked, state, note = message.get("do"), self.state, ""
        if asked == "set":
            state = state.changed(message["patch"])
            if state.map and not self.state.map:
                self.note = "laying out the map, some seconds the first time …"
        elif asked in ("next", "previous"):
            state = self.step(1 if asked == "next" else -1)
        elif asked == "wrong":
            number = self.explorer.next_wrong(state)
            note = "no query here has a wrong first hit" if number is None else ""
            state = state if number is None else state.changed({"query": number})
        elif asked == "photo":
            name = str(message.get("name", "photo"))[:80]
            if sum(map(len, buffers)) > LARGEST_FILE:
                raise InputError(f"{name}: larger than 8 MB, and not a photo that the browser can make smaller")
            self.explorer.take_photo(b"".join(buffers), name)
            state = state.changed({"query": OWN})
            note = f"asked with {name}; type what its seller might say, or leave it"
        self.state = self.explorer.settle(state)
        return note

    def step(self, by: int) -> explorer.State:
        """The state with the query before or after this one, of those that the filters let through."""
        passing = self.explorer.passing(self.state).tolist()
        later = [n for n in passing if n > self.state.query] if by > 0 else [n for n in passing if n < self.state.query]
        return self.state.changed({"query": later[0] if by > 0 else later[-1]}) if later else self.state


def all_texts(shown: Explorer) -> list[str]:
    """Every text that may be shown, for the characters that the font must hold."""
    items = shown.searcher.items.values()
    labels = [label for of in (*shown.queries["labels"], *(item.labels for item in items)) for label in of]
    return [*shown.queries["caption"], *(item.caption for item in items), *labels]


def write_app(profile: str, catalog: Path | None, file: Path) -> Path:
    """Writes the notebook of one cell that Voilà serves as the app."""
    folder = str(catalog.resolve()) if catalog else ""
    source = ("from capture_lib.explorer.view import open_explorer\nfrom capture_lib.experiments.run import open_run\n"
              "from capture_lib.explorer.widget import ExplorerWidget\n\n"
              f"ExplorerWidget(open_explorer(open_run({profile!r}, {folder!r})))")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)
    return file


def serve(profile: str, catalog: Path | None, port: int | None = None, browser: bool = True) -> int:
    """Makes the stages that are missing, then opens the explorer in the browser; returns the exit code of the first.

    Stages are made here, where progress is seen and an interrupt is heard, and not by the page: two of them at once
    would make the same ones.

    Raises:
        InputError: the catalog is not there or has no photo on disk, or the port is taken.
    """
    if catalog and not read_catalog(catalog).photos:
        raise InputError(f"{catalog}: none of its photos is on disk, so there is nothing to explore")
    port = free_port(port)
    print("loading what was trained, or training it first if there is nothing yet …", flush=True)
    made = subprocess.run([sys.executable, "-m", "capture_lib.experiments.stages", "--profile", profile,
                           *(["--catalog", str(catalog.resolve())] if catalog else [])], check=False)
    if made.returncode:
        return made.returncode
    app = write_app(profile, catalog, REPORTS / "explore.ipynb")  # Voilà serves no hidden file
    options = ["--no-browser"] * (not browser) + [f"--port={port}", "--Voila.port_retries=0", "--Voila.log_level=ERROR"]
    options += [f"--MappingKernelManager.cull_{name}=60" for name in ("interval", "idle_timeout")]  # of closed tabs
    options.append(f"--Voila.tornado_settings={{'headers': {{'Content-Security-Policy': {OWN_STYLES!r}}}}}")
    print(f"the explorer: http://localhost:{port}/ (each page takes some seconds to load the models; Ctrl-C ends it)",
          flush=True)
    with subprocess.Popen([sys.executable, "-m", "voila", str(app), *options]) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:  # the server has heard it too, and ends its kernels
            server.wait()
            return 0


def free_port(wanted: int | None) -> int:
    """The port that is wanted, or else the first free one from 8866 on.

    Raises:
        InputError: it is taken or out of range.
    """
    for port in [wanted] if wanted is not None else range(8866, 8966):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                tried.bind(("localhost", port))
                return port
            except (OSError, OverflowError):
                continue
    raise InputError(f"--port {wanted}: taken, or no port of this machine; leave --port out and a free one is found"
                     if wanted is not None else "every port from 8866 to 8965 is taken: name one with --port")
