"""The command line: `capture run | catalog | download | evaluate | search | explore`."""

import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

import typer
from typer import Argument, Option

from capture_lib.utils import DATA, InputError, claim_file, explain, write_json

# commands import what they use, so that `--help` and a mistake in an option are answered at once
app = typer.Typer(add_completion=False, rich_markup_mode=None, help="CAPTURE, from catalog to report.")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 only when all is well, 2 for a wrong input, 1 for a run that stopped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show
    try:
        code = invoke(sys.argv[1:] if arguments is None else arguments)
        if sys.stdout:  # none where it is closed
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except typer.TyperException as error:  # a wrong option or command
        line = " ".join(error.format_message().split()).removesuffix(".") + "; --help tells more"
        code = 2
    except (Exception, KeyboardInterrupt) as error:
        line, code = explain(error)
    print(f"capture: {line}", file=sys.stderr)
    return code


def invoke(arguments: list[str]) -> int:
    """Run the command of these arguments."""
    for argument in arguments:
        if re.search("[\x00\ud800-\udfff]", argument):  # Python's signs for bytes that did not decode
            raise InputError(f"argument {argument!r}: holds bytes that are not UTF-8; rename the file, or convert it")
    try:
        with typer.main.get_command(app).make_context("capture", list(arguments)) as context:
            return context.command.invoke(context) or 0  # some commands return nothing
    except typer.Exit as end:  # after --help
        return end.exit_code


def target(path: Path | None) -> Path | None:
    """Return where something is to be written; refuse a link, a device, and a place that cannot be written to."""
    above = next(folder for folder in [path, *path.absolute().parents] if os.path.lexists(folder)) if path else None
    if path and not above.is_dir() and (above.is_symlink() or not above.is_file()):
        raise typer.BadParameter(f"{above} is a link or a device; name a file or a folder")
    if path and above != path and not (above.is_dir() and os.access(above, os.W_OK)):
        raise typer.BadParameter(f"{above} is no folder that can be written to")
    return path


# what is refused before any work: a file where a folder is wanted, and the other way round
FOLDER = {"file_okay": False, "writable": True, "callback": target}
FILE = {"dir_okay": False, "writable": True, "callback": target}
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".pdf", ".svg")  # of matplotlib's
MaybePath = Path | None
ENCODER = Option("", metavar="NAME", help="a pretrained region encoder: a timm name, which is fetched, or a folder; a "
                 "convolutional one is adapted to the catalog, a transformer stays as it is")
PROPOSALS = Option("", metavar="NAME", help="a pretrained backbone of the detector, convolutional: a timm name or a "
                   "folder; or an open-vocabulary detector")
EMBEDDER = Option("", help="an image-text model of transformers to compare with", metavar="NAME")
ProfileName = Literal["smoke", "cpu", "thorough", "full", "gpu", "product1m"]


def with_parts(profile: str, encoder: str, proposals: str, embedder: str) -> str:
    """Return a profile with the pretrained parts that were asked for, as `profiles.get` reads them."""
    asked = {"encoder": encoder, "proposals": proposals, "embedder": embedder}
    for kind, value in asked.items():
        if "|" in value:
            raise InputError(f"--{kind} {value}: holds a bar, |; rename the folder")
        if value and Path(value).is_dir():  # notebooks run elsewhere
            asked[kind] = str(Path(value).resolve())
    return "|".join([profile, *(f"{kind}={value}" for kind, value in asked.items() if value)])


