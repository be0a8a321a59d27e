"""Vectors of captions and of photos; representations against cosines written out."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import TOY, random_store
from embedded import NAMES, gallery_set, query_set
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from capture_lib.proposals.instances import InstanceSettings
from capture_lib.retrieval import embedding
from capture_lib.retrieval.embedding import RetrievalSettings, Words, carry_text, represent, unit, vectors_of
from capture_lib.retrieval.ranking import METHODS
from capture_lib.training import batches, pretrain

INSTANCES = InstanceSettings(min_score=0.0, min_odds=0.0, nms_iou=0.9)  # every region


def test_words_bring_like_captions_together():
    kinds = [f"{brand} {kind}" for brand in ("abc", "品牌") for kind in ("精华液", "口红", "serum")]
    captions = [f"{kind} {n}ml" for kind in kinds for n in range(6)]
    settings = RetrievalSettings(text_dimensions=8)
    words = Words(captions, settings, seed=0)
    vectors = words.vectors(["abc 精华液 3ml", "abc 精华液 4ml", "品牌 serum 2ml", "☂", ""])
    assert vectors.shape == (5, 8) and vectors.dtype == np.float32
    near = unit(vectors)
    assert near[0] @ near[1] > 0.5 > near[0] @ near[2]
    assert not vectors[3:].any()
    assert np.array_equal(Words(captions, settings, seed=0).vectors(captions), words.vectors(captions))


def test_words_are_those_of_scikit_learn_and_come_back_from_a_folder(tmp_path: Path):
    kinds = [f"{brand}  {kind}" for brand in ("Abc", "品牌") for kind in ("精华液", "İ口红", "serum")]
    captions = [f"{kind} {n}ml {n % 3 * kind}" for kind in kinds for n in range(6)]
    words = Words(captions, RetrievalSettings(text_dimensions=8), seed=0)
    tfidf = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    svd = TruncatedSVD(8, random_state=0).fit(tfidf.fit_transform(captions))
    asked = [*captions, "ABC\t\n 精华 精华 精华", "  ", "", "☂"]
    expected = svd.transform(tfidf.transform(asked)).astype(np.float32)
    assert words.vectors(asked) == pytest.approx(expected, abs=1e-7)
    words.save(tmp_path)
    assert np.array_equal(Words.load(tmp_path).vectors(asked), words.vectors(asked))


def test_a_set_comes_back_from_a_folder(tmp_path: Path):
    samples = query_set()
    embedding.save_set(samples, tmp_path / "test")
    table = pd.DataFrame({"sample_id": samples.ids, "labels": samples.labels})
    again = embedding.load_set(table, tmp_path / "test")
    assert (again.ids, again.labels) == (samples.ids, samples.labels)
    assert all(np.array_equal(getattr(again, name), getattr(samples, name)) for name in ("owners", "regions", "boxes"))
    for level in embedding.LEVELS:
        own, stored = samples.vectors(level), again.vectors(level)
        assert own.keys() == stored.keys() and all(np.array_equal(own[name], stored[name]) for name in own)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("captions, expected", [
    (["abc 精华液", "abc 口红"], True), (["cat", "dog", "cat", "dog"], True), (["红色 a1", "蓝色 a2"], True),
    ([], False), (["精华液"], False), (["精华液"] * 90, False), (["精华液!", "精华液 "] * 9, False),  # all the same
    (["-"] * 50, False), (["无"] * 50, False), (["☂"] * 50, False), (["-", "无", "☂", "", "…", "N"] * 9, False),
    (["精华", "口红", "abc"], False),  # no n-gram occurs twice
    (["精华", "精"] * 9, False),
])
def test_whether_captions_carry_text(captions, expected):
    assert carry_text(captions) is expected
    vectors = Words(captions, RetrievalSettings(text_dimensions=8), 0).vectors(["abc 精华液", "☂", ""])
    assert len(vectors) == 3 and vectors.dtype == np.float32 and np.isfinite(vectors).all()
    assert expected or not vectors.any()


@pytest.mark.parametrize("seed", range(60))
def test_captions_of_any_kind_have_vectors(seed):
    """Random captions of few letters and signs: what is fitted, if anything, has a width."""
    rng = np.random.default_rng(seed)
    signs = rng.choice(list("ab精华- ☂。1"), rng.integers(1, 9))
    captions = ["".join(rng.choice(signs, rng.integers(1, 4))) for _ in range(rng.integers(1, 12))]
    vectors = Words(captions, RetrievalSettings(text_dimensions=3), 0).vectors(captions)
    assert vectors.shape[0] == len(captions) and vectors.shape[1] >= 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A table of 7 samples, their pairs and a small random model."""
    table = pd.DataFrame({"sample_id": [f"photo-{i}" for i in (6, 1, 3, 0, 2, 5, 4)],
                          "caption": [f"kind{i} 色 {i}" for i in range(7)],
                          "labels": [[f"label {i}"] for i in range(7)]})
    settings = batches.BatchSettings(text_length=8)
    tokenizer = batches.make_tokenizer(table["caption"], tmp_path_factory.mktemp("tokenizer"))
    pairs = batches.make_pairs(table, random_store(8), tokenizer, settings)
    return table, pairs, pretrain.build_model(replace(TOY, output=12), pairs, seed=0).eval()


