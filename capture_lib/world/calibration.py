"""What captions and labels are like in Product1M's published lists, and the same statistics of any catalog."""

import numpy as np

from capture_lib.retrieval.metrics import RESAMPLES, bootstrap

# Of the 9,220 queries of the published dev and test lists, letters of any case; per query, or per label of a query.
REAL = {
    "caption_length": 31.43,  # characters
    "latin_share": 0.686,  # captions with a Latin letter
    "digit_share": 0.521,  # captions with a digit
    "products_per_query": 2.835,  # labels, repeated ones counted each time
    "repeated_share": 0.158,  # queries with a label twice or more
    "brand_in_caption": 0.889,  # labels whose first word stands in the caption
    "product_characters": 0.637,  # share of the other characters of a label that stand anywhere in the caption
    "whole_name": 0.278,  # labels of which all of them do
}
PER_LABEL = ("brand_in_caption", "product_characters", "whole_name")


def statistics(captions: list[str], labels: list[list[str]], seed: int = 0) -> dict[str, dict[str, float]]:
    """The statistics of `REAL` for labelled queries: `{value, low, high}` each, 95% intervals over queries.

    Raises:
        ValueError: there is no query, or one without a label.
    """
    sums = np.array([_of_query(caption.lower(), of_query) for caption, of_query in zip(captions, labels, strict=True)])
    counts = np.array([len(of_query) for of_query in labels], float)
    columns = [sums / (counts.mean() if name in PER_LABEL else 1.0) for name in REAL]
    values = np.stack([column[:, i] for i, column in enumerate(columns)], 1)  # (Q, 8), means are the statistics
    return dict(zip(REAL, bootstrap(values, RESAMPLES, seed), strict=True))


def _of_query(caption: str, labels: list[str]) -> list[float]:
    """The summands of one query, in the order of `REAL`; those per label are added up over its labels."""
    shares = [name_share(label, caption) for label in labels]
    return [
        len(caption), any("a" <= c <= "z" for c in caption), any("0" <= c <= "9" for c in caption),
        len(labels), len(set(labels)) < len(labels), sum(brand_of(label) in caption for label in labels),
        sum(shares), sum(share == 1 for share in shares)]


def brand_of(label: str) -> str:
    """A label's first word, in small letters."""
    return label.lower().partition(" ")[0]


def name_share(label: str, caption: str) -> float:
    """Share of the characters of a label after its brand that stand somewhere in a caption of small letters."""
    name = label.lower().partition(" ")[2].replace(" ", "")
    return sum(character in caption for character in name) / max(len(name), 1)
