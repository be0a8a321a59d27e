"""The command line: `capture run | catalog | download | evaluate | search | explore`."""

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from capture_lib.utils import DATA, REPORTS, InputError, write_atomically, write_json

# The other modules are imported by the commands that use them: they bring pandas or torch with
# them, and `capture --help` and a mistake in an option are answered at once.

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Product1M / CAPTURE, from catalog to report.")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 only when all is well, 2 for a wrong input, 1 for a notebook that failed."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("capture", sys.argv[1:] if arguments is None else list(arguments)) as context:
            code = command.invoke(context)
        sys.stdout.flush()  # a reader that has gone is noticed here
        return code
    except typer.Exit as end:  # after --help
        return end.exit_code
    except typer.TyperException as error:  # a wrong option or command
        path = error.ctx.command_path if getattr(error, "ctx", None) else "capture"
        text = " ".join(error.format_message().split()).removesuffix(".")
        return complain(f"{text}; see `{path} --help`")
    except (InputError, FloatingPointError) as error:  # the second: a training whose loss has no value
        return complain(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
        return complain(f"{error.filename}: {reason}" if error.filename else reason)
    except KeyboardInterrupt:
        return complain("interrupted; what was done is kept; the same command goes on "
                        "(`capture run` with --resume)", 130)


def complain(line: str, code: int = 2) -> int:
    """Print a line on the error stream; return the exit code."""
    print(f"capture: {line}", file=sys.stderr)
    return code


# ---- options


def option(text: str, *names: str, **more: object) -> object:
    """Return an option with its line of help."""
    return typer.Option(*names, help=text, **more)


FOLDER = {"file_okay": False, "writable": True}  # an output folder: refused before any work where a file stands
FILE = {"dir_okay": False, "writable": True}  # an output file: refused where a folder stands
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".pdf", ".svg", ".eps")  # matplotlib writes them
MaybePath = Path | None
CatalogFolder = Annotated[Path, typer.Argument(help="a catalog's folder")]
MaybeCatalog = Annotated[Path | None, typer.Argument(help="a catalog's folder; default: the profile's drawn world")]
ProfileName = Annotated[str, option("smoke, cpu, thorough, gpu or product1m", "--profile")]
Seed = Annotated[int, option("of every random draw", min=0, max=2**32 - 1)]


# ---- commands


@app.command()
def run(
    profile: ProfileName = "cpu",
    catalog: Annotated[MaybePath, option("a catalog's folder; default: the profile's drawn world")] = None,
    only: Annotated[str | None, option("one notebook, by its number", metavar="NN")] = None,
    out: Annotated[MaybePath, option("the report's folder; default: reports/PROFILE[-CATALOG]", **FOLDER)] = None,
    seed: Seed = 0,
    resume: Annotated[bool, option("keep the notebooks that an earlier run finished", "--resume")] = False,
) -> int:
    """Execute the notebooks and build the report."""
    from capture_lib import profiles
    from capture_lib.catalog.table import read_catalog
    from capture_lib.report import execute, site

    name = profile
    if profiles.get(profile).world is None and catalog is None:
        raise InputError(f"profile {profile} has no world of its own: name a catalog with --catalog DIR")
    if catalog:
        name += f"-{read_catalog(catalog).folder.resolve().name}"
    out = (out or REPORTS / name).resolve()
    try:
        execute.run_notebooks(profile, catalog, out, seed, only, resume)
    except execute.NotebookFailed as failure:
        site.build(out)
        return complain(str(failure), 1)
    site.build(out)
    print(*site.summary(out), sep="\n")
    return 0


