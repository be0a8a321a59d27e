"""The ledger: verdicts follow the effects that are planted, multiple comparisons count, and nothing is invented."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from capture_lib.catalog.table import HELD_OUT, SEEN, UNSEEN
from capture_lib.experiments import claims, variants
from capture_lib.experiments.claims import (
    BETTER,
    BOXES,
    CONTRADICTED,
    MIN_QUERIES,
    MIN_STEPS,
    NOT_BETTER,
    NOT_SHOWN,
    NOT_TESTABLE,
    RECALL,
    REPRODUCED,
)
from capture_lib.profiles import TINY_CAPTURE
from capture_lib.retrieval.embedding import LEVELS
from capture_lib.retrieval.ranking import METHODS as METHODS_OF_ALL
from capture_lib.retrieval.statistics import paired_difference

OURS = "capture-chosen/instance"  # CAPTURE by the representation that val chooses
RECIPE = "ablation/recipe"  # CAPTURE trained as short as the other ablations
METHODS = sorted({name for claim in claims.CLAIMS if claim.get("figure") != RECALL
                  for pair in claim["comparisons"] for name in pair})
COMBINATION = np.array([SEEN, UNSEEN, HELD_OUT] * 80, object)  # of 240 queries
PHOTOS = np.repeat(np.arange(240), np.arange(240) % 3 + 1)  # of true boxes, 1 to 3 a photo
PROPOSALS = {"photos": 100, RECALL: {"value": 0.95, "low": 0.93, "high": 0.97}}
ENOUGH = {"ablation": MIN_STEPS, "full": MIN_STEPS}
KEYS = {"of", "claim", "source", "paper", "note", "figure", "effect", "low", "high", "p", "seen", "verdict", "lacking",
        "agree", "command"}
Scores = dict[str, list[np.ndarray]]  # by method, for each training


def made_up(shift: dict[str, float], trainings: int = 1, seed_noise: float = 0.0, noise: float = 0.05) -> Scores:
    """Scores of all methods of the ledger: 0.5 and a planted shift, noise of the query and of the training."""
    rng = np.random.default_rng(0)
    hardness = rng.uniform(0.2, 0.8, len(COMBINATION))
    return {name: [hardness + shift.get(name, 0) + rng.normal(0, noise, len(hardness)) + rng.normal(0, seed_noise)
                   for _ in range(1 if name.startswith(claims.UNTRAINED) else trainings)] for name in METHODS}


def ledger(scores: Scores, proposals: dict | None = PROPOSALS, steps: dict = ENOUGH) -> dict[str, dict]:
    """The rows by claim; a box is judged as the photo that it is in."""
    count = len(next(iter(scores.values()))[0]) if scores else 0
    photos = PHOTOS[PHOTOS < count]
    queries = {name: [pd.DataFrame({claims.FIGURE: values}) for values in own] for name, own in scores.items()}
    boxes = {name: [pd.DataFrame({"photo": photos, "mAP@10": values[photos]}) for values in own]
             for name, own in scores.items()}
    rows = claims.ledger(queries, boxes, COMBINATION[:count], proposals, steps, "capture run")
    return {row["claim"]: row for row in rows}


def row_of(rows: dict[str, dict], words: str) -> dict:
    found = [row for claim, row in rows.items() if words in claim]
    assert len(found) == 1
    return found[0]


# ---- verdicts


@pytest.mark.parametrize(("wanted", "effect", "half", "p", "expected"), [
    (BETTER, 0.1, 0.09, 0.049, REPRODUCED), (BETTER, -0.1, 0.09, 0.049, CONTRADICTED),
    (BETTER, 0.1, 0.05, 0.05, NOT_SHOWN), (BETTER, -0.1, 0.05, 0.05, NOT_SHOWN),
    (BETTER, 0.1, 0.051, 0.05, NOT_TESTABLE), (BETTER, 0.0, 0.0, 1.0, NOT_SHOWN),
    (NOT_BETTER, 0.1, 0.09, 0.049, CONTRADICTED), (NOT_BETTER, -0.1, 0.09, 0.049, REPRODUCED),
    (NOT_BETTER, 0.0, 0.009, 1.0, REPRODUCED), (NOT_BETTER, -0.1, 0.1, 0.1, REPRODUCED),
    (NOT_BETTER, 0.0, 0.011, 1.0, NOT_SHOWN), (NOT_BETTER, 0.0, 0.051, 1.0, NOT_TESTABLE),
])
def test_a_verdict_follows_the_rules(wanted: str, effect: float, half: float, p: float, expected: str):
    result = {"wanted": wanted, "effect": effect, "high": effect + half, "seen": half, "p": p}
    enough = result | {"queries": MIN_QUERIES, "steps": None}
    assert claims.outcome(enough)[0] == claims.outcome(enough | {"steps": MIN_STEPS})[0] == expected
    assert bool(claims.outcome(enough)[1]) == (expected == NOT_TESTABLE)
    for lacking in ({"queries": MIN_QUERIES - 1}, {"steps": MIN_STEPS - 1}, {"effect": None}):
        assert claims.outcome(enough | lacking)[0] == NOT_TESTABLE


def test_planted_effects_are_found_and_no_others():
    rows = ledger(made_up({OURS: 0.1, "ablation/without mlm": -0.1, "ablation/with itm": 0.1,
                           "ablation/with itm, double batch": -0.01, "capture-chosen/image": -0.01}))
    late = row_of(rows, "the late fusion of two")
    assert late["verdict"] == REPRODUCED and late["effect"] == pytest.approx(0.1, abs=0.015)
    assert late["low"] < late["effect"] < late["high"] and late["p_raw"] < late["p"] < 0.05
    assert late["seen"] == pytest.approx((late["high"] - late["low"]) / 2)
    assert row_of(rows, "Masked language modelling")["verdict"] == REPRODUCED
    assert row_of(rows, "Masked region prediction")["verdict"] == NOT_SHOWN
    matching = row_of(rows, "Image-text matching")
    assert matching["verdict"] == CONTRADICTED  # it helps as it is, whatever the double batch shows
    assert [result["outcome"] for result in matching["comparisons"]] == [CONTRADICTED, REPRODUCED]
    product = row_of(rows, "product H_IMG")
    assert [result["outcome"] for result in product["comparisons"]] == [CONTRADICTED, REPRODUCED, CONTRADICTED]
    assert product["agree"] == "1 of 2"


def test_an_effect_in_the_other_direction_contradicts():
    late = row_of(ledger(made_up({OURS: -0.1})), "the late fusion of two")
    assert late["verdict"] == CONTRADICTED and late["effect"] < late["high"] < 0 and late["p"] < 0.05


def test_matching_that_does_harm_does_not_help():
    assert row_of(ledger(made_up({"ablation/with itm": -0.2, "ablation/with itm, double batch": -0.1})),
                  "Image-text matching")["verdict"] == REPRODUCED


def test_an_effect_that_only_one_comparison_would_show_is_lost_among_many():
    """p_raw is below 5%, what Holm makes of it is not: the paper's claims are one family."""
    scores = made_up({})
    swing = np.where(np.arange(len(COMBINATION)) % 2, 0.1, -0.1)  # 0.016 is 2.5 of its standard errors
    scores["ablation/without mrp"] = [scores[RECIPE][0] - 0.016 - swing]
    found = row_of(ledger(scores), "Masked region prediction")
    assert found["effect"] == pytest.approx(0.016)
    assert found["p_raw"] < 0.05 < found["p"] and found["verdict"] == NOT_SHOWN


