"""The command line: `capture run | catalog | download | evaluate | search | explore | transfer | convert`."""

import argparse
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from capture_lib.catalog.lists import from_lists, quality
from capture_lib.catalog.own_table import from_table
from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog, read_catalog
from capture_lib.utils import REPORTS, InputError, write_atomically

# The other modules are imported where they are used: they bring torch with them, and `capture --help` is quick.


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns 0 only when all is well, 2 for a wrong input, 1 for a notebook that failed."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except (InputError, FloatingPointError) as error:  # the second: a training whose loss has no value
        print(f"capture: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"capture: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("capture: interrupted; what was done is kept; the same command goes on (`capture run` with --resume)",
              file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser("capture", description="Product1M / CAPTURE, from catalog to report.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute the notebooks and build the report")
    run.add_argument("--profile", default="cpu", help="smoke, cpu (default), thorough, gpu or product1m")
    run.add_argument("--catalog", type=Path, help="a catalog folder; default: the profile's rendered world")
    run.add_argument("--only", metavar="NN", help="one notebook, by its number")
    run.add_argument("--out", type=Path, help="the report's folder; default: reports/PROFILE[-CATALOG]")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--resume", action="store_true", help="keep the notebooks that an earlier run finished")
    run.set_defaults(command=run_command)

    catalog = commands.add_parser("catalog", help="make a catalog")
    source = catalog.add_mutually_exclusive_group(required=True)
    source.add_argument("--lists", type=Path, help="folder with the released lists")
    source.add_argument("--table", type=Path, help="CSV or parquet table of your own")
    source.add_argument("--world", help="draw a rendered world: mini, small or full")
    catalog.add_argument("--images", type=Path, help="with --table: the folder its image paths start from")
    catalog.add_argument("--scenes", type=Path, help="with --world: a folder of photos to use as busy grounds")
    catalog.add_argument("--seed", type=int, default=0, help="with --world: another world of that size")
    catalog.add_argument("--out", type=Path, help="the catalog's folder; default: data/NAME")
    catalog.add_argument("--add", action="store_true", help="with --lists or --table: add to the catalog at --out")
    catalog.set_defaults(command=catalog_command)

    download = commands.add_parser("download", help="fetch the photos of a catalog")
    download.add_argument("catalog", type=Path)
    download.add_argument("--connections", type=int, default=16, help="requests at the same time (default 16)")
    download.add_argument("--per-host", type=int, default=4, help="of them to one host (default 4)")
    download.add_argument("--interval", type=float, default=0.02, help="seconds between two requests to one host")
    download.add_argument("--seconds", type=float, default=60, help="limit for one answer (default 60)")
    download.add_argument("--tries", type=int, default=3, help="tries of each address (default 3)")
    other = download.add_mutually_exclusive_group()
    other.add_argument("--export", type=Path, metavar="FILE", help="fetch nothing; write the addresses for img2dataset")
    other.add_argument("--import", type=Path, metavar="FOLDER", dest="shards", help="take in what img2dataset fetched")
    download.set_defaults(command=download_command)

    evaluate = commands.add_parser("evaluate", help="score a rankings file, in both definitions")
    evaluate.add_argument("--lists", type=Path, required=True, help="folder with the released lists")
    evaluate.add_argument("--rankings", type=Path, required=True, help="lines of query_id,gallery_id,…")
    evaluate.add_argument("--json", type=Path, help="write the figures here too")
    evaluate.set_defaults(command=evaluate_command)

    search = commands.add_parser("search", help="find the products of a photo in a catalog's gallery")
    search.add_argument("catalog", type=Path)
    search.add_argument("--image", type=Path, required=True)
    search.add_argument("--caption", default="")
    search.add_argument("--profile", default="cpu", help="whose trained models to use (default cpu)")
    search.add_argument("--seed", type=int, default=0)
    search.add_argument("--out", type=Path, default=Path("search.jpg"), help="picture of boxes and hits")
    search.set_defaults(command=search_command)

    explore = commands.add_parser("explore", help="click through results in the browser")
    explore.add_argument("catalog", type=Path, nargs="?")
    explore.add_argument("--profile", default="cpu")
    explore.add_argument("--port", type=int, help="of the page on this machine (default: a free one from 8866 on)")
    explore.add_argument("--no-browser", action="store_true", help="print the address; open nothing")
    explore.set_defaults(command=explore_command)

    transfer = commands.add_parser("transfer", help="a world's detector and encoder on another catalog")
    transfer.add_argument("catalog", type=Path, help="with true boxes or labels in val, test or the gallery")
    transfer.add_argument("--profile", default="cpu")
    transfer.add_argument("--seed", type=int, default=0)
    transfer.add_argument("--sizes", type=int, nargs="+", default=[192, 320, 448, 640], help="of the search, pixels")
    transfer.add_argument("--backbone", default="", help="a timm name for a pretrained backbone, with --weights")
    transfer.add_argument("--weights", default="", help="a local .safetensors or .pth file for it")
    transfer.add_argument("--scenes", default="", help="a folder of photos to paste on, beside drawn scenes")
    transfer.add_argument("--only", choices=("proposals", "identity", "photos", "pairs"),
                          help="one of the two tables; or does training on CATALOG's own unlabelled photos, or on its "
                               "image-caption pairs, help a pretrained network?")
    transfer.add_argument("--json", type=Path, help="write the figures here too")
    transfer.set_defaults(command=transfer_command)

    convert = commands.add_parser("convert", help="a checkpoint of the authors' code to ours, and back")
    source = convert.add_mutually_exclusive_group(required=True)
    source.add_argument("--from-released", type=Path, metavar="FILE", help="their weights; --out: our folder")
    source.add_argument("--to-released", type=Path, metavar="DIR", help="our folder; --out: their weights")
    convert.add_argument("--config", type=Path, metavar="FILE", help="with --from-released: their configuration, JSON")
    convert.add_argument("--out", type=Path, required=True)
    convert.set_defaults(command=convert_command)
    return top


def run_command(options: argparse.Namespace) -> int:
    from capture_lib import profiles
    from capture_lib.report import execute as reports
    from capture_lib.report import site

    profile = profiles.get(options.profile)
    if options.catalog:
        read_catalog(options.catalog)
    elif profile.world is None:
        raise InputError(f"profile {profile.name} has no world of its own: name a catalog with --catalog DIR")
    name = profile.name + (f"-{options.catalog.resolve().name}" if options.catalog else "")
    out = (options.out or REPORTS / name).resolve()
    try:
        reports.run_notebooks(profile.name, options.catalog, out, options.seed, options.only, options.resume)
    except reports.NotebookFailed as failure:
        site.build(out)
        print(f"capture: {failure}", file=sys.stderr)
        return 1
    site.build(out)
    print(*site.summary(out), sep="\n")
    return 0


def catalog_command(options: argparse.Namespace) -> int:
    if not options.world and (options.scenes or options.seed):
        raise InputError("--scenes and --seed go with --world")
    if options.world:
        made = drawn_world(options)
    elif options.table:
        if options.images is None:
            raise InputError("--table needs --images, the folder that its image paths start from")
        out = options.out or default_folder(options.table.resolve().parent.name)
        made = from_table(options.table, options.images, out, options.add)
    else:
        made = from_lists(options.lists, options.out or default_folder(options.lists.resolve().name), options.add)
    labels = [label for row in made.table["labels"] for label in row]
    counts = ", ".join(f"{name} {count:,}" for name, count in made.table["split"].value_counts().items())
    print(f"{made.folder}: {len(made.table):,} samples ({counts}), {len(set(labels)):,} distinct labels, "
          f"{len(labels):,} label occurrences")
    for remark in made.remarks():
        print(f"- {remark}")
    if options.lists:
        show_quality(options.lists, made)
    return 0


def drawn_world(options: argparse.Namespace) -> Catalog:
    """The rendered world that the options name, drawn unless it is there."""
    from capture_lib import world

    if options.add:
        raise InputError("--add goes with --lists or --table; a world is drawn as a whole")
    if options.world not in world.SIZES:
        raise InputError(f"--world {options.world!r} is unknown; use one of {', '.join(world.SIZES)}")
    scenes = str(options.scenes.resolve()) if options.scenes else ""
    settings = replace(world.SIZES[options.world], seed=options.seed, scenes=scenes)
    name = f"world-{options.world}" + (f"-{options.scenes.resolve().name}" if scenes else "") + (
        f"-seed{options.seed}" if options.seed else "")
    out = options.out or default_folder(name)
    world.build(settings, out)
    return read_catalog(out)


def show_quality(folder: Path, made: Catalog) -> None:
    """Writes `quality.csv` beside the catalog and prints it, a line for each oddity."""
    table = quality(folder, made)
    with write_atomically(made.folder / "quality.csv") as beside:
        table.to_csv(beside, index=False, encoding="utf-8-sig")  # with the mark that spreadsheets look for
    print(f"odd in the lists, with examples in {made.folder / 'quality.csv'}:")
    for what, name, count, _, done in table.itertuples(index=False):
        print(f"{count:>9,}  {name:<9}  {what} ({done})")


def default_folder(name: str) -> Path:
    """The folder of a new catalog, below data/."""
    from capture_lib.utils import DATA

    return DATA / (name or "catalog")


def download_command(options: argparse.Namespace) -> int:
    from capture_lib.catalog import shards
    from capture_lib.catalog.download import DownloadSettings, download

    catalog, missing = read_catalog(options.catalog), {}
    if options.export:
        print(f"{options.export}: {shards.export_addresses(catalog, options.export):,} addresses")
        return 0
    if options.shards:
        taken, refused = shards.import_photos(catalog, options.shards)
        print(f"{taken:,} photos taken in, {refused:,} refused (not a photo that decodes, or no sample of ours)")
    else:
        missing = download(catalog, DownloadSettings(options.connections, options.per_host, options.interval,
                                                     options.tries, max_seconds=options.seconds))
    found = len(Catalog(catalog.folder, catalog.table).photos)
    print(f"{catalog.folder}: {found:,} of {len(catalog.table):,} photos are on disk")
    if missing:
        reasons = Counter(reason for told in missing.values() for reason in told.values())
        print(f"{len(missing):,} could not be fetched, each named in {catalog.folder / 'missing.csv'}; addresses by "
              "reason: " + ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(5)))
    return 0 if found or not missing else 1


def evaluate_command(options: argparse.Namespace) -> int:
    from capture_lib.experiments.run import write_json
    from capture_lib.retrieval.metrics import DEFINITIONS, evaluate_lists

    result = evaluate_lists(options.lists, options.rankings)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{result['queries']:,} queries; percent with 95% intervals over queries")
    print(f"{'':10}" + "".join(f"{definition:>26}" for definition in DEFINITIONS))
    for figure in result["released"]:
        cells = (result[definition][figure] for definition in DEFINITIONS)
        print(f"{figure:10}" + "".join(
            f"{100 * c['value']:>10.2f} [{100 * c['low']:6.2f}, {100 * c['high']:6.2f}]" for c in cells))
    if options.json:
        write_json(options.json, result)
    return 0


def search_command(options: argparse.Namespace) -> int:
    from capture_lib.experiments.run import open_run
    from capture_lib.retrieval import search

    read_catalog(options.catalog)
    load_photo(options.image)  # a photo that can't be read is said before anything is trained
    run = open_run(options.profile, str(options.catalog), seed=options.seed)
    searcher = search.Searcher.open(run)
    answer = searcher.ask(options.image, options.caption)
    if answer.hits:
        print(f"compared by {answer.method}, reading {answer.representation}")
    else:
        print(f"{options.image}: no product was found in this photo, so there is nothing to search for")
    for number, hits in enumerate(answer.hits, start=1):
        print(f"product {number} (objectness {answer.scores[number - 1]:.2f}):")
        for hit in hits[:5]:
            print(f"  {hit.score:.3f}  {hit.sample_id}  {'; '.join(hit.labels)}  {hit.caption}")
    print(f"picture: {search.draw(answer, options.out)}")
    return 0


def explore_command(options: argparse.Namespace) -> int:
    if options.catalog:
        read_catalog(options.catalog)  # a wrong folder is told before the imports, which take a while

    from capture_lib import profiles
    from capture_lib.explorer import widget

    profiles.get(options.profile)
    return widget.serve(options.profile, options.catalog, options.port, not options.no_browser)


def transfer_command(options: argparse.Namespace) -> int:
    import pandas as pd

    from capture_lib import profiles
    from capture_lib.experiments.run import open_run, write_json
    from capture_lib.proposals import transfer
    from capture_lib.report import figures

    if bool(options.backbone) != bool(options.weights):
        raise InputError("--backbone and --weights go together: a timm name, and a file of weights for it")
    if options.only in transfer.TRAINED and not options.weights:
        raise InputError(f"--only {options.only} starts from a pretrained network: give --backbone and --weights")
    if min(options.sizes) < 32:
        raise InputError(f"--sizes {min(options.sizes)}: search at 32 pixels or more")
    if profiles.get(options.profile).world is None:
        raise InputError(f"--profile {options.profile} has no world to train on; use smoke, cpu or gpu")
    catalog = read_catalog(options.catalog)
    transfer.check(options.backbone, options.weights, options.scenes)
    start = options.backbone, options.weights
    if options.only in transfer.TRAINED:
        run = open_run(options.profile, str(options.catalog), seed=options.seed)
        run = transfer.altered(run, scenes=options.scenes)
        found = {options.only: transfer.TRAINED[options.only](run, *start)}
    else:
        run = transfer.altered(open_run(options.profile, seed=options.seed), *start, options.scenes)
        tables = (options.only,) if options.only else transfer.TABLES
        found = transfer.report(run, catalog, tuple(options.sizes), start, tables)
    for name, part in found.items():
        if part:
            said = ", ".join(f"{key} {value}" for key, value in part.items() if not isinstance(value, dict))
            print(f"{name} ({run.profile.name} on {catalog.name}): {said}")
            print(pd.DataFrame(part["rows"]).T.map(figures.percent).to_string())
    if options.json:
        write_json(options.json, {"provenance": run.provenance("transfer"), "judged_on": catalog.name,
                                  "judged_fingerprint": catalog.fingerprint(), **found})
    return 0


def convert_command(options: argparse.Namespace) -> int:
    from capture_lib.model import released

    if (options.config is None) == (options.from_released is not None):
        raise InputError("--config FILE, the released configuration, goes with --from-released and only with it")
    if options.to_released:
        config = released.convert_to_released(options.to_released, options.out)
        print(f"{options.out}: the weights under the released names; their configuration is {config}")
        return 0
    unused = released.convert_from_released(options.from_released, options.config, options.out)
    print(f"{options.out}: config.json and model.safetensors")
    if unused:
        print(f"left out ({len(unused)}), as the released code never uses what they give: {', '.join(unused)}")
    return 0
