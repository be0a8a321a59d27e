"""Mined pairs: whitening by them; composed queries, their answers, captions and loss; plain and matched compared."""

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import TINY, TOY, TOY_BATCHES, make_catalog, random_pairs, refused

from capture_lib.experiments import beyond as recipes
from capture_lib.experiments import comparison, stages, variants
from capture_lib.experiments import composed as beyond
from capture_lib.experiments.composed import ANCHOR, ITEM, TARGET, ComposedPairs, ComposedSettings
from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import BY_PAPER, COMPOSED, ComparisonSettings
from capture_lib.profiles import PROFILES
from capture_lib.proposals.region_encoder import identity
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval import statistics as intervals
from capture_lib.retrieval import wccn as whitening
from capture_lib.retrieval.embedding import BLENDS, REPRESENTATIONS, EmbeddedSet, read, unit
from capture_lib.retrieval.search import Searcher
from capture_lib.training import pretrain

KINDS = 4
SETTINGS = ComposedSettings(neighbours=5, alike=8, most_parts=3)


def composed(folder: Path, how: ComposedSettings = SETTINGS, count: int = 64) -> ComposedPairs:
    """Pairs of four products, photo i shows product i % 4 alone; region features and captions tell the product."""
    captions = [f"品{chr(0x4E00 + i % KINDS)} kind{i % KINDS} kind{i % KINDS} lot{i % 3}" for i in range(count)]
    pairs = random_pairs(captions, TOY_BATCHES, folder)
    store, rng = pairs.store, np.random.default_rng(0)
    centres = rng.normal(size=(KINDS, store.features.shape[2]))
    features = np.zeros(store.features.shape, np.float16)
    features[:, 0] = centres[np.arange(count) % KINDS] + rng.normal(0, 0.1, (count, centres.shape[1]))
    store = replace(store, features=features, counts=np.ones(count, np.int32), scores=np.ones_like(store.scores))
    found = beyond.composed(replace(pairs, store=store), captions, how, 0)
    assert isinstance(found, ComposedPairs)
    return found


def products(pairs: ComposedPairs, drawn: dict, kind: str) -> np.ndarray:
    """Which product each composed query or answer shows, by its region feature."""
    first = pairs.of_first(np.arange(len(pairs.parts)), "features")
    asked = drawn[kind + "region_features"][:, 1].numpy()
    return ((asked[:, None] - first[None]) ** 2).sum(2).argmin(1) % KINDS


def test_answers_show_the_query_s_product_and_are_not_its_own_photo(tmp_path: Path):
    pairs = composed(tmp_path)
    drawn = pairs.compose(30, np.random.default_rng(1))
    np.testing.assert_array_equal(products(pairs, drawn, ANCHOR), products(pairs, drawn, ITEM))
    asked, answered = (drawn[kind + "region_features"][:, 1] for kind in (ANCHOR, ITEM))
    assert not (asked == answered).all(1).any()
    assert (pairs.near != np.arange(len(pairs.parts))[:, None]).all()


def test_mined_neighbours_are_those_of_a_full_sort(tmp_path: Path):
    pairs = composed(tmp_path)
    alike = pairs.fused @ pairs.fused.T
    np.fill_diagonal(alike, -np.inf)
    expected = -np.sort(-alike, 1)[:, :pairs.near.shape[1]]
    np.testing.assert_allclose(np.take_along_axis(alike, pairs.near, 1), expected, atol=1e-5)


def test_without_neighbours_the_answer_is_the_part_s_own_photo(tmp_path: Path):
    pairs = composed(tmp_path, replace(SETTINGS, neighbours=0))
    drawn = pairs.compose(12, np.random.default_rng(0))
    assert torch.equal(drawn[ANCHOR + "region_features"][:, 1], drawn[ITEM + "region_features"][:, 1])


def test_targets_are_shares_and_the_drawn_answer_has_half(tmp_path: Path):
    pairs = composed(tmp_path)
    drawn = pairs.compose(30, np.random.default_rng(2))
    target, same = drawn[TARGET].numpy(), products(pairs, drawn, ANCHOR)[:, None] == products(pairs, drawn, ITEM)
    np.testing.assert_allclose(target.sum(1), 1, atol=1e-5)
    assert (target.diagonal() >= SETTINGS.drawn).all() and (target >= 0).all()
    assert target[same].sum() > 0.9 * len(target), "what is spread goes to the same product"
    hard = composed(tmp_path, replace(SETTINGS, drawn=1.0)).compose(9, np.random.default_rng(2))
    assert torch.equal(hard[TARGET], torch.eye(9))