@app.command()
def run(
    profile: ProfileName = "cpu",
    catalog: MaybePath = Option(None, help="a catalog's folder; default: a drawn world"),
    only: str | None = Option(None, help="one notebook, by its number", metavar="NN"),
    out: MaybePath = Option(None, help="default: reports/PROFILE[-CATALOG]", **FOLDER),
    seed: int = Option(0, help="of every random draw", min=0, max=2**32 - 1),
    resume: bool = Option(False, "--resume", help="keep what an earlier run finished"),
    encoder: str = ENCODER,
    proposals: str = PROPOSALS,
    embedder: str = EMBEDDER,
    jobs: int = Option(0, help="processes side by side; default: a core each, up to 4; on a GPU 1", min=0, max=64),
) -> int:
    """Execute the notebooks and build the report."""
    from capture_lib.experiments.run import default_report
    from capture_lib.report import execute, site
    if only is not None and not only.strip():
        raise InputError("--only '': give the number of a notebook, such as 03")
    profile = with_parts(profile, encoder, proposals, embedder)
    out = (out or default_report(profile, catalog or "")).resolve()
    try:
        execute.run_notebooks(profile, catalog, out, seed, only, resume, jobs=jobs)
    except execute.STOPPED as failure:
        print(f"capture: {failure}", file=sys.stderr)
        with suppress(OSError):  # where the disk is full, there is no room for it either
            site.build(out)  # of what there is
        return 1
    site.build(out)
    print(*site.summary(out), sep="\n")
    return 0


@app.command()
def catalog(
    lists: MaybePath = Option(None, help="folder with the released lists"),
    table: MaybePath = Option(None, help="CSV or parquet table of your own"),
    dataset: str | None = Option(None, help="data set of Hugging Face, or its folder", metavar="OWNER/NAME"),
    world: Literal["mini", "small", "full"] | None = Option(None, help="draw one of a size"),
    images: MaybePath = Option(None, help="the folder that --table's images are in"),
    image: str = Option("", help="the column of --dataset that holds the photos", metavar="COLUMN"),
    caption: str = Option("", help="its column of texts", metavar="COLUMN"),
    label: str = Option("", help="its column of products", metavar="COLUMN"),
    split: str = Option("", help="our splits by those of --dataset; default: train=train",
                        metavar="train=train:90%,gallery=train:10%"),
    scenes: MaybePath = Option(None, help="photos for the backgrounds of --world"),
    seed: int = Option(0, help="of every random draw", min=0, max=2**32 - 1),
    out: MaybePath = Option(None, help="default: data/NAME", **FOLDER),
    add: bool = Option(False, "--add", help="to the catalog that is at --out"),
    columns: str = Option("", help="of --table, by our names", metavar="image=filepath,caption=title"),
    strict: bool = Option(False, "--strict", help="refuse what is odd, not faults alone"),
    skip_broken: bool = Option(False, "--skip-broken", help="leave rows of --table without a readable photo out"),
) -> None:
    """Make a catalog of lists, of a table, of a public data set, or a drawn one."""
    from capture_lib import world as drawn
    from capture_lib.catalog import hub, quality
    from capture_lib.catalog import lists as released
    from capture_lib.catalog.own_table import from_table
    from capture_lib.catalog.table import read_catalog

    # check that there is one source, and the options that go with it
    if sum(source is not None for source in (lists, table, dataset, world)) != 1:
        raise InputError("a catalog has one source: give --lists, --table, --dataset or --world")
    if world and add or not world and (scenes or seed):
        raise InputError("--scenes and --seed go with --world, --add with --lists, --table or --dataset")
    if (table is None) != (images is None):
        raise InputError("--table and --images go together: a table, and the folder of its photos")
    if not table and (columns or skip_broken) or world and strict:
        raise InputError("--columns and --skip-broken go with --table, --strict with --lists, --table or --dataset")
    if dataset is None and (image or caption or label or split) or dataset is not None and not (image and caption):
        raise InputError("--dataset takes --image COLUMN and --caption COLUMN, and maybe --label and --split")
    if out is None and not world:
        folder = lists or (table.resolve().parent if table else Path(dataset))
        out = DATA / (folder.resolve().name.partition(":")[0] or "catalog")
    scenes = str(scenes.resolve()) if scenes else ""
    words = ["world", world, Path(scenes).name, f"seed{seed}" if seed else ""]
    out = out or DATA / "-".join(filter(None, words))
    out = out if out.name else out.resolve()  # of "."
    if add and not (out / "catalog.parquet").is_file():
        raise InputError(f"--add: there is no catalog in {out} yet; leave --add out")

    # nothing of the user's is overwritten
    all_faults = out.parent / f"{out.name}-faults.csv"
    for file in (out / "quality.csv", out / "faults.csv", all_faults):
        claim_file(file, *quality.OURS)
    claim_file(out / "catalog.parquet")

    # make the catalog
    try:
        if lists:
            made = released.from_lists(lists, out, add, strict)
        elif table:
            made = from_table(table, images, out, add, columns=columns, strict=strict, skip_broken=skip_broken)
        elif dataset is not None:
            named = {"image": image, "caption": caption} | ({"label": label} if label else {})
            made = hub.from_dataset(dataset, named, out, split, add, strict)
        else:
            drawn.build(replace(drawn.SIZES[world], seed=seed, scenes=scenes), out)
            made = read_catalog(out)
    except InputError as error:
        if len(error.faults) <= len(str(error).splitlines()):  # all were said
            raise
        quality.write(error.faults, all_faults)
        raise InputError(f"{error}; all are in {all_faults}") from None

    # tell what it holds, what it lacks, and what is odd in it
    all_faults.unlink(missing_ok=True)  # of an earlier try
    print(made.folder, made.table["split"].value_counts().to_string(header=False), *made.remarks(), sep="\n")
    quality.write_quality(made)


