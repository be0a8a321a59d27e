"""The report site: what it says of a run, in text, and how it looks in a browser, wide and narrow, offline."""

import base64
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pandas as pd
import pytest
from browser_page import browser  # noqa: F401
from fontTools.ttLib import TTFont

from capture_lib.report import figures, schedule, site, table
from capture_lib.report import page as pages
from capture_lib.utils import InputError

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
LOADED = re.compile(r"""<script|<link|@import|src(set)?\s*=\s*["']?(https?:)?//|url\(\s*["']?(https?:)?//""")
HEADINGS = ["Which products are in this photo, and where else are they sold?",
            "Claims: what the paper says, what we measured", "Methods", "Notebooks", "Provenance"]
SCRIPT = re.search("<script>.*</script>", (Path(site.__file__).parent / "templates" / "figures.html.j2").read_text(),
                   re.DOTALL)[0]
SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
PROVENANCE = {
    "stem": "05_retrieval", "profile": "smoke", "catalog": f"面霜 {HOSTILE}", "seed": 0, "commit": "abc",
    "wall_time_s": 3.0, "versions": {"torch": "2.0"}, "hardware": {"machine": "x86_64", "cores": 2, "gpus": []},
    "parameters": {"pretrain": {"epochs": 9}}, "written": "2030-01-02T03:04:05Z",
}


def interval(value: float) -> dict:
    return {"value": value, "low": value - 0.02, "high": value + 0.03}


def method(value: float, by_box: float | None = None) -> dict:
    """The figures of a method, its released mAP@10 ten points above the standard one; no Prec@10 is available."""
    found = {definition: {"mAP@10": interval(value + 0.1 * (definition == "released")), "mAR@10": interval(0.4),
                          "Prec@10": None} for definition in ("released", "standard")}
    boxes = {"mAP@10": interval(by_box), "R@1": interval(2 * by_box), "found": interval(0.8)} if by_box else None
    return found | ({"instance": boxes} if boxes else {})


def claim(text: str, verdict: str, effect: float | None, paper: str | None = None, of: str = "paper") -> dict:
    low, high = (None, None) if effect is None else (effect - 0.025, effect + 0.03)
    lacking = "" if effect else "nothing was measured"
    return {"of": of, "claim": text, "source": "Sec. 4", "paper": paper, "compared": "a − b", "effect": effect,
            "low": low, "high": high, "verdict": verdict, "lacking": lacking, "note": "The world is small.",
            "comparisons": [{"compared": "a − c", "effect": 0.5, "low": 0.4, "high": 0.6, "p_raw": 0.01}]}


METRICS = {
    "03_detector": {"proposals": {"recall@0.5": interval(0.5), "photos": 1234}, "losses": [0.1, 0.2],
                    "rows": [{"name": "图像", "found": True}], "training_s": 12.5},
    "05_retrieval": {"methods": {"chance": method(0.02), "capture-chosen/instance": method(0.5, 0.25),
                                 HOSTILE: method(0.3, 0.1), "image-only": method(0.6)}},
    "06_ablations": {"methods": {"ablation/short": method(0.9), "image-only": method(0.68)},
                     "to_capture": {"image-only": interval(0.1)},
                     "claims": [claim("A & B", "reproduced", 0.09), claim("C", "not shown", -0.002, "1.0 more"),
                                claim("D", "contradicted", -0.1, "79.36 against 74.69"),
                                claim("E", "not testable at this size", None, of="ours")]},
    "07_beyond": {"gain": {"mean": 0.041, "low": 0.012, "high": 0.07}},
}


def write_metrics(out: Path, metrics: dict[str, dict]) -> None:
    (out / "metrics").mkdir(parents=True, exist_ok=True)
    for stem, content in metrics.items():
        text = json.dumps({"provenance": {**PROVENANCE, "stem": stem}, **content})
        (out / "metrics" / f"{stem}.json").write_text(text, encoding="utf-8")


def write_notebook(out: Path, stem: str, *cells: nbformat.NotebookNode) -> None:
    """An executed notebook and its page."""
    folder = out / "notebooks"
    folder.mkdir(exist_ok=True)
    head = nbformat.v4.new_markdown_cell(f"# {stem[:2]} · 标题 <b>x</b>\n\n**Goal.** Show 数据.\n\n## 1 · Part")
    notebook = nbformat.v4.new_notebook(cells=[head, *cells])
    nbformat.write(notebook, folder / f"{stem}.ipynb")
    (folder / f"{stem}.html").write_text(pages.to_html(notebook, stem), encoding="utf-8")


