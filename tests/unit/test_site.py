"""The report site: what it says of a run, in text, and how it looks in a browser, wide and narrow, offline."""

import base64
import copy
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest
from browser_page import browser  # noqa: F401
from fontTools.ttLib import TTFont

from capture_lib.report import changes, figures, pictures, results, site
from capture_lib.report import page as pages
from capture_lib.utils import InputError

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
LOADED = re.compile(r"""<script|<link|@import|src(set)?\s*=\s*["']?(https?:)?//|url\(\s*["']?(https?:)?//""")
HEADINGS = ["Which products are in this photo, and where else are they sold?", "One query, answered", "Results",
            "Claims: what the paper says, what we measured", "Pictures", "Notebooks",
            "What differs from the previous run", "Provenance"]
STEMS = ["05_retrieval", "06_ablations", "07_claims", "08_beyond", "03_detector"]
SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
PROVENANCE = {
    "stem": "05_retrieval", "profile": "smoke", "catalog": f"面霜 {HOSTILE}", "seed": 0, "commit": "abc",
    "wall_time_s": 3.0, "versions": {"torch": "2.0"}, "hardware": {"machine": "x86_64", "cores": 2, "gpus": []},
    "parameters": {"pretrain": {"epochs": 9}}, "written": "2030-01-02T03:04:05Z",
}


def interval(value: float) -> dict:
    return {"value": value, "low": value - 0.02, "high": value + 0.03}


def method(value: float) -> dict:
    """The figures of a method, its released mAP@10 ten points above the standard one; no Prec@10 is available."""
    return {definition: {"mAP@10": interval(value + 0.1 * (definition == "released")), "mAR@10": interval(0.4),
                         "Prec@10": None} for definition in ("released", "standard")}


def claim(text: str, verdict: str, effect: float | None, paper: object = None) -> dict:
    low, high = (None, None) if effect is None else (effect - 0.025, effect + 0.03)
    return {"claim": text, "source": "Sec. 4", "paper": paper, "compared": "a − b", "effect": effect, "low": low,
            "high": high, "verdict": verdict, "command": "capture run", "rule": "holds if better",
            "comparisons": [{"compared": "a − b", "outcome": "holds"}, {"compared": "a − c", "outcome": "not shown"},
                            {"compared": "a − d", "outcome": "not measured"}], "looked_into": "*World:* said."}


METRICS = {
    "03_detector": {"proposals": {"recall@0.5": interval(0.5), "photos": 1234}, "losses": [0.1] * 30, "sizes": [1, 2],
                    "rows": [{"name": "图像", "found": True}], "many": {f"n{n}": n for n in range(30)}},
    "05_retrieval": {"methods": {"chance": method(0.02), "capture-chosen/instance": method(0.5), HOSTILE: method(0.3),
                                 "image-only": method(0.6)}},
    "06_ablations": {"methods": {"ablation/recipe": method(0.9), "two-stream/image": method(0.8),
                                 "image-only": method(0.68)}},
    "07_claims": {"claims": [claim("A & B", "reproduced", 0.09), claim("C", "partly", -0.002, 0.01),
                             claim("D", "not reproduced", -0.1, "79.36 against 74.69"),
                             claim("E", "not testable here", None)]},
    "08_beyond": {"gain": {"mean": 0.041, "low": 0.012, "high": 0.07},
                  "methods": {"paper, beyond without smoothing": method(0.95)}},
}


def write_metrics(out: Path, metrics: dict[str, dict], folder: str = "metrics", **provenance: object) -> None:
    (out / folder).mkdir(parents=True, exist_ok=True)
    for stem, content in metrics.items():
        text = json.dumps({"provenance": {**PROVENANCE, "stem": stem, **provenance}, **content})
        (out / folder / f"{stem}.json").write_text(text, encoding="utf-8")


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
    """A report with everything: hostile names, pictures, a failed notebook, a run before."""
    out = tmp_path_factory.mktemp("report")
    write_metrics(out, METRICS)
    before = copy.deepcopy(METRICS)
    before["05_retrieval"]["methods"]["image-only"] = method(0.7)
    before["06_ablations"]["methods"]["image-only"] = method(0.6)
    before["07_claims"]["claims"][1]["verdict"] = "not reproduced"
    write_metrics(out, before, changes.KEPT, commit="old", wall_time_s=99, written="2029-12-31T00:00:00Z")
    write_notebook(out, "00_tour", pictured(photos(1, f"Caption: 面霜 {HOSTILE}"), "picture"),
                   pictured(photos(6, f"✓ 0.75 · 防晒霜 {HOSTILE}"), "picture"))
    write_notebook(out, "05_retrieval", pictured(photos(7, "霜"), "picture"), pictured(DRAWN, "picture"),
                   pictured(DRAWN), nbformat.v4.new_markdown_cell("## 2 · Text"),
                   pictured({"text/html": "<p>no</p>"}, "picture"))
    error = nbformat.v4.new_output("error", ename="InputError", evalue=f"no room {HOSTILE}", traceback=[])
    write_notebook(out, "07_claims.failed", nbformat.v4.new_code_cell("1", outputs=[error]))
    (out / "timings.json").write_text(json.dumps({"05_retrieval": {"seconds": 150.0, "fingerprint": ""}}))
    site.build(out)
    return out


