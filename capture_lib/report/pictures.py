"""The pictures of executed notebooks that the report's first page shows: outputs of cells with the tag `picture`."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from nbformat import NotebookNode

TAG = "picture"
MOST = 4  # pictures of one cell that a card shows
DATA = re.compile(r"data:image/(webp|png|jpeg);base64,([A-Za-z0-9+/=\s]+)")
FRAME = re.compile(r"border:\s*\d+px solid (#[0-9a-fA-F]{3,6})\b")


class Pictures(HTMLParser):
    """The pictures that stand in a piece of HTML, each with the text below it and the colour of its frame."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[dict] = []
        self.captioned = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Takes in a picture."""
        given = dict(attrs)
        self.captioned = tag == "figcaption"
        data = DATA.fullmatch(given.get("src") or "") if tag == "img" else None
        if data:
            frame = FRAME.search(given.get("style") or "")
            self.found.append({"suffix": data[1], "bytes": base64.b64decode(data[2]), "text": "",
                               "frame": frame[1] if frame else ""})

    def handle_endtag(self, tag: str) -> None:
        """Ends a caption."""
        self.captioned = False

    def handle_data(self, data: str) -> None:
        """Takes in a caption."""
        if self.captioned and self.found:
            self.found[-1]["text"] += data


def pictures_of(notebook: NotebookNode) -> list[dict]:
    """A card for each cell with the tag: the cell's id, the heading above it, and a row of pictures an output."""
    cards, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = ([heading] + re.findall(r"^##+\s+(.+)$", cell.source, re.MULTILINE))[-1]
        elif TAG in cell.metadata.get("tags", []):
            rows = [row for output in cell.outputs if (row := pictures_in(output.get("data", {})))]
            if rows:
                cards.append({"cell": cell.id, "rows": rows, "title": re.sub(r"^\d+ · |[*`_$]", "", heading)})
    return cards


def pictures_in(data: dict) -> list[dict]:
    """The pictures of one output: a drawing, or the photos in its HTML."""
    if "image/svg+xml" in data:
        return [{"suffix": "svg", "bytes": data["image/svg+xml"].encode(), "text": "", "frame": ""}]
    return Pictures(data.get("text/html", "")).found


def write_pictures(cards: dict[str, list[dict]], out: Path) -> dict[str, list[dict]]:
    """Writes the pictures of each notebook's cards to `out/pictures/`; the cards then say where each is.

    Of a card all rows are kept for notebook 00, the first few pictures for the others.
    """
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    for outdated in folder.glob("[0-9][0-9]_*-*-*-*.*"):  # those of an earlier run, by the names that we give
        outdated.unlink()
    return {stem: [write_card(stem, number, card, folder) for number, card in enumerate(of_book, start=1)]
            for stem, of_book in cards.items()}


def write_card(stem: str, number: int, card: dict, folder: Path) -> dict:
    """Writes one card's pictures."""
    rows = card["rows"] if stem.startswith("00") else [[one for row in card["rows"] for one in row][:MOST]]
    placed = []
    for row, pictures in enumerate(rows):
        placed.append([])
        for column, picture in enumerate(pictures):
            name = f"{stem}-{number}-{row}-{column}.{picture['suffix']}"
            (folder / name).write_bytes(picture["bytes"])
            placed[-1].append({"source": f"pictures/{name}", "text": " ".join(picture["text"].split()),
                               "frame": picture["frame"], "drawn": picture["suffix"] == "svg"})
    return {"title": card["title"], "rows": placed, "name": stem,
            "href": f"notebooks/{stem}.html#cell-id={card['cell']}"}