@app.command()
def catalog(
    lists: Annotated[MaybePath, option("folder with the released lists")] = None,
    table: Annotated[MaybePath, option("CSV or parquet table of your own")] = None,
    world: Annotated[str | None, option("draw a world: mini, small or full")] = None,
    images: Annotated[MaybePath, option("with --table: the folder its image paths start from")] = None,
    scenes: Annotated[MaybePath, option("with --world: a folder of photos for backgrounds")] = None,
    seed: Seed = 0,
    out: Annotated[MaybePath, option("the catalog's folder; default: data/NAME", **FOLDER)] = None,
    add: Annotated[bool, option("with --lists or --table: add to the catalog at --out", "--add")] = False,
) -> int:
    """Make a catalog of lists, of a table, or a drawn one."""
    from capture_lib.catalog import lists as released
    from capture_lib.catalog.own_table import from_table
    from capture_lib.catalog.table import read_catalog

    # check that there is one source, and the options that go with it
    if sum(source is not None for source in (lists, table, world)) != 1:
        raise InputError("a catalog has one source: give --lists, --table or --world")
    if world is None and (scenes or seed):
        raise InputError("--scenes and --seed go with --world")
    if world is not None and add:
        raise InputError("--add goes with --lists or --table; a world is drawn as a whole")
    if (table is None) != (images is None):
        raise InputError("--table and --images go together: the table, and the folder that its image paths start from")

    # make it
    if world is not None:
        made = read_catalog(draw_world(world, scenes, seed, out))
    elif table is not None:
        made = from_table(table, images, out or DATA / (table.resolve().parent.name or "catalog"), add)
    else:
        made = released.from_lists(lists, out or DATA / (lists.resolve().name or "catalog"), add)

    # tell what it holds and what it lacks
    labels = made.table["labels"].explode().dropna()
    counts = ", ".join(f"{name} {count:,}" for name, count in made.table["split"].value_counts().items())
    print(f"{made.folder}: {len(made.table):,} samples ({counts}), {labels.nunique():,} distinct labels, "
          f"{len(labels):,} label occurrences")
    for remark in made.remarks():
        print(f"- {remark}")

    if lists is not None:
        oddities = released.quality(lists, made)
        with write_atomically(made.folder / "quality.csv") as beside:
            oddities.to_csv(beside, index=False, encoding="utf-8-sig")  # with the mark that spreadsheets look for
        print(f"odd in the lists, with examples in {made.folder / 'quality.csv'}:")
        for what, name, count, _, action in oddities.itertuples(index=False):
            print(f"{count:>9,}  {name:<9}  {what} ({action})")
    return 0


def draw_world(size: str, scenes: Path | None, seed: int, out: Path | None) -> Path:
    """Draw the world of a size unless it is there; return its catalog's folder."""
    from capture_lib import world

    if size not in world.SIZES:
        raise InputError(f"--world {size!r} is unknown; use one of {', '.join(world.SIZES)}")
    settings = replace(world.SIZES[size], seed=seed)
    name = f"world-{size}"
    if scenes:
        settings = replace(settings, scenes=str(scenes.resolve()))
        name += f"-{scenes.resolve().name}"
    if seed:
        name += f"-seed{seed}"
    world.build(settings, out or DATA / name)
    return out or DATA / name


@app.command()
def download(
    catalog: CatalogFolder,
    connections: Annotated[int, option("requests at the same time", min=1, max=500)] = 16,
    per_host: Annotated[int, option("photos of one host at the same time", min=1, max=500)] = 4,
    interval: Annotated[float, option("seconds between two requests to one host", min=0, max=3_600)] = 0.02,
    seconds: Annotated[float, option("limit for one answer", min=0.1, max=86_400)] = 60,
    tries: Annotated[int, option("of each address", min=1, max=100)] = 3,
    export: Annotated[MaybePath, option("fetch nothing; write the addresses for img2dataset", **FILE)] = None,
    fetched: Annotated[MaybePath, option("folder: take in what img2dataset fetched", "--import")] = None,
) -> int:
    """Fetch the photos of a catalog."""
    from capture_lib.catalog import download, shards
    from capture_lib.catalog.table import Catalog, read_catalog

    if export and fetched:
        raise InputError("--export and --import are two steps: give one of them")
    samples = read_catalog(catalog)
    if export:
        print(f"{export}: {shards.export_addresses(samples, export):,} addresses")
        return 0
    missing = {}
    if fetched:
        taken, refused = shards.import_photos(samples, fetched)
        print(f"{taken:,} photos taken in, {refused:,} refused (not a photo that decodes, or no sample of ours)")
    else:
        settings = download.DownloadSettings(connections, per_host, interval, seconds, tries)
        missing = download.download(samples, settings)
    count = len(Catalog(samples.folder, samples.table).photos)  # looked for anew
    print(f"{catalog}: {count:,} of {len(samples.table):,} photos are on disk")
    if missing:
        reasons = Counter(reason for by_address in missing.values() for reason in by_address.values())
        counts = ", ".join(f"{reason} ({times:,})" for reason, times in reasons.most_common(5))
        print(f"{len(missing):,} could not be fetched, each named in {catalog / 'missing.csv'}; "
              f"addresses by reason: {counts}")
    return 0 if count or not missing else 1