def test_adjusted_values_are_those_of_holm_over_the_claims_of_the_paper_and_over_ours():
    rows = ledger(made_up({OURS: 0.02})).values()
    for owner in ("paper", "ours"):
        results = [result for row in rows if row["of"] == owner for result in row["comparisons"]]
        raw = sorted(result["p_raw"] for result in results)
        assert len(raw) == sum(len(claim["comparisons"]) for claim in claims.CLAIMS if claim["of"] == owner) > 15
        for result in results:
            before = [min(1, (len(raw) - i) * p) for i, p in enumerate(raw) if p <= result["p_raw"]]
            assert result["p"] == pytest.approx(max(before))


def test_training_noise_takes_a_verdict_back():
    """The same effect: clear with quiet trainings, not with loud ones; one training alone cannot tell."""
    shift = {"ablation/without contrastive": -0.04}
    quiet, loud = (row_of(ledger(made_up(shift, 3, noise_of_training)), "The contrastive loss helps")
                   for noise_of_training in (0.0, 0.08))
    assert quiet["verdict"] == REPRODUCED and loud["verdict"] == NOT_TESTABLE and "points" in loud["lacking"]
    assert loud["seen"] > 2 * quiet["seen"] and quiet["trainings"] == [3, 3]


def test_two_readings_of_one_model_share_its_training_noise():
    rng = np.random.default_rng(1)
    luck = rng.normal(0, 0.1, 3)  # of each training
    base = rng.uniform(0.2, 0.8, 240)
    scores = {name: [base + shift + more + rng.normal(0, 0.02, 240) for more in luck]
              for name, shift in (("capture/instance", 0.05), ("capture/image", 0.0))}
    main = row_of(ledger(scores), "Instance level beats")["comparisons"][0]
    assert main["high"] - main["low"] < 0.02 and main["outcome"] == REPRODUCED