@app.command()
def download(
    catalog: Path = Argument(help="a catalog's folder"),
    connections: int = Option(16, help="requests at the same time", min=1, max=100),
    per_host: int = Option(4, help="those of one host", min=1, max=100),
    interval: float = Option(0.02, help="seconds between those", min=0, max=3_600),
    seconds: float = Option(60, help="limit for one answer", min=0.1, max=86_400),
    tries: int = Option(3, help="of each address", min=1, max=100),
    user_agent: str = Option("capture-lib", help="what some servers want to read, a browser's name"),
    referer: str = Option("", help="the page that the photos stand on, where a server asks for it"),
    export: MaybePath = Option(None, help="write what img2dataset shall fetch", **FILE),
    fetched: MaybePath = Option(None, "--import", help="take in what img2dataset fetched"),
) -> int:
    """Fetch the photos of a catalog."""
    from capture_lib.catalog import download as fetching
    from capture_lib.catalog import quality
    from capture_lib.catalog.table import read_catalog
    if export and export.suffix.lower() != ".parquet":
        raise InputError(f"--export {export}: a parquet table is written; end its name with .parquet")
    samples = read_catalog(catalog)
    if export:
        claim_file(export, fetching.EXPORT_MARK)
        print(f"{export}: {fetching.export_addresses(samples, export):,} addresses")
        return 0
    claim_file(catalog / "quality.csv", *quality.OURS)
    if fetched:
        taken, left = fetching.import_photos(samples, fetched)
        print(f"{taken:,} photos taken in, {left:,} left: there already, undecodable, placeholders, or no sample")
        quality.write_quality(read_catalog(catalog))
        return 0
    limits = fetching.DownloadSettings(connections, per_host, interval, seconds, tries,
                                       user_agent=user_agent, referer=referer)
    missing = fetching.download(samples, limits)
    samples = read_catalog(catalog)
    count = len(samples.photos)
    print(f"{catalog}: {count:,} of {len(samples.table):,} photos are on disk")
    if lost := len(samples.table) - count - missing["sample_id"].nunique():
        print(f"{lost:,} have no address on the web; copy their files to {catalog / 'images'}, or leave their rows out")
    if not missing.empty:
        print(f"without a photo, in {catalog / 'missing.csv'}, by reason:")
        print(missing["reason"].value_counts().head(5).to_string(header=False))
    quality.write_quality(samples)
    return 0 if count else 1  # some photos are enough to go on with


