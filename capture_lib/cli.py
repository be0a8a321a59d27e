"""The command line: `capture run | catalog | download | evaluate | search | explore`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from capture_lib.utils import DATA, REPORTS, InputError, write_atomically, write_json

# commands import what they use, so that `--help` and a mistake in an option are answered at once
app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Product1M / CAPTURE, from catalog to report.")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 only when all is well, 2 for a wrong input, 1 for a notebook that failed."""
    command = typer.main.get_command(app)
    code = 2
    try:
        with command.make_context("capture", sys.argv[1:] if arguments is None else arguments) as context:
            return command.invoke(context) or 0
    except typer.Exit as end:  # after --help
        return end.exit_code
    except typer.TyperException as error:  # a wrong option or command
        line = " ".join(error.format_message().split()).removesuffix(".") + "; --help tells more"
    except (InputError, FloatingPointError) as error:  # the second: a training whose loss has no value
        line = str(error)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        line = f"{error.filename}: {reason}" if error.filename else reason
    except KeyboardInterrupt:
        line = "interrupted; what was done is kept; the same command goes on (`capture run` with --resume)"
        code = 130
    print(f"capture: {line}", file=sys.stderr)
    return code


FOLDER = {"file_okay": False, "writable": True}  # an output folder: refused before any work where a file stands
FILE = {"dir_okay": False, "writable": True}  # an output file: refused where a folder stands
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".pdf", ".svg", ".eps")  # matplotlib writes them
MaybePath = Path | None
ProfileName = Annotated[Literal["smoke", "cpu", "thorough", "gpu", "product1m"], Option("--profile")]
Seed = Annotated[int, Option(help="of every random draw", min=0, max=2**32 - 1)]


@app.command()
def run(
    profile: ProfileName = "cpu",
    catalog: Annotated[MaybePath, Option(help="a catalog's folder; default: the profile's drawn world")] = None,
    only: Annotated[str | None, Option(help="one notebook, by its number", metavar="NN")] = None,
    out: Annotated[MaybePath, Option(help="the report's folder; default: reports/PROFILE[-CATALOG]", **FOLDER)] = None,
    seed: Seed = 0,
    resume: Annotated[bool, Option("--resume", help="keep the notebooks that an earlier run finished")] = False,
) -> int:
    """Execute the notebooks and build the report."""
    from capture_lib import profiles
    from capture_lib.catalog.table import read_catalog
    from capture_lib.report import execute, site

    if profiles.get(profile).world is None and catalog is None:
        raise InputError(f"profile {profile} has no world of its own: name a catalog with --catalog DIR")
    name = f"{profile}-{read_catalog(catalog).folder.resolve().name}" if catalog else profile
    out = (out or REPORTS / name).resolve()
    try:
        execute.run_notebooks(profile, catalog, out, seed, only, resume)
    except execute.NotebookFailed as failure:
        site.build(out)  # of what there is
        print(f"capture: {failure}", file=sys.stderr)
        return 1
    site.build(out)
    print(*site.summary(out), sep="\n")
    return 0


@app.command()
def catalog(
    lists: Annotated[MaybePath, Option(help="folder with the released lists")] = None,
    table: Annotated[MaybePath, Option(help="CSV or parquet table of your own")] = None,
    world: Annotated[Literal["mini", "small", "full"] | None, Option(help="draw a world of this size")] = None,
    images: Annotated[MaybePath, Option(help="with --table: the folder its image paths start from")] = None,
    scenes: Annotated[MaybePath, Option(help="with --world: a folder of photos for backgrounds")] = None,
    seed: Seed = 0,
    out: Annotated[MaybePath, Option(help="the catalog's folder; default: data/NAME", **FOLDER)] = None,
    add: Annotated[bool, Option("--add", help="with --lists or --table: add to the catalog at --out")] = False,
) -> None:
    """Make a catalog of lists, of a table, or a drawn one."""
    from capture_lib import world as drawn
    from capture_lib.catalog import lists as released
    from capture_lib.catalog.own_table import from_table
    from capture_lib.catalog.table import read_catalog

    # check that there is one source, and the options that go with it
    if sum(source is not None for source in (lists, table, world)) != 1:
        raise InputError("a catalog has one source: give --lists, --table or --world")
    if world and add or not world and (scenes or seed):
        raise InputError("--scenes and --seed go with --world, --add with --lists or --table")
    if (table is None) != (images is None):
        raise InputError("--table and --images go together: the table, and the folder that its image paths start from")

    # make the catalog
    if lists:
        made = released.from_lists(lists, out or DATA / (lists.resolve().name or "catalog"), add)
    elif table:
        made = from_table(table, images, out or DATA / (table.resolve().parent.name or "catalog"), add)
    else:
        settings = replace(drawn.SIZES[world], seed=seed, scenes=str(scenes.resolve()) if scenes else "")
        parts = ["world", world, scenes and scenes.resolve().name, seed and f"seed{seed}"]
        out = out or DATA / "-".join(part for part in parts if part)
        drawn.build(settings, out)
        made = read_catalog(out)

    # tell what it holds, what it lacks, and what is odd in the lists
    counts = ", ".join(f"{name} {count:,}" for name, count in made.table["split"].value_counts().items())
    print(f"{made.folder}: {len(made.table):,} samples ({counts})", *made.remarks(), sep="\n- ")
    if lists:
        oddities = released.quality(lists)
        with write_atomically(made.folder / "quality.csv") as beside:
            oddities.to_csv(beside, index=False, encoding="utf-8-sig")  # with the mark that spreadsheets look for
        text = oddities.drop(columns="example").to_string(index=False, header=False)
        print(f"odd in the lists, with examples in {made.folder / 'quality.csv'}:", text, sep="\n")


