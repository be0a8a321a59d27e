"""What labels say: of the drawn world and of the published lists."""

from pathlib import Path

import numpy as np
import pytest

from capture_lib.catalog.labels import Named, parse_label
from capture_lib.catalog.lists import find_lists, read_list
from capture_lib.world import BRANDS, SIZES, products_of


def test_labels_of_the_world_say_brand_kind_and_product():
    """Read from the text alone, it is what the world knows of all its products."""
    products, kinds = products_of(SIZES["full"]), {}
    for product in products:
        named = parse_label(product.label)
        assert named.brand == BRANDS[product.brand][0]
        assert named.product + product.variant.name == product.label
        kinds.setdefault(product.kind, set()).add(named.kind)
    assert all(len(found) == 1 for found in kinds.values())
    assert len(set.union(*kinds.values())) == len(kinds) and "" not in set.union(*kinds.values())


@pytest.mark.parametrize(("label", "brand", "kind", "product"), [
    ("Ovelune 无花果润唇膏茉莉", "Ovelune", "lip balm", "Ovelune 无花果润唇膏"),  # not 唇膏, a lipstick
    ("Ovelune 水漾精华液", "Ovelune", "serum", "Ovelune 水漾精华液"),  # not the 水 before
    ("Ovelune  水漾面霜 50ml ", "Ovelune", "cream", "Ovelune 水漾面霜"),
    ("Oat-Milk", "", "", "Oat-Milk"), ("面霜", "", "cream", "面霜"), ("kind 3", "kind", "", "kind 3"),
    ("", "", "", ""),
])
def test_what_a_label_does_not_say_is_unknown(label, brand, kind, product):
    assert parse_label(label) == Named(brand, kind, product)


def test_most_published_labels_say_brand_and_kind(shared: Path):
    lists = find_lists(shared / "product1m")
    labels = {label for file in lists.values() for named in read_list(file)["labels"] for label in named}
    found = [parse_label(label) for label in labels]
    assert len(labels) == 392 and len({named.brand for named in found}) == 40  # as counted in the published lists
    assert np.mean([named.kind != "" for named in found]) > 0.9
