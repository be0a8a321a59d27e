"""Search among a million vectors, in miniature: what the record holds, against NumPy."""

import json

import bench_million as million
import numpy as np


def test_the_record_of_two_thousand_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(million, "QUERIES", 100)
    million.main(["--count", "2000", "--out", str(tmp_path / "million.json")])
    record = json.loads((tmp_path / "million.json").read_text())
    exact, *curve = record["curve"]
    assert exact["index"] == "Flat" and exact["recall@10"] == 1 and exact["probes"] is None
    assert record["lists"] == 128 and {row["index"] for row in curve} == {"IVF128,Flat", "IVF128,SQ8"}
    whole = [row for row in curve if row["index"] == "IVF128,Flat"]
    recalls = [row["recall@10"] for row in whole]
    assert recalls == sorted(recalls) and recalls[0] < 1 and recalls[-1] == 1  # 128 of 128 lists: exact again
    assert all(row["queries_per_s"] > 0 and row["ms_alone"] > 0 for row in record["curve"])
    assert {name: index["bytes"] for name, index in record["indexes"].items()} == {
        "Flat": 2000 * 1024, "IVF128,Flat": 2000 * 1032 + 128 * 1024, "IVF128,SQ8": 2000 * 264 + 128 * 1024}
    assert {"commit", "versions", "hardware", "max_memory_bytes"} <= record.keys()

    # the same draws, searched by hand
    rng = np.random.default_rng(0)
    products = million.draw_products(2000, rng)
    shown = np.arange(2000) % len(products)
    gallery = million.draw_photos(products, shown, rng)
    asked = rng.integers(len(products), size=100)
    found = np.argsort(-million.draw_photos(products, asked, rng) @ gallery.T, 1, kind="stable")[:, :10]
    assert abs((shown[found] == asked[:, None]).mean() - exact["right@10"]) < 1e-6


def test_vectors_are_clustered_as_it_is_said():
    rng = np.random.default_rng(1)
    products = million.draw_products(4000, rng)
    shown = np.arange(4000) % len(products)
    gallery = million.draw_photos(products, shown, rng)
    assert np.allclose(np.linalg.norm(gallery, axis=1), 1, atol=1e-5)
    cosines = gallery @ gallery.T
    same = shown[:, None] == shown
    brand = shown // million.PRODUCTS
    other = brand[:, None] != brand
    other_product = ~same & ~other
    np.fill_diagonal(same, False)
    for pairs, cosine in ((same, 0.68), (other_product, 0.33), (other, 0.01)):
        assert abs(cosines[pairs].mean() - cosine) < 0.1