@app.command()
def evaluate(
    lists: Annotated[Path, option("folder with the released lists")],
    rankings: Annotated[Path, option("lines of query_id,gallery_id,…")],
    json: Annotated[MaybePath, option("write the figures here too", **FILE)] = None,
) -> int:
    """Score a rankings file, in both definitions."""
    from capture_lib.experiments.evaluation_files import evaluate_lists
    from capture_lib.retrieval.metrics import DEFINITIONS

    result = evaluate_lists(lists, rankings)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{result['queries']:,} queries; percent with 95% intervals over queries")
    print(" " * 10 + "".join(f"{definition:>26}" for definition in DEFINITIONS))
    for figure in result["released"]:
        line = f"{figure:10}"
        for definition in DEFINITIONS:
            value, low, high = (100 * result[definition][figure][end] for end in ("value", "low", "high"))
            line += f"{value:>10.2f} [{low:6.2f}, {high:6.2f}]"
        print(line)
    if json:
        write_json(json, result)
    return 0


@app.command()
def search(
    catalog: CatalogFolder,
    image: Annotated[Path, option("the query photo")],
    caption: Annotated[str, option("its text, where there is one")] = "",
    profile: ProfileName = "cpu",
    seed: Seed = 0,
    out: Annotated[Path, option("picture of boxes and hits", **FILE)] = Path("search.jpg"),
) -> int:
    """Find the products of a photo in a catalog's gallery."""
    from capture_lib.catalog.photos import load_photo
    from capture_lib.catalog.table import read_catalog

    # what cannot be read or written is said before anything is imported or trained
    if out.suffix.lower() not in PICTURES:
        raise InputError(f"--out {out}: end the picture's name with one of {', '.join(PICTURES)}")
    read_catalog(catalog)
    load_photo(image)

    from capture_lib.experiments import run, search
    from capture_lib.report import figures

    searcher = search.open_searcher(run.open_run(profile, str(catalog), seed=seed))
    answer = searcher.search(image, caption, 10)
    if answer.hits:
        print(f"compared by {answer.method}, reading {answer.representation}")
    else:
        print(f"{image}: no product was found in this photo, so there is nothing to search for")
    for number, (score, hits) in enumerate(zip(answer.scores, answer.hits, strict=True), start=1):
        print(f"product {number} (objectness {score:.2f}):")
        for hit in hits[:5]:
            print(f"  {hit.score:.3f}  {hit.sample_id}  {'; '.join(hit.labels)}  {hit.caption}")
    figures.draw_answer(answer, out)
    print(f"picture: {out}")
    return 0


@app.command()
def explore(
    catalog: MaybeCatalog = None,
    profile: ProfileName = "cpu",
    port: Annotated[int | None, option("of the page; default: a free one from 8866 on", min=1, max=65_535)] = None,
    no_browser: Annotated[bool, option("print the address; open nothing", "--no-browser")] = False,
) -> int:
    """Click through results in the browser."""
    from capture_lib.catalog.table import read_catalog

    if catalog:
        read_catalog(catalog)  # a wrong folder is told before the imports, which take a while

    from capture_lib import profiles
    from capture_lib.explorer import widget

    profiles.get(profile)
    return widget.serve(profile, catalog, port, not no_browser)


if __name__ == "__main__":
    sys.exit(main())