def text_of(file: Path) -> str:
    page = re.sub(r"<style>.*?</style>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


# ------------------------------------------------------------------------------------- a real run, in a browser


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
    """The first test here: where a browser is open, no notebook can be executed."""
    window.goto((smoke_report / "index.html").as_uri())
    assert not window.faults and overflow(window) == 0 and not sticks_out(window)
    assert window.locator(".tour img").count() >= 3 and window.locator(".cards li").count() >= 5
    assert window.locator(".forest li").count() > 8 and window.locator(".ledger tbody tr").count() == 20
    assert_links_lead_somewhere(window, smoke_report / "index.html")
    assert (smoke_report / "index.html").stat().st_size < 500_000


# ------------------------------------------------------------------------------------------ what is said


def test_the_index_tells_the_run_in_one_page(report: Path):
    said = text_of(report / "index.html")
    assert "profile smoke" in said and "seed 0" in said and "commit abc" in said and "2 cores x86_64, no GPU" in said
    assert "date 2030-01-02 03:04:05" in said and "notebooks took 2 min" in said
    assert "Best of 4 methods: image-only 68.0 [66.0, 71.0]" in said  # of the later notebook
    assert "50.0 [48.0, 53.0] chance 2.0 [0.0, 5.0]" in said
    assert "08_beyond, gain +4.1 [+1.2, +7.0] points" in said
    assert "proposals, recall@0.5 50.0 [48.0, 53.0] percent" in said
    assert "✓ 1 reproduced ◐ 1 partly × 1 not reproduced ○ 1 not testable here" in said
    assert "A &amp; B a − b · Sec. 4 what bears on it World: said. not available +9.0 [+6.5, +12.0] ✓" in said
    assert "✓ reproduced 1 of 2 hold C a − b" in said
    assert "+1.0 -0.2 [-2.7, +2.8] ◐ partly" in said and "79.36 against 74.69 -10.0" in said
    assert "not available not available ○ not testable here" in said
    assert "ablation/" not in said.split("Claims:")[0] and "two-stream/image" not in said and "without" not in said
    assert "This run is not complete" in said and "InputError: no room" in said


def test_the_index_tells_what_differs(report: Path):
    said = text_of(report / "index.html").split("What differs from the previous run")[-1]
    assert "5 of 141 figures differ from the previous run (2029-12-31 00:00:00 UTC), 4 outside their interval" in said
    assert "commit old abc all" in said and "C not reproduced partly" in said
    assert "image-only, mAP@10 60.0 [58.0, 63.0] 68.0 [66.0, 71.0] +8.0 outside" in said
    assert "chance, mAP@10 2.0 [0.0, 5.0] 2.0 [0.0, 5.0] 0 equal" in said
    assert "wall_time" not in said.split("Provenance")[0]


def test_every_picture_leads_to_its_cell(report: Path):
    index = (report / "index.html").read_text(encoding="utf-8")
    assert index.count('src="pictures/00_tour-') == 7
    assert index.count('src="pictures/05_retrieval-1-') == pictures.MOST  # of seven
    assert index.count('src="pictures/05_retrieval-2-0-0.svg"') == 1 and "05_retrieval-3" not in index
    assert f"border-color: {figures.RIGHT}" in index
    assert len(list((report / "pictures").iterdir())) == 12


def test_only_pictures_within_the_page_are_taken():
    data = base64.b64encode(b"bytes").decode()
    html = ('<img src="https://example.org/x.png"><img src="data:image/svg+xml;base64,AAAA"><figure>'
            f'<img style="border:3px solid #0173b2;x" src="data:image/webp;base64,{data}">'
            '<figcaption>a &lt;b&gt; <b>c</b></figcaption></figure>after')
    found = pictures.Pictures(html).found
    assert found == [{"suffix": "webp", "bytes": b"bytes", "text": "a <b> ", "frame": "#0173b2"}]


def test_results_show_every_figure(report: Path):
    page, said = (report / "results.html").read_text(encoding="utf-8"), text_of(report / "results.html")
    assert "image-only 60.0 [58.0, 63.0] 40.0 [38.0, 43.0] not available" in said
    assert "standard definition" in said and "released definition" in said
    assert "A &amp; B Sec. 4 not available +9.0 [+6.5, +12.0] reproduced capture run" in said
    assert "C Sec. 4 +1.0 -0.2" in said and "E Sec. 4 not available not available not testable here" in said
    assert "recall@0.5 0.5 [0.48, 0.53]" in said and "photos 1234" in said and "losses 30 values" in said
    assert "sizes 1, 2" in said and "1 · name 图像" in said and "1 · found yes" in said
    assert "gain 0.041 [0.012, 0.07]" in said and "versions · torch 2.0" in said
    assert "<summary>30 figures</summary>" in page


def test_what_an_interval_holds_beside_its_bounds_is_shown_too():
    figure = {"mean": 0.5, "low": 0.25, "high": 1, "chance": 0.1}
    rows = dict(results.rows_of({"a": figure, "b": {"low": 1, "high": 2}}))
    assert rows == {"a": {"value": "0.5", "interval": "[0.25, 1]"}, "a · chance": {"value": "0.1", "interval": ""},
                    "b · low": {"value": "1", "interval": ""}, "b · high": {"value": "2", "interval": ""}}


def test_hostile_text_stays_text_and_nothing_is_loaded(report: Path):
    for name in ("index.html", "results.html"):
        page = (report / name).read_text(encoding="utf-8")
        assert not LOADED.search(page) and "<img src=x" not in page and "&lt;script&gt;" in page
        assert len(page) < 300_000


def test_a_site_of_nothing_says_so(tmp_path: Path):
    said = text_of(site.build(tmp_path))
    assert "No notebook has been executed yet" in said and "No method was scored" in said
    assert "No claim was tested" in said and "No picture" not in said
    assert "No earlier run in this folder to compare with." in said
    assert "No figures yet" in text_of(tmp_path / "results.html")
    assert site.summary(tmp_path) == ["no earlier run in this folder to compare with", f"report: {tmp_path}/index.html"]


def test_a_catalog_with_nothing_to_score(tmp_path: Path):
    unscored = {"03_detector": {"proposals": None, "encoder": {"kind": "crops"}}, "05_retrieval": {"methods": {}},
                "06_ablations": {"methods": {}}, "07_claims": {"claims": [claim("A", "not testable here", None)]}}
    write_metrics(tmp_path, unscored)
    said = text_of(site.build(tmp_path))
    assert "No method was scored" in said and "○ 1 not testable here" in said and "Best of" not in said
    assert site.summary(tmp_path)[0] == "claims: 1 not testable here"


@pytest.mark.parametrize("folder", ["metrics", "previous"])
@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_broken_metrics_file_is_named(tmp_path: Path, folder: str, text: str):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "04_x.json").write_text(text)
    with pytest.raises(InputError, match="04_x.json: not a JSON object"):
        site.build(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_broken_notebook_is_named(tmp_path: Path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "04_x.ipynb").write_text("{half")
    with pytest.raises(InputError, match="04_x.ipynb: not a notebook; remove it and run it again"):
        site.build(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_the_end_of_a_run_takes_five_lines_at_most(report: Path):
    lines = site.summary(report)
    assert len(lines) <= 5
    assert lines[0] == ("best of 4 methods: image-only, mAP@10 68.0 [66.0, 71.0]; capture-chosen/instance 50.0 [48.0, "
                        "53.0]; chance 2.0 [0.0, 5.0] (percent, standard definition)")
    assert lines[1] == "claims: 1 reproduced, 1 partly, 1 not reproduced, 1 not testable here"
    assert lines[-1] == f"report: {report / 'index.html'}"


# --------------------------------------------------------------------------------------- what differs


def with_provenance(metrics: dict[str, dict], **changed: object) -> dict[str, dict]:
    return {stem: {"provenance": {**PROVENANCE, **changed}, **content} for stem, content in metrics.items()}


def test_equal_runs_differ_in_nothing_whatever_time_they_took():
    again = copy.deepcopy(METRICS) | {"04_pretraining": {"samples_per_second": 9.0, "toy": {"seconds": 1}}}
    before = copy.deepcopy(METRICS) | {"04_pretraining": {"samples_per_second": 7.0, "toy": {"seconds": 2}}}
    found = changes.compare(with_provenance(before, wall_time_s=1, written="x"), with_provenance(again))
    assert not found["figures"] and not found["origin"] and not found["verdicts"] and not found["new"]
    assert changes.said(found) == "nothing differs from the previous run (x UTC): 141 figures are equal"


def test_figures_that_come_and_go_are_counted_and_other_notebooks_not_compared():
    found = changes.compare(with_provenance({"01": {"a": 1, "b": 2}, "02": {"c": 3}}),
                            with_provenance({"01": {"a": 1, "d": 2}, "03": {"c": 4}}))
    assert found["stems"] == ["01"] and found["new"] == ["01 · d"] and found["gone"] == ["01 · b"]
    assert "1 are new, 1 are gone" in changes.said(found)


def test_whether_a_figure_left_its_interval():
    assert changes.difference("x", interval(0.5), interval(0.529), 100)["outside"] is False
    row = changes.difference("x", interval(0.5), interval(0.54), 100)
    assert (row["then"], row["now"], row["change"], row["outside"]) == (
        "50.0 [48.0, 53.0]", "54.0 [52.0, 57.0]", "+4.0", True)
    assert changes.difference("x", 1, 2.5)["change"] == "+1.5" and changes.difference("x", 1, 2.5)["outside"] is None
    assert changes.difference("x", "joint", "product")["change"] == ""
    assert changes.difference("x", interval(0.5), None, 100)["now"] == "not available"


def test_what_figures_were_made_with_is_told_by_notebook():
    before = {"01": {"provenance": PROVENANCE}, "02": {"provenance": PROVENANCE}}
    now = with_provenance({"01": {}, "02": {}}, commit="new", parameters={"pretrain": {"epochs": 3}})
    now["02"]["provenance"] = {**PROVENANCE, "commit": "new"}
    assert changes.compare(before, now)["origin"] == [
        ("commit", "abc", "new", ["01", "02"]), ("parameters · pretrain · epochs", "9", "3", ["01"])]


# ----------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize("name", ["index.html", "results.html"])
def test_a_page_in_a_browser(report: Path, window, name: str):
    window.goto((report / name).as_uri())
    assert not window.faults and overflow(window) == 0 and not sticks_out(window)
    assert window.title() != "taken" and window.locator("script").count() == 0
    headings = window.locator("h1, h2").all_inner_texts()
    assert headings == (HEADINGS if name == "index.html" else ["All figures", *STEMS])
    assert all(window.eval_on_selector_all("img", "all => all.map(one => one.complete && one.naturalWidth > 0)"))
    assert_links_lead_somewhere(window, report / name)
    for folded in window.locator("details").all():
        folded.evaluate("one => one.open = true")
    assert overflow(window) == 0 and not sticks_out(window)
    window.emulate_media(media="print")
    window.set_viewport_size({"width": 688, "height": 1000})  # A4 within its margins
    assert overflow(window) == 0 and not sticks_out(window)
    assert not window.eval_on_selector_all(".wide", "all => all.some(one => one.scrollWidth > one.clientWidth)")


def test_chinese_is_drawn_by_the_embedded_font(report: Path, window):
    window.goto((report / "index.html").as_uri())
    loaded = window.evaluate("document.fonts.ready.then(() => [...document.fonts].map(font => font.status))")
    assert loaded == ["loaded"]
    source = re.search(r"data:font/woff;base64,([^)]+)", (report / "index.html").read_text(encoding="utf-8"))[1]
    glyphs = TTFont(io.BytesIO(base64.b64decode(source))).getBestCmap()
    written = set(figures.CHINESE.findall(window.locator("body").inner_text()))
    assert {"面", "霜", "✓", "◐", "○"} <= written and {ord(character) for character in written} <= set(glyphs)