def test_a_mixed_caption_has_words_of_its_parts_alone_and_fits(tmp_path: Path):
    pairs = composed(tmp_path)
    pad, start, end = (pairs.special[name] for name in ("[PAD]", "[CLS]", "[SEP]"))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = pairs.group(3, rng)
        text = pairs.mixed(group, rng)
        words = text[text != pad]
        assert len(text) == pairs.tokens.shape[1] and words[0] == start and words[-1] == end
        assert set(words[1:-1]) <= set(pairs.tokens[pairs.parts[group]].ravel())


def test_parts_of_one_query_share_caption_and_global_token(tmp_path: Path):
    pairs = composed(tmp_path)
    drawn = pairs.compose(40, np.random.default_rng(3))
    means, texts = drawn[ANCHOR + "region_features"][:, 0], drawn[ANCHOR + "input_ids"]
    together = (means[:-1] == means[1:]).all(1)
    assert together.any() and (texts[:-1] == texts[1:]).all(1)[together].all()


def test_a_query_has_the_form_that_it_has_at_search_time(tmp_path: Path):
    pairs = composed(tmp_path)
    drawn = pairs.compose(6, np.random.default_rng(0))
    alone = replace(pairs, alone=True).batch(np.arange(6), np.zeros(6, np.int64))
    assert {name: value.shape for name, value in alone.items()} == {
        name: drawn[ANCHOR + name].shape for name in alone}
    whole = pairs.batch(np.arange(6), np.zeros(6, np.int64))
    model = pretrain.build_model(replace(TOY, dropout=0.0), pairs, 0).eval()
    torch.testing.assert_close(beyond.joint(model(**alone)), beyond.joint(model(**whole)))


def test_the_joint_vector_is_the_one_that_retrieval_reads(tmp_path: Path):
    pairs = composed(tmp_path)
    out = pretrain.build_model(TOY, pairs, 0).eval()(**pairs.batch(np.arange(8)))
    vectors = {name: value.detach().numpy() for name, value in out.items()}
    np.testing.assert_allclose(beyond.joint(out).detach(), read(vectors, "joint"), atol=1e-6)


def test_no_loss_of_the_paper_reaches_the_vectors_that_are_read_and_ours_does(tmp_path: Path):
    pairs = composed(tmp_path)
    model = pretrain.build_model(TOY, pairs, 0).eval()
    batch = pairs.masked_batch(np.arange(32), TOY_BATCHES, torch.Generator().manual_seed(0))
    out = model(**{name: batch[name] for name in pretrain.INPUTS})
    for loss in pretrain.pretext_losses(model, batch, out).values():
        for name in ("text_sequence", "region_sequence"):
            grad = torch.autograd.grad(loss, out[name], retain_graph=True, allow_unused=True)[0]
            assert grad is None or not grad[:, 0].any()
    beyond.composed_loss(model, batch, 0.07).backward()
    assert model.text_output.dense.weight.grad.any() and model.region_output.dense.weight.grad.any()


def test_the_loss_is_a_cross_entropy_over_the_answers(tmp_path: Path):
    pairs = composed(tmp_path)
    model = pretrain.build_model(TOY, pairs, 0).eval()
    drawn = pairs.compose(5, np.random.default_rng(0))
    asked, held = (beyond.joint(model(**{name: drawn[kind + name] for name in beyond.INPUTS})).detach().numpy()
                   for kind in (ANCHOR, ITEM))
    expected = 0.0
    for row, target in zip(asked, drawn[TARGET].numpy(), strict=True):
        odds = np.exp(held @ row / 0.1)
        expected -= (target * np.log(odds / odds.sum())).sum() / 5
    assert beyond.composed_loss(model, drawn, 0.1).item() == pytest.approx(expected, abs=1e-4)