@app.command()
def evaluate(
    lists: Path = Option(help="folder with the released lists"),
    rankings: Path = Option(help="lines of query_id,gallery_id,…"),
    missing: Literal["zero", "leave-out"] = Option("zero", help="what a query without a ranking counts"),
    json: MaybePath = Option(None, help="write the figures here too", **FILE),
) -> None:
    """Score a rankings file, in both definitions."""
    from capture_lib.experiments.evaluation_files import evaluate_lists
    from capture_lib.retrieval.metrics import DEFINITIONS
    if json:
        claim_file(json, rb'{\s*"made_by": "capture evaluate"')
    result = evaluate_lists(lists, rankings, missing)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{result['labelled']:,} of {result['queries']:,} queries are labelled and scored; "
          "percent with 95% intervals over queries")
    for definition in DEFINITIONS:
        for figure, value in result[definition].items():
            low, middle, high = (100 * value[end] for end in ("low", "value", "high"))
            print(f"{definition:>10} {figure:10} {middle:6.2f} [{low:6.2f}, {high:6.2f}]")
    if json:
        write_json(json, {"made_by": "capture evaluate"} | result)


@app.command()
def search(
    catalog: Path = Argument(help="a catalog's folder"),
    image: Path = Option(help="the query photo"),
    caption: str = Option("", help="its text, where there is one"),
    profile: ProfileName = "cpu",
    encoder: str = ENCODER,
    proposals: str = PROPOSALS,
    embedder: str = EMBEDDER,
    seed: int = Option(0, help="of every random draw", min=0, max=2**32 - 1),
    out: Path = Option(Path("search.jpg"), help="picture of boxes and hits", **FILE),
) -> None:
    """Find the products of a photo in a catalog's gallery."""
    if out.suffix.lower() not in PICTURES:
        raise InputError(f"--out {out}: end the picture's name with one of {', '.join(PICTURES)}")
    from capture_lib.catalog.photos import load_photo
    from capture_lib.experiments import run, search
    from capture_lib.report import figures

    # what cannot be read or written is said before anything is trained
    load_photo(image)
    claim_file(out, b".*" + figures.PICTURE_MARK)
    if out.exists() and out.samefile(image):
        raise InputError(f"--out {out}: is the query photo; name another file")
    profile = with_parts(profile, encoder, proposals, embedder)
    answer = search.answer(run.open_run(profile, str(catalog), seed=seed), image, caption)
    print(f"{len(answer.hits)} products, compared by {answer.how}")
    for number, hits in enumerate(answer.hits, start=1):
        print(f"product {number} (objectness {answer.scores[number - 1]:.2f}):")
        for hit in hits[:5]:
            line = f"  {hit.score:.3f}  {hit.sample_id}  {'; '.join(hit.labels)}  {hit.caption}"
            # no code of a catalog reaches the terminal; the wide space is no code
            print("".join(sign if sign.isprintable() or sign == "\u3000" else repr(sign)[1:-1] for sign in line))
    sys.stdout.flush()  # the picture takes another second
    figures.draw_answer(answer, out)
    print(f"picture: {out}")


@app.command()
def explore(
    catalog: MaybePath = Argument(None, help="a catalog's folder; default: a drawn world"),
    profile: ProfileName = "cpu",
    encoder: str = ENCODER,
    proposals: str = PROPOSALS,
    embedder: str = EMBEDDER,
    port: int | None = Option(None, help="default: a free one from 8866 on", min=1, max=65_535),
    no_browser: bool = Option(False, "--no-browser", help="print the address; open nothing"),
) -> None:
    """Click through results in the browser."""
    from capture_lib.explorer import widget
    widget.serve(with_parts(profile, encoder, proposals, embedder), catalog, port, not no_browser)
