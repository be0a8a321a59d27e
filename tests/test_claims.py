"""The ledger: verdicts follow the intervals, and nothing is invented."""

import numpy as np
import pandas as pd
import pytest

from capture_lib import claims


def scores(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({claims.FIGURE: values})


@pytest.mark.parametrize("shift, expected", [(0.1, "reproduced"), (-0.1, "not reproduced"), (0.0, "not reproduced")])
def test_the_verdict_follows_the_paired_effect(shift: float, expected: str):
    rng = np.random.default_rng(0)
    rival = rng.uniform(0.2, 0.8, 300)
    better = rival + shift + rng.permutation(np.repeat([-0.05, 0.05], 150))
    claim = claims.Claim("a beats b", "here", "a", "b")
    row = claims.judge(claim, {"a": scores(better), "b": scores(rival)}, "capture run")
    assert row["verdict"] == expected
    assert row["effect"] == pytest.approx(np.mean(better - rival))
    assert row["low"] < row["effect"] < row["high"]


def test_what_cannot_be_tested_has_no_effect():
    row = claims.judge(claims.Claim("a beats b", "here", "a", "b"), {}, "capture run")
    assert row["verdict"] == "not testable here" and row["effect"] is None and row["paper"] is None


def test_the_recall_claim_is_judged_by_its_interval():
    measured = {"recall@0.5": {"value": 0.9, "low": 0.85, "high": 0.95}}
    assert claims.recall_claim(measured, "x")["verdict"] == "reproduced"
    assert claims.recall_claim(measured, "x", wanted=0.88)["verdict"] == "not reproduced"
    assert claims.recall_claim(None, "x")["verdict"] == "not testable here"


def test_no_row_quotes_a_figure_of_the_paper_that_is_not_known():
    rows = [*(claims.judge(claim, {}, "x") for claim in claims.CLAIMS), claims.recall_claim(None, "x")]
    assert len(rows) == len(claims.CLAIMS) + 1 and all(row["paper"] is None for row in rows)