def test_embedding_in_batches_is_embedding_one_by_one(world):
    _, pairs, model = world
    chosen, regions = np.array([4, 0, 2, 2, 6]), np.array([0, 2, 3, 1, 0])
    for one in (None, regions):
        found = embedding.embed(model, pairs, chosen, one, batch=2)
        for i, pair in enumerate(chosen):
            with torch.inference_mode():
                alone = model(**pairs.batch(chosen[i:i + 1], None if one is None else one[i:i + 1]))
            alone["region_token"] = alone["region_sequence"][:, 1]
            for name, vectors in found.items():
                assert vectors.shape == (5, 12) and vectors[i] == pytest.approx(alone[name][0].numpy(), abs=1e-5), pair
    assert not np.allclose(found["region_pooled"][2], found["region_pooled"][3])  # two regions of one photo


def test_queries_have_their_instances_and_a_gallery_photo_has_one(world):
    table, pairs, model = world
    words = Words(list(table["caption"]) * 2, RetrievalSettings(text_dimensions=3), 0)
    queries = embedding.embed_samples(table, pairs, model, words, INSTANCES, single=False)
    gallery = embedding.embed_samples(table, pairs, model, words, INSTANCES, single=True)
    assert queries.ids == gallery.ids == list(table["sample_id"]) and queries.labels[2] == ["label 2"]
    assert [(queries.owners == i).sum() for i in range(7)] == [3, 2, 4, 1, 3, 2, 1]
    assert gallery.owners.tolist() == list(range(7)) and not gallery.regions.any()
    assert set(queries.image) == set(NAMES) - {"regions"}
    assert set(queries.instance) == {*NAMES, "region_token"}
    for samples in (queries, gallery):
        for i, (owner, region) in enumerate(zip(samples.owners, samples.regions, strict=True)):
            feature = pairs.store.features[pairs.rows[owner], region].astype(np.float32)
            assert np.array_equal(samples.instance["regions"][i], feature) and feature.any()
            assert np.array_equal(samples.instance["words"][i], samples.image["words"][owner])
            assert np.array_equal(samples.boxes[i], pairs.store.boxes[pairs.rows[owner], region])
        for name, vectors in embedding.embed(model, pairs, samples.owners, samples.regions).items():
            assert np.array_equal(samples.instance[name], vectors)


def test_without_a_model_words_or_a_level_their_vectors_are_missing(world):
    table, pairs, model = world
    bare = embedding.embed_samples(table, pairs, None, None, INSTANCES, single=False)
    assert not bare.image and set(bare.instance) == {"regions"}
    one = embedding.embed_samples(table, pairs, model, None, INSTANCES, single=False, levels=("instance",))
    assert not one.image and set(one.instance) == {*NAMES, "region_token"} - {"words"}


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (n, m) written out."""
    return np.array([[x @ y / np.sqrt((x @ x) * (y @ y)) for y in b] for x in a.astype(float)])


def test_representations_are_the_cosines_that_they_claim():
    a, b = query_set().instance, gallery_set().instance
    both = {name: cosine(a[name], b[name]) for name in (*NAMES, "region_token")}
    contrastive = (both["region_contrastive"] + both["text_contrastive"]) / 2
    expected = {
        "product": cosine(unit(a["region_pooled"]) * unit(a["text_pooled"]),
                          unit(b["region_pooled"]) * unit(b["text_pooled"])),
        "joint": (both["region_pooled"] + both["text_pooled"]) / 2, "contrastive": contrastive,
        "region_token": both["region_token"], "text_pooled": both["text_pooled"], "regions": both["regions"],
        "region_token + contrastive": (both["region_token"] + contrastive) / 2,
        "0.2 regions + 0.8 words": 0.2 * both["regions"] + 0.8 * both["words"],
        "0.5 contrastive + 0.3 regions + 0.2 words": 0.5 * contrastive + 0.3 * both["regions"] + 0.2 * both["words"],
    }
    for name, cosines in expected.items():
        assert represent(a, name) @ represent(b, name).T == pytest.approx(cosines, abs=1e-5), name
    raw = (a["region_pooled"] * a["text_pooled"]) @ (b["region_pooled"] * b["text_pooled"]).T
    assert represent(a, "raw product") @ represent(b, "raw product").T == pytest.approx(raw, abs=1e-5)


def test_every_representation_of_a_method_gives_unit_vectors_but_the_raw_product():
    names = {name for method in METHODS.values() for name in method.representations} - {"raw product"}
    for name in names:
        vectors = represent(query_set().instance, name)
        assert vectors.dtype == np.float32 and np.linalg.norm(vectors, axis=1) == pytest.approx(1)
        assert vectors_of(name) <= query_set().instance.keys()
    assert vectors_of("0.3 product + words") == {"region_pooled", "text_pooled", "words"}


def test_an_instance_looks_the_same_as_a_query_and_as_a_gallery_photo_of_its_own(world):
    """The region of a photo of several, with its caption, gives the vectors of a photo that holds nothing else."""
    table, pairs, model = world
    region = 2
    alone = deepcopy(pairs.store)
    for array in (alone.features, alone.boxes, alone.scores):
        array[:, 0] = array[:, region]
        array[:, 1:] = 0
    alone.counts[:] = 1
    query = embedding.embed(model, pairs, np.array([0]), np.array([region]))
    item = embedding.embed(model, replace(pairs, store=alone), np.array([0]), np.array([0]))
    for name, vectors in query.items():
        assert np.array_equal(vectors, item[name]), name


def test_a_zero_vector_stays_zero_and_finite():
    vectors = {"region_pooled": np.zeros((2, 4)), "text_pooled": np.ones((2, 4))}
    assert not represent(vectors, "product").any()
    assert np.isfinite(represent(vectors, "joint")).all()