def test_the_recipe_learns_and_the_same_seed_draws_the_same(tmp_path: Path):
    pairs = composed(tmp_path)
    settings = pretrain.PretrainSettings(recipe=pretrain.BEYOND, batch=32, epochs=8, learning_rate=3e-3)
    drawn = [next(iter(pretrain.drawn_batches(pairs, TOY_BATCHES, settings, 0))) for _ in range(2)]
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())
    model = pretrain.build_model(replace(TOY, dropout=0.0), pairs, 0)
    history = pretrain.train(model, pairs, TOY_BATCHES, settings, tmp_path, 0)
    assert set(history[0]) == {"mlm", "mrp", "contrastive", beyond.TASK} and len(history) == 16


def test_a_batch_of_queries_is_overfitted(tmp_path: Path):
    pairs = composed(tmp_path)
    model, drawn = pretrain.build_model(replace(TOY, dropout=0.0), pairs, 0), pairs.compose(8, np.random.default_rng(0))
    floor = -torch.xlogy(drawn[TARGET], drawn[TARGET]).sum(1).mean().item()  # the entropy of the target
    optimiser, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for _ in range(80):
        loss = beyond.composed_loss(model, drawn, 0.07)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] - floor < 0.5 * (losses[0] - floor)


def test_no_label_can_be_read():
    source = inspect.getsource(beyond)
    assert not any(f"{quote}{name}" in source for quote in "\"'." for name in ("labels", "products", "box_labels"))
    assert list(inspect.signature(beyond.composed).parameters) == ["pairs", "captions", "how", "seed"]


def test_too_few_photos_of_one_product_leave_the_pairs_as_they_are(tmp_path: Path, capsys):
    pairs = random_pairs([f"词{i}" for i in range(8)], TOY_BATCHES, tmp_path)
    assert beyond.composed(pairs, [f"词{i}" for i in range(8)], SETTINGS, 0) is pairs
    assert "nothing is composed" in capsys.readouterr().out


def test_a_recipe_that_there_is_not_is_refused():
    refused(lambda: pretrain.PretrainSettings(recipe="better"), "recipe", "'better'", "'beyond'")
    assert all(profile.pretrain.recipe == pretrain.PAPER for profile in PROFILES.values())


def test_a_blend_s_cosine_is_the_weighted_mean_of_its_parts():
    rng = np.random.default_rng(0)
    vectors = {name: rng.random((6, 5)) for name in REPRESENTATIONS[BLENDS[0]]}
    for name in BLENDS:
        vectors |= {block: rng.random((6, 5)) for block in REPRESENTATIONS[name]}
        _, representation, share, weight = name.split()
        whole, own, raw = (read(vectors, one) for one in (name, representation, f"fusion {weight}"))
        expected = float(share) * own @ own.T + (1 - float(share)) * raw @ raw.T
        np.testing.assert_allclose(whole @ whole.T, expected, atol=1e-5)


def test_whitening_leaves_differences_alike_in_every_direction():
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(5000, 6)) @ rng.normal(size=(6, 6))
    root = whitening.inverse_root(apart, 0.0)
    np.testing.assert_allclose((apart @ root).T @ (apart @ root) / len(apart), np.eye(6), atol=1e-6)
    np.testing.assert_allclose(root, root.T, atol=1e-8)


def test_matched_pairs_bring_products_together_and_pairs_at_random_do_not():
    rng = np.random.default_rng(1)
    product = np.repeat(np.arange(20), 20)
    centres = np.concatenate([rng.normal(0, 0.3, (20, 8)), np.zeros((20, 8))], 1)  # the other half is noise
    vectors = centres[product] + rng.normal(size=(400, 16)) * np.repeat([0.05, 1.0], 8)
    near = np.stack([rng.choice(np.flatnonzero(product == own), 3) for own in product])
    random = rng.integers(400, size=near.shape)

    def right(mapped: np.ndarray) -> float:
        return identity(mapped, product)[1].mean()

    settings = whitening.WhiteningSettings()
    maps = {name: whitening.learned({"a": vectors}, those, settings)["a"] for name, those in
            {"matched": near, "random": random}.items()}
    figures = {name: right(unit(vectors) @ own) for name, own in maps.items()}
    assert figures["matched"] > 0.9 > right(vectors) + 0.2
    assert figures["random"] < figures["matched"] - 0.2