@app.command()
def download(
    catalog: Annotated[Path, Argument(help="a catalog's folder")],
    connections: Annotated[int, Option(help="requests at the same time", min=1, max=100)] = 16,
    per_host: Annotated[int, Option(help="photos of one host at the same time", min=1, max=100)] = 4,
    interval: Annotated[float, Option(help="seconds between two requests to one host", min=0, max=3_600)] = 0.02,
    seconds: Annotated[float, Option(help="limit for one answer", min=0.1, max=86_400)] = 60,
    tries: Annotated[int, Option(help="of each address", min=1, max=100)] = 3,
    export: Annotated[MaybePath, Option(help="fetch nothing; write the addresses for img2dataset", **FILE)] = None,
    fetched: Annotated[MaybePath, Option("--import", help="folder: take in what img2dataset fetched")] = None,
) -> int:
    """Fetch the photos of a catalog."""
    from capture_lib.catalog import download as fetching
    from capture_lib.catalog.table import read_catalog

    samples = read_catalog(catalog)
    if export:
        print(f"{export}: {fetching.export_addresses(samples, export):,} addresses")
        return 0
    if fetched:
        taken, left = fetching.import_photos(samples, fetched)
        print(f"{taken:,} photos taken in; {left:,} left out: on disk already, not decodable, or of no sample of ours")
        return 0
    missing = fetching.download(samples, fetching.DownloadSettings(connections, per_host, interval, seconds, tries))
    count = len(read_catalog(catalog).photos)
    print(f"{catalog}: {count:,} of {len(samples.table):,} photos are on disk")
    if not missing.empty:
        reasons = missing["reason"].value_counts().head(5).to_string(header=False)
        print(f"addresses without a photo, each in {catalog / 'missing.csv'}, by reason:", reasons, sep="\n")
    return 0 if count or missing.empty else 1


@app.command()
def evaluate(
    lists: Annotated[Path, Option(help="folder with the released lists")],
    rankings: Annotated[Path, Option(help="lines of query_id,gallery_id,…")],
    json: Annotated[MaybePath, Option(help="write the figures here too", **FILE)] = None,
) -> None:
    """Score a rankings file, in both definitions."""
    from capture_lib.retrieval.metrics import DEFINITIONS, evaluate_lists

    result = evaluate_lists(lists, rankings)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{result['queries']:,} queries; percent with 95% intervals over queries")
    for definition in DEFINITIONS:
        for figure, value in result[definition].items():
            low, middle, high = (100 * value[end] for end in ("low", "value", "high"))
            print(f"{definition:>10} {figure:10} {middle:6.2f} [{low:6.2f}, {high:6.2f}]")
    if json:
        write_json(json, result)


@app.command()
def search(
    catalog: Annotated[Path, Argument(help="a catalog's folder")],
    image: Annotated[Path, Option(help="the query photo")],
    caption: Annotated[str, Option(help="its text, where there is one")] = "",
    profile: ProfileName = "cpu",
    seed: Seed = 0,
    out: Annotated[Path, Option(help="picture of boxes and hits", **FILE)] = Path("search.jpg"),
) -> None:
    """Find the products of a photo in a catalog's gallery."""
    if out.suffix.lower() not in PICTURES:
        raise InputError(f"--out {out}: end the picture's name with one of {', '.join(PICTURES)}")
    from capture_lib.catalog.photos import load_photo
    from capture_lib.experiments import run, search
    from capture_lib.report import figures

    load_photo(image)  # what cannot be read is said before anything is trained
    answer = search.open_searcher(run.open_run(profile, str(catalog), seed=seed)).search(image, caption, 10)
    print(f"{image}: {len(answer.hits)} products found, compared by {answer.method}, reading {answer.representation}")
    for number, (score, hits) in enumerate(zip(answer.scores, answer.hits, strict=True), start=1):
        print(f"product {number} (objectness {score:.2f}):")
        for hit in hits[:5]:
            print(f"  {hit.score:.3f}  {hit.sample_id}  {'; '.join(hit.labels)}  {hit.caption}")
    figures.draw_answer(answer, out)
    print(f"picture: {out}")


@app.command()
def explore(
    catalog: Annotated[MaybePath, Argument(help="a catalog's folder; default: a drawn world")] = None,
    profile: ProfileName = "cpu",
    port: Annotated[int | None, Option(help="of the page; default: a free one from 8866 on", min=1, max=65_535)] = None,
    no_browser: Annotated[bool, Option("--no-browser", help="print the address; open nothing")] = False,
) -> int:
    """Click through results in the browser."""
    from capture_lib.explorer import widget

    return widget.serve(profile, catalog, port, not no_browser)