def pictured(data: dict, *tags: str) -> nbformat.NotebookNode:
    """A cell with an output and tags."""
    return nbformat.v4.new_code_cell("shown", metadata={"tags": list(tags)},
                                     outputs=[nbformat.v4.new_output("display_data", data)])


def photos(count: int, text: str) -> dict:
    """An output of the library's own gallery."""
    photo = np.full((40, 30, 3), 90, np.uint8)
    return {"text/html": figures.gallery([photo] * count, [text] * count, [figures.RIGHT] * count).data}


DRAWN = {"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="50"><path d="M0 0h9v9z"/></svg>'}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything: hostile names, pictures, a failed notebook."""
    out = tmp_path_factory.mktemp("report")
    write_metrics(out, METRICS)
    write_notebook(out, "00_tour", pictured(photos(6, f"✓ 防晒霜 {HOSTILE}"), "picture"))
    write_notebook(out, "05_retrieval", pictured({"text/html": "<p>no</p>"}, "picture"), pictured(DRAWN),
                   pictured(DRAWN, "picture"), pictured(photos(2, ""), "picture"))
    error = nbformat.v4.new_output("error", ename="InputError", evalue=f"no room {HOSTILE}", traceback=[])
    write_notebook(out, "06_ablations.failed", nbformat.v4.new_code_cell("1", outputs=[error]))
    timings = {"05_retrieval": {"seconds": 150.0, "fingerprint": ""}, "the whole run": {"seconds": 120.0}}
    (out / "timings.json").write_text(json.dumps(timings))
    site.build(out)
    return out


def text_of(file: Path) -> str:
    page = re.sub(r"<style>.*?</style>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


# ---- a real run, in a browser


@pytest.fixture(params=SIZES)
def window(browser, request):  # noqa: F811
    """A window without a network; `window.faults` are requests that failed and errors on the console."""
    context = browser.new_context(viewport=SIZES[request.param], offline=True)
    context.route(lambda address: not address.startswith(("file:", "data:")), lambda route: route.abort())
    opened = context.new_page()
    opened.faults = []
    opened.on("requestfailed", lambda failed: opened.faults.append(failed.url))
    opened.on("console", lambda message: opened.faults.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    yield opened
    context.close()


def overflow(opened) -> int:
    """By how many pixels a page is wider than its window."""
    return opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def sticks_out(opened) -> list[str]:
    """What reaches over the right edge outside of a box that scrolls by itself."""
    return opened.evaluate("""[...document.body.querySelectorAll('*')].filter(each => !each.closest('.wide')
        && each.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
        .map(each => each.outerHTML.slice(0, 90))""")


def assert_links_lead_somewhere(opened, file: Path) -> None:
    for address in opened.eval_on_selector_all("a[href]", "links => links.map(link => link.getAttribute('href'))"):
        parts = urlsplit(address)
        target = file.parent / unquote(parts.path) if parts.path else file
        assert target.is_file(), address
        assert not parts.fragment or f'id="{parts.fragment}"' in target.read_text(encoding="utf-8"), address


def test_the_report_of_a_real_run(smoke_report: Path, window):
    window.goto((smoke_report / "index.html").as_uri())
    assert not window.faults and overflow(window) == 0 and not sticks_out(window)
    assert window.locator(".notebooks li").count() == len(list((smoke_report / "notebooks").glob("*.html")))
    assert window.locator(".shots img").count() >= 8
    assert window.locator(".methods tbody tr").count() > 8 and window.locator(".ledger tbody tr").count() >= 10
    assert_links_lead_somewhere(window, smoke_report / "index.html")
    assert (smoke_report / "index.html").stat().st_size < 1_000_000


# ---- what is said


def test_the_index_tells_the_run_in_one_page(report: Path):
    said = text_of(report / "index.html")
    assert "profile smoke" in said and "seed 0" in said and "commit abc" in said
    assert "written 2030-01-02T03:04:05Z" in said and "the whole run took 2 min" in said
    assert "best of 4 methods: Image alone 68.0 [66.0, 71.0]" in said  # of the later notebook
    assert ("s model: CAPTURE, per product 50.0 [48.0, 53.0] standard mAP@10, percent; "
            "by box 25.0") in said
    assert "for scale: Chance 2.0 [0.0, 5.0] standard mAP@10, percent 4 claims" in said
    assert "What this run cannot decide: 2 of 4 claims." in said
    groups = ["Know nothing", "Baselines without CAPTURE", "[paper] CAPTURE", "[ours] CAPTURE beside"]
    assert sorted(groups, key=said.index) == groups and "Other models" not in said  # there are none
    assert "4 claims 1 reproduced 1 not shown 1 contradicted 1 not testable at this size" in said
    assert "What the paper claims A &amp; B a − b · Sec. 4 The world is small. +9.0 [+6.5, +12.0] ✓ reproduced" in said
    assert "1.0 more -0.2 [-2.7, +2.8] ◐ not shown" in said and "79.36 against 74.69 -10.0 [-12.5, -7.0] ×" in said
    assert "Our own questions E a − b · Sec. 4 The world is small. nothing was measured not available ○ not" in said
    assert "ablation/" not in said and "This run is not complete" in said and "InputError: no room" in said
    assert "image-only not available not available 68.0 [66.0, 71.0] 40.0 [38.0, 43.0] not available 78.0" in said
    assert "capture-chosen/instance 25.0 [23.0, 28.0] 50.0 [48.0, 53.0] 50.0 [48.0, 53.0] 40.0" in said  # mAP, R@1, mAP


def test_the_first_picture_of_each_notebook_stands_in_the_page(report: Path):
    index = (report / "index.html").read_text(encoding="utf-8")
    assert index.count('src="data:image/webp;base64,') == site.MAX_PICTURES  # of six
    drawing = base64.b64encode(DRAWN["image/svg+xml"].encode()).decode()
    assert index.count(f'src="data:image/svg+xml;base64,{drawing}"') == 1 and index.count("<img") == 5


def test_all_figures_are_one_tidy_table(report: Path):
    found = pd.read_csv(report / "figures.csv", keep_default_na=False, encoding="utf-8-sig")
    assert list(found.columns) == table.COLUMNS
    rows = found.set_index(["notebook", "figure", "method", "definition"])[["value", "low", "high", "unit"]]

    def row(*key: str) -> list:
        return rows.loc[key].tolist()

    assert row("05_retrieval", "mAP@10", "image-only", "released") == [0.7, "0.6799999999999999", "0.73", "fraction"]
    assert row("05_retrieval", "R@1", "capture-chosen/instance", "instance") == [0.5, "0.48", "0.53", "fraction"]
    assert row("06_ablations", "to_capture · image-only", "", "")[0] == 0.1
    assert row("03_detector", "proposals · photos", "", "") == [1234, "", "", "count"]
    assert row("03_detector", "losses · 2", "", "")[0] == 0.2 and row("03_detector", "training_s", "", "")[3] == "s"
    assert row("06_ablations", "claims · 1 · comparisons · 1 · p_raw", "", "")[0] == 0.01
    assert row("07_beyond", "gain", "", "") == [0.041, "0.012", "0.07", "fraction"]
    assert not found["figure"].str.contains(" · found|Prec|provenance|name").any()  # no numbers
    said = text_of(report / "figures.html")
    assert "recall@0.5 0.5 0.48 0.53 fraction" in said and "mAP@10 image-only released 0.7 0.68 0.73 fraction" in said


def test_figures_without_any_interval_are_a_table_too(tmp_path: Path):
    write_metrics(tmp_path, {"01_data": {"samples": 3, "proposals": {"value": None, "low": None, "high": None}}})
    assert "samples 3 count" in text_of(site.build(tmp_path).with_name("figures.html"))


def test_hostile_text_stays_text_and_nothing_is_loaded(report: Path):
    for name in ("index.html", "figures.html"):
        page = (report / name).read_text(encoding="utf-8")
        page = page.replace(SCRIPT, "")  # of the figures alone
        assert not LOADED.search(page) and "<img src=x" not in page and "&lt;script&gt;" in page
        assert len(page) < 300_000


def test_a_site_of_nothing_says_so(tmp_path: Path):
    said = text_of(site.build(tmp_path))
    assert "No notebook has been executed yet" in said and "No method was scored" in said
    assert "No claim was tested" in said
    assert "No figures yet" in text_of(tmp_path / "figures.html")
    assert site.summary(tmp_path) == [f"report: {tmp_path}/index.html"]


def test_the_number_of_labelled_queries_stands_beside_the_figures(tmp_path: Path):
    counted = {"split": "test", "count": 40, "labelled": 20}
    write_metrics(tmp_path, {"05_retrieval": {"methods": {"chance": method(0.02)}, "queries": counted}})
    said = text_of(site.build(tmp_path))
    assert "over the test queries that have labels, 20 of 40." in said
    assert "0 to 100 mAP@10 standard" in said and "by box 2" not in said  # nothing was judged by box


def test_a_catalog_with_nothing_to_score(tmp_path: Path):
    unscored = {"03_detector": {"proposals": None, "encoder": {"kind": "crops"}}, "05_retrieval": {"methods": {}},
                "06_ablations": {"methods": {}, "claims": [claim("A", "not testable at this size", None)]}}
    write_metrics(tmp_path, unscored)
    said = text_of(site.build(tmp_path))
    assert "No method was scored" in said and "1 not testable at this size" in said and "best of" not in said
    assert site.summary(tmp_path)[0] == "claims: 1 not testable at this size"


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_broken_metrics_file_is_named(tmp_path: Path, text: str):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "04_x.json").write_text(text)
    with pytest.raises(InputError, match="04_x.json: not a JSON object"):
        site.build(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_broken_notebook_is_named(tmp_path: Path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "04_x.ipynb").write_text("{half")
    with pytest.raises(InputError, match="04_x.ipynb: not a notebook; remove it and run it again"):
        site.build(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_the_end_of_a_run_takes_three_lines(report: Path):
    assert site.summary(report) == [
        "standard mAP@10, best of 4 methods first: image-only 68.0% [66.0, 71.0]; capture-chosen/instance "
        "50.0% [48.0, 53.0]; chance 2.0% [0.0, 5.0]; by box capture-chosen/instance 25.0% [23.0, 28.0]",
        "claims: 1 reproduced, 1 not shown, 1 contradicted, 1 not testable at this size",
        f"report: {report / 'index.html'}"]


def test_seconds_for_a_reader():
    assert [schedule.duration(seconds) for seconds in (8.24, 700)] == ["8.2 s", "12 min"]


# ---- in a browser


@pytest.mark.parametrize("name", ["index.html", "figures.html"])
def test_a_page_in_a_browser(report: Path, window, name: str):
    window.goto((report / name).as_uri())
    assert not window.faults and overflow(window) == 0 and not sticks_out(window)
    assert window.title() != "taken" and window.locator("script").count() == (name == "figures.html")
    headings = window.locator("h1, h2").all_inner_texts()
    assert headings == (HEADINGS if name == "index.html" else ["All figures"])
    assert all(window.eval_on_selector_all("img", "all => all.map(one => one.complete && one.naturalWidth > 0)"))
    assert_links_lead_somewhere(window, report / name)
    for folded in window.locator("details").all():
        folded.evaluate("one => one.open = true")
    assert overflow(window) == 0 and not sticks_out(window)
    window.emulate_media(media="print")
    window.set_viewport_size({"width": 688, "height": 1000})  # A4 within its margins
    assert overflow(window) == 0 and not sticks_out(window)
    assert not window.eval_on_selector_all(".wide", "all => all.some(one => one.scrollWidth > one.clientWidth)")


def test_figures_are_searched_and_sorted(report: Path, window):
    window.goto((report / "figures.html").as_uri())
    window.fill("#find", "IMAGE-only released map")
    rows = window.locator("tbody tr:visible").all_inner_texts()
    assert len(rows) == 2 and all("image-only" in row and "released" in row for row in rows)
    window.fill("#find", "")
    window.click("thead button:text('value')")
    values = [float(cell) for cell in window.locator("tbody td:nth-child(5)").all_inner_texts()]
    assert values == sorted(values) and len(values) > 20
    window.click("thead button:text('value')")
    values = [float(cell) for cell in window.locator("tbody td:nth-child(5)").all_inner_texts()]
    assert values == sorted(values, reverse=True)


def test_names_for_readers():
    assert site.in_words("capture-beside-raw/instance + captions + WCCN") == (
        "CAPTURE beside raw vectors, per product, captions taught the regions, WCCN")
    assert site.in_words("something new") == "Something new"


def test_chinese_is_drawn_by_the_embedded_font(report: Path, window):
    window.goto((report / "index.html").as_uri())
    loaded = window.evaluate("document.fonts.ready.then(() => [...document.fonts].map(font => font.status))")
    assert loaded == ["loaded"]
    source = re.search(r"data:font/woff;base64,([^)]+)", (report / "index.html").read_text(encoding="utf-8"))[1]
    glyphs = TTFont(io.BytesIO(base64.b64decode(source))).getBestCmap()
    written = set(figures.CHINESE.findall(window.locator("body").inner_text()))
    assert {"面", "霜", "✓", "◐", "○"} <= written and {ord(character) for character in written} <= set(glyphs)