@pytest.mark.parametrize(("a", "b", "same"), [
    ("capture/instance", "capture-chosen/image", True), ("two-stream/instance", "two-stream/image", True),
    ("image-stream", "dual-encoder/instance", True), (RECIPE, f"{RECIPE}, product", True),
    ("capture-raw-product/instance", "capture-beside-raw/instance", True),
    ("capture/instance + captions", "capture-chosen/image + captions", True),
    (OURS, f"{OURS} + captions", False), ("image-only", "image-only + captions", False),
    (OURS, "two-stream/instance", False), (RECIPE, "ablation/with itm", False),
    ("ablation/with itm", "ablation/with itm, double batch", False), ("capture/instance", "image-stream", False),
])
def test_which_methods_rest_on_one_training(a: str, b: str, same: bool):
    assert (claims.training_of(a) == claims.training_of(b)) == same


def test_claims_about_the_unseen_are_judged_by_those_queries_alone():
    scores = made_up({})
    for name in METHODS:
        if name.endswith("only") or name.endswith("/instance") and not name.startswith("capture"):
            scores[name][0] -= np.where(COMBINATION == UNSEEN, 0.2, 0)
    rows = ledger(scores)
    unseen, held_out = row_of(rows, "combinations unseen"), row_of(rows, "brands held out of training, too")
    assert unseen["verdict"] == REPRODUCED and unseen["agree"] == "4 of 4" and unseen["queries"] == 80
    assert held_out["verdict"] == NOT_SHOWN and held_out["compared"].endswith("(held-out brand)")


# ---- judged by the box


def test_what_boxes_tell_is_the_difference_of_their_means_with_photos_as_trials():
    rng = np.random.default_rng(2)
    tables = [pd.DataFrame({"photo": PHOTOS, "mAP@10": rng.random(len(PHOTOS))}) for _ in range(2)]
    means = [claims.per_photo(table) for table in tables]
    assert [len(values) for values in means] == [240, 240]
    assert means[0].mean() - means[1].mean() == pytest.approx(tables[0]["mAP@10"].mean() - tables[1]["mAP@10"].mean())

    # three equal boxes of a photo tell no more than one
    alone = pd.DataFrame({"photo": np.arange(5), "mAP@10": rng.random(5)})
    assert claims.per_photo(alone.loc[alone.index.repeat(3)]) == pytest.approx(claims.per_photo(alone))