def test_mapped_sides_have_other_vectors_and_nothing_else_changes():
    rng = np.random.default_rng(2)
    vectors = {"regions": rng.random((5, 4)), "words": rng.random((5, 3))}
    side = EmbeddedSet(["a"], [["x"]], ["c"], np.zeros(5, int), np.zeros(5, int), {"words": vectors["words"][:1]}, vectors)
    maps = {"words": 2 * np.eye(3)}
    after = whitening.mapped(side, maps)
    np.testing.assert_allclose(after.instance["words"], unit(vectors["words"]), atol=1e-6)
    assert after.instance["regions"] is vectors["regions"] and after.ids == side.ids
    both = {"words": np.diag([3.0, 1, 1]), "regions": np.eye(4)}
    assert whitening.mapped(side, both, ("regions",)).instance["words"] is vectors["words"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stages of toy size, on photos of one product each, which a hardly trained detector would not know."""
    folder = tmp_path_factory.mktemp("beyond")
    profile = replace(TINY, comparison=ComparisonSettings(epochs=1, parallel_jobs=0))
    return Run(profile, make_catalog(folder / "shop", train=60, gallery=16, val=8, test=8), folder / "report", 0)


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "find_instances", lambda boxes, scores, settings: [0])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blends to choose from, not thirty-six."""
    monkeypatch.setitem(recipes.OF_MODEL, "blend", retrieval.Method("instance", BLENDS[:2]))
    for name, (kind, method) in recipes.PARTS.items():
        if method.representations == BLENDS:
            monkeypatch.setitem(recipes.PARTS, name, (kind, replace(method, representations=BLENDS[:2])))


def test_ours_is_compared_with_all_that_is_plain_and_with_itself_without_each_part(run: Run, single: None, few: None):
    tries, finals = recipes.compared(run)
    assert [job.name for job, _ in tries] == [f"beyond/{BY_PAPER}", f"beyond/{COMPOSED}"]
    assert [job and job.name for job, _ in finals] == [None, f"beyond/{BY_PAPER}"]
    scores = comparison.gathered([folder for _, folder in finals], comparison.read_scores)
    chosen = comparison.gathered([folder for _, folder in finals], comparison.read_chosen)
    plain = {"late-fusion", "image-only", "text-only", "paper, product", "paper, chosen", "paper, blend"}
    without = {"beyond without CAPTURE", *(f"paper, beyond without {part}" for part in
                                           ("matching", "smoothing", "yielding", "raw vectors"))}
    assert set(chosen) == plain | {f"{name}, matched" for name in plain} | without | {"paper, beyond"}
    for name in plain:  # the same readings, the same merges
        assert set(chosen[name][0]["tried"]) == set(chosen[f"{name}, matched"][0]["tried"])
    merges = {name: chosen[name][0]["merge"] for name in without}
    assert merges == {name: "score" if name.endswith("yielding") else "yielding" for name in without}
    assert [name for name in chosen if chosen[name][0]["smoothed"]] == [
        name for name in chosen if "beyond" in name and name != "paper, beyond without smoothing"]
    found = recipes.results(scores, np.array(["seen", "unseen"] * 4, object))
    figures = {name: np.mean(scores[name][0]["standard", "mAP@10"]) for name in plain}
    assert figures[found["plain"]] == max(figures.values())
    assert found["rival"] != "paper, blend" and found["ours"] == "paper, beyond" and set(found["parts"]) == without
    assert figures[found["rival"]] == max(figures[name] for name in plain - {"paper, blend"})
    own = [scores[name][0]["standard", "mAP@10"] for name in (found["ours"], found["rival"])]
    assert found["gain"]["mean"] == pytest.approx(intervals.paired_difference(*own)["value"])
    assert found["gain_unseen"]["mean"] == pytest.approx(np.mean((own[0] - own[1])[1::2]))
    assert found["groups"]["unseen"]["queries"] == 4
    alike = comparison.read_scores(comparison.plain(run))["late-fusion"]
    pd.testing.assert_frame_equal(scores["late-fusion"][0], alike)
    ways = recipes.tried(run)
    for way, name in {"plain": "late-fusion", "matched": "late-fusion, matched",
                      "matched, smoothed, yielding": "beyond without CAPTURE"}.items():
        assert ways[way]["mAP@10"] == pytest.approx(chosen[name][0]["val"])
    assert {"late interaction, strength 1", "late interaction, strength 4"} <= set(ways)
    cost = recipes.cost(run, finals, 1)
    assert cost["time_ratio"] > 1 and cost["composed_step_ratio"] > 0


def test_without_strength_an_attending_query_has_its_caption_s_words(run: Run, single: None):
    found, words = stages.mined(run, stages.pretrained(run)), stages.caption_words(run)
    parts = recipes.vectors_of_parts(run, found, None, run.profile.batches)
    maps = whitening.learned(parts, found.near, whitening.WhiteningSettings())
    side = recipes.embedded(run, stages.samples(run, "val"), None, run.profile.batches, single=False)
    side = whitening.mapped(side, maps)
    plain, strong = (recipes.attending(side, words, maps, parts, strength).instance["words"] for strength in (0, 4))
    np.testing.assert_allclose(plain, side.instance["words"], atol=1e-5)
    assert not np.allclose(strong, plain, atol=1e-3)
    silent = replace(side, captions=[""] * len(side.captions))
    assert not recipes.attending(silent, words, maps, parts, 4).instance["words"].any()


def test_what_is_judged_is_what_the_parts_say_by_hand(run: Run, single: None, few: None):
    """Ours, from matched vectors: neighbours averaged one by one, hits sorted one by one."""
    scores = comparison.read_scores(recipes.compared(run)[1][1][1])["paper, beyond"]
    chosen = comparison.read_chosen(recipes.compared(run)[1][1][1])["paper, beyond"]
    wanted = replace(run, profile=replace(run.profile, retrieval=replace(run.profile.retrieval, matched=True)))
    sides = stages.embedded(wanted)
    queries, gallery = (read(sides[split].instance, chosen["reading"]) for split in ("test", "gallery"))
    moved = []
    for vector in gallery:
        mean = gallery[np.argsort(-gallery @ vector)[:4]].mean(0)
        moved.append(0.4 * vector + 0.6 * mean / np.linalg.norm(mean))
        moved[-1] /= np.linalg.norm(moved[-1])
    alike = queries @ np.stack(moved).T  # every photo is one instance here: nothing is merged
    labels = np.array([labels[0] for labels in sides["gallery"].labels])
    for row, own, labelled in zip(alike, scores["standard", "Prec@10"], sides["test"].labels, strict=True):
        assert own == pytest.approx(np.isin(labels[np.argsort(-row)[:10]], labelled).mean())


def test_a_profile_may_ask_for_matched_vectors_and_for_the_recipe(run: Run, single: None):
    plain = stages.embedded(run)
    wanted = replace(run, profile=replace(run.profile, retrieval=replace(run.profile.retrieval, matched=True)))
    after = stages.embedded(wanted)
    assert not np.allclose(after["test"].instance["words"], plain["test"].instance["words"])
    assert after["test"].instance["words"].shape == plain["test"].instance["words"].shape
    searcher = Searcher.open(wanted)  # a live search compares the same vectors
    np.testing.assert_allclose(searcher.gallery.instance["words"], after["gallery"].instance["words"], atol=1e-6)
    row = wanted.catalog.split("test")[:1]
    asked = searcher.embed(row, stages.region_store(wanted)[0], single=False)
    np.testing.assert_allclose(asked.instance["regions"], after["test"].instance["regions"][after["test"].owners == 0],
                               atol=1e-5)
    _, tried = stages.choices(wanted, after)
    assert "beyond/instance" in tried and "beyond/instance" not in stages.choices(run, plain)[1]
    profile = replace(run.profile, name="beyond", pretrain=replace(TINY.pretrain, recipe=pretrain.BEYOND))
    assert stages.pretrained(replace(run, profile=profile)).model is not None


def test_without_captions_nothing_is_mined(tmp_path: Path):
    bare = Run(TINY, make_catalog(tmp_path / "shop", 40, 8, 8, 8, captions=False), tmp_path / "report", 0)
    assert recipes.compared(bare) == ([], [])


def test_every_recipe_has_settings_that_exist():
    levels = variants.beyond()
    assert {BY_PAPER, COMPOSED} <= set(levels)
    for level in levels.values():
        replace(pretrain.PretrainSettings(), **level.pretrain)
