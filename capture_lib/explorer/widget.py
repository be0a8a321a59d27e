"""The live explorer: a widget for notebooks, and an app in the browser through Voilà."""

import os
import sys
from pathlib import Path

import anywidget
import traitlets

from capture_lib.catalog.table import read_catalog
from capture_lib.experiments.run import open_run
from capture_lib.experiments.search import best_run
from capture_lib.explorer.answers import OWN, State
from capture_lib.explorer.view import PIECES, TEMPLATES, Explorer, open_explorer
from capture_lib.report import figures
from capture_lib.utils import InputError

APP = TEMPLATES / "explore.ipynb"  # one cell, the widget; it finds profile and catalog in its environment
OWN_STYLES = "style-src 'self' 'unsafe-inline'"  # Voilà asks another server for icons that nothing here needs


class ExplorerWidget(anywidget.AnyWidget):
    """The live view of an explorer."""

    _esm = (TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    _css = (TEMPLATES / "explorer.css").read_text(encoding="utf-8")
    font = traitlets.Unicode().tag(sync=True)
    answered = traitlets.Int().tag(sync=True)
    controls, picker, query, answers, beside, note = (traitlets.Unicode().tag(sync=True) for _ in PIECES)

    def __init__(self, explorer: Explorer) -> None:
        super().__init__()
        self.explorer = explorer
        self.state = explorer.settle(State())

        # the font must hold every character that may be shown
        texts = [figures.LEGEND]
        for row in [*explorer.queries.itertuples(), *explorer.searcher.items.values()]:
            texts += [row.caption, *row.labels]
        self.font = figures.font_face("".join(texts))
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
        patch = message.get("patch", {})
        note = ""
        try:
            if message["do"] == "wrong":
                patch = self.explorer.next_wrong(self.state)
                note = "" if patch else "no query here has a wrong first hit"
            elif message["do"] == "photo":
                name = str(message["name"])[:80]
                self.explorer.take_photo(b"".join(buffers), name)
                patch = {"query": OWN}
                note = f"asked with {name}; type what its seller might say, or leave it"
            self.state = self.explorer.settle(self.state.changed(patch))
        except InputError as error:
            note = str(error)
        self.draw(note)


def serve(profile: str, catalog: Path | None, port: int | None = None, browser: bool = True) -> None:
    """Make the stages that are missing, then open the explorer in the browser.

    Stages are made here, where progress is seen, and not by the page: two of them at once would make the same ones.
    """
    if catalog and not read_catalog(catalog).photos:
        raise InputError(f"{catalog}: none of its photos is on disk, so there is nothing to explore")
    print("loading what was trained, or training it first if there is nothing yet …", flush=True)
    folder = str(catalog.resolve()) if catalog else ""
    open_explorer(best_run(open_run(profile, folder)))
    print("the models take some seconds to load in each page; Ctrl-C ends all", flush=True)
    options = ["--MappingKernelManager.cull_interval=60", "--MappingKernelManager.cull_idle_timeout=60",  # closed tabs
               "--VoilaConfiguration.kernel_spec_manager_class=capture_lib.report.kernel.OwnKernels",
               f"--Voila.tornado_settings={{'headers': {{'Content-Security-Policy': {OWN_STYLES!r}}}}}"]
    if port:  # otherwise the first free one from 8866 on
        options += [f"--port={port}", "--Voila.port_retries=0"]
    if not browser:
        options.append("--no-browser")
    environment = {**os.environ, "CAPTURE_PROFILE": profile, "CAPTURE_CATALOG": folder}
    os.execve(sys.executable, [sys.executable, "-m", "voila", str(APP), *options], environment)