def test_claims_about_boxes_see_them_alone():
    rows = ledger(made_up({f"{OURS} + captions": 0.1}))
    judged = [row for row in rows.values() if row["figure"] == BOXES]
    assert len(judged) >= 3 and all(row["compared"].endswith("(instance mAP@10)") for row in judged)
    taught = row_of(rows, "Captions teach the regions, evaluated by the box")["comparisons"][1]
    assert taught["outcome"] == REPRODUCED and taught["queries"] == 240
    queries = {name: [pd.DataFrame({claims.FIGURE: own[0]})] for name, own in made_up({}).items()}
    unboxed = claims.ledger(queries, {}, COMBINATION, None, ENOUGH, "x")
    assert {row["verdict"] for row in unboxed if row["figure"] == BOXES} == {NOT_TESTABLE}


# ---- what is not measured


def test_what_cannot_be_tested_has_no_effect():
    rows = ledger({}, None)
    assert len(rows) == len(claims.CLAIMS)
    for row in rows.values():
        assert row["verdict"] == NOT_TESTABLE and row["note"] and row["lacking"] == "nothing was measured"
        assert all(row[key] is None for key in claims.MEASURES)


def test_short_trainings_make_their_own_claims_untestable_and_no_others():
    scores = made_up({OURS: 0.1, "ablation/without mlm": -0.1})
    rows = ledger(scores, steps={"ablation": MIN_STEPS - 1, "full": MIN_STEPS})
    short = row_of(rows, "Masked language modelling")
    assert short["verdict"] == NOT_TESTABLE and "steps" in short["lacking"] and short["effect"] > 0.05
    assert row_of(rows, "the late fusion of two")["verdict"] == REPRODUCED
    shorter = ledger(scores, steps={"ablation": 1, "full": 1})
    assert row_of(shorter, "the late fusion of two")["verdict"] == NOT_TESTABLE
    raw = row_of(shorter, "Captions teach the regions:")["comparisons"][0]  # of no CAPTURE
    assert raw["steps"] is None and raw["outcome"] == NOT_SHOWN


def test_a_row_shows_the_first_comparison_that_was_measured():
    scores = made_up({})
    row = ledger({name: scores[name] for name in (OURS, "image-stream")})["Two modalities beat the image alone"]
    assert row["compared"] == f"{OURS} − image-stream" and row["effect"] is not None
    assert [result["effect"] for result in row["comparisons"]].count(None) == 3 and row["agree"] == "—"


def test_one_model_under_two_names_tells_nothing_but_that_it_is_no_better():
    scores = made_up({})
    scores["ablation/layers 552"] = [scores[RECIPE][0].copy()]
    scores[OURS] = [scores["capture/instance"][0].copy()]  # val chose the product
    rows = ledger(scores)
    assert row_of(rows, "default layer counts")["comparisons"][0]["effect"] is None
    product = row_of(rows, "product H_IMG")["comparisons"][0]
    assert (product["outcome"], product["effect"], product["p"]) == (REPRODUCED, 0, 1)


@pytest.mark.parametrize("queries", [1, 3, MIN_QUERIES - 1])
def test_a_few_queries_reproduce_nothing_however_clear_they_are(queries: int):
    rows = ledger({name: [own[0][:queries]] for name, own in made_up({OURS: 0.4}).items()}, None)
    assert {row["verdict"] for row in rows.values()} == {NOT_TESTABLE}


def test_the_recall_claim_is_judged_by_its_interval():
    assert row_of(ledger({}), "Proposals")["verdict"] == REPRODUCED
    at_the_threshold = {"photos": 100, RECALL: {"value": 0.81, "low": 0.79, "high": 0.83}}
    row = row_of(ledger({}, at_the_threshold), "Proposals")
    assert row["verdict"] == NOT_SHOWN and row["effect"] == pytest.approx(0.01)
    assert row["p"] == pytest.approx(0.327, abs=1e-3)  # 0.98 standard errors of a normal distribution
    certain = row_of(ledger({}, {"photos": 100, RECALL: dict.fromkeys(("value", "low", "high"), 1.0)}), "Proposals")
    assert certain["verdict"] == REPRODUCED and certain["p"] > 0


def test_proposals_without_true_boxes_are_not_measured():
    assert {row["verdict"] for row in ledger({}, {"photos": 0, RECALL: None}).values()} == {NOT_TESTABLE}


# ---- differences to one method


def test_differences_to_a_method_leave_out_itself_and_what_was_not_measured():
    rng = np.random.default_rng(3)
    values = rng.random((2, 3, 50))  # two ways to read one model, three trainings
    scores = {name: [pd.DataFrame({claims.FIGURE: row}) for row in own]
              for name, own in zip(("capture/instance", "capture/image"), values, strict=True)}
    found = claims.differences(scores, "capture/image", ["capture/instance", "capture/image", "image-only"])
    assert found == {"capture/instance": paired_difference(*values, together=True)}
    assert claims.differences(scores, "image-only", scores) == {}


# ---- its form


def test_claims_of_the_paper_and_ours_stand_apart_and_nothing_is_counted_twice():
    owners = [claim["of"] for claim in claims.CLAIMS]
    assert set(owners) == {"paper", "ours"} and owners == sorted(owners, reverse=True)
    planned = [result["compared"] for row in ledger({}).values() for result in row["comparisons"]]
    assert len(set(planned)) == len(planned) and len({claim["claim"] for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    of_the_paper = [name for claim in claims.CLAIMS if claim["of"] == "paper" for pair in claim["comparisons"]
                    for name in pair]
    assert not [name for name in of_the_paper if name.endswith("captions") or "beside" in name]
    assert not [claim for claim in claims.CLAIMS if claim.get("figure") == BOXES and "among" in claim]


def test_every_method_that_is_compared_is_measured_somewhere():
    groups = variants.ablations(TINY_CAPTURE).values()
    trained = [f"{name}/{level}" for name in variants.baselines(TINY_CAPTURE) for level in LEVELS]
    known = {*METHODS_OF_ALL, *trained, "image-stream", "text-stream", *(f"ablation/{name}" for group in groups
                                                                        for name in group)}
    assert {name.removesuffix(" + captions") for name in METHODS} <= known


def test_rows_are_json_with_what_a_reader_may_count_on():
    rows = list(ledger(made_up({OURS: 0.1}, 3, 0.01)).values())
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for row in rows:
        assert set(row) >= KEYS and row["command"] == "capture run" and row["verdict"] in claims.VERDICTS
        assert row["low"] <= row["effect"] <= row["high"] and 0 < row["p_raw"] <= row["p"] <= 1
        assert row["effect"] == row["comparisons"][0]["effect"]


def test_no_figure_of_the_paper_is_quoted_but_the_two_that_are_known():
    quoted = {claim["claim"]: claim["paper"] for claim in claims.CLAIMS if "paper" in claim}
    assert len(quoted) == 2 and all("second-hand" in text and "definition unknown" in text for text in quoted.values())
    assert {figure for text in quoted.values() for figure in re.findall(r"\d+\.\d+", text)} == {
        "79.36", "74.69", "70.25"}
    assert "74.69" in row_of(ledger({}), "UNITER")["paper"] and "70.25" in row_of(ledger({}), "CLIP")["paper"]


def test_every_note_has_two_short_sentences_at_most_and_no_figure_that_could_be_stale():
    for claim in claims.CLAIMS:
        note = claim["note"]
        assert 30 < len(note) <= 240 and note.endswith(".") and len(re.findall(r"[.!?](?=\s|$)", note)) <= 2
        assert not re.search(r"\d+ ?(%|points?\b|percent)|\d+[.,]\d", note + claim["claim"])
