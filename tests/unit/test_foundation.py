"""An image-text model beside ours: vectors against a naive forward, methods where they are possible, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from drawn import TINY, draw, make_catalog, refused
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from capture_lib.experiments import comparison, evaluation, stages
from capture_lib.experiments.plan import tasks_of
from capture_lib.experiments.run import Run
from capture_lib.experiments.search import open_searcher
from capture_lib.explorer.answers import State
from capture_lib.explorer.view import open_explorer
from capture_lib.profiles import Profile
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.report import site
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import LEVELS
from capture_lib.retrieval.foundation import ImageText, cut

MARGIN = 0.1
METHODS = {"foundation-image", "foundation-text", "foundation-fusion"}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789色一丁丂七丄丅丆"
CAPTIONS = ["kind0 色一 LOT1", "kind1", "", "kind2 色丂 lot2 kind2 色丂 lot2 kind2 色丂", "--"]


def save_clip(folder: Path) -> None:
    """Write a tiny CLIP, of random weights, as transformers does."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer({name: i for i, name in enumerate(names)}, [], model_max_length=77)
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1}
    config = transformers.CLIPConfig(
        text_config=TOWER | {"vocab_size": len(names), "max_position_embeddings": 20} | ends,
        vision_config=TOWER | {"image_size": 16, "patch_size": 8}, projection_dim=12)
    reader = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    save(folder, transformers.CLIPModel(config), transformers.CLIPProcessor(reader, tokenizer))


def save_chinese_clip(folder: Path) -> None:
    """Write a tiny Chinese-CLIP."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = transformers.BertTokenizer({name: i for i, name in enumerate(names)}, model_max_length=512)
    config = transformers.ChineseCLIPConfig(
        text_config=TOWER | {"vocab_size": len(names), "max_position_embeddings": 24},
        vision_config=TOWER | {"image_size": 16, "patch_size": 8}, projection_dim=12)
    reader = transformers.ChineseCLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    save(folder, transformers.ChineseCLIPModel(config), transformers.ChineseCLIPProcessor(reader, tokenizer))


def save_siglip(folder: Path) -> None:
    """Write a tiny SigLIP; its own tokenizer wants sentencepiece, so this one reads letter by letter."""
    save(folder, transformers.SiglipModel(siglip_config(transformers.SiglipConfig, image_size=16)),
         transformers.SiglipProcessor(transformers.SiglipImageProcessor(size={"height": 16, "width": 16}), by_letter()))


def save_siglip2(folder: Path) -> None:
    """Write a tiny SigLIP 2 of the kind that keeps the shape of a photo."""
    reader = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=6)
    save(folder, transformers.Siglip2Model(siglip_config(transformers.Siglip2Config, num_patches=4)),
         transformers.Siglip2Processor(reader, by_letter()))


def siglip_config(kind: type, **sizes: int) -> "transformers.PretrainedConfig":
    text = TOWER | {"vocab_size": len(LETTERS) + 5, "max_position_embeddings": 10, "projection_size": 16}
    return kind(text_config=text, vision_config=TOWER | {"patch_size": 8} | sizes)


def by_letter() -> "transformers.PreTrainedTokenizerFast":
    names = ["<pad>", "</s>", "<unk>", "<bos>", "<mask>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def save(folder: Path, model: torch.nn.Module, processor: object) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # as they come, all inputs look alike
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


SAVED = {"clip": save_clip, "chinese_clip": save_chinese_clip, "siglip": save_siglip, "siglip2": save_siglip2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    for kind, write in SAVED.items():
        write(place / kind)
    return {kind: place / kind for kind in SAVED}


# ---- vectors


@pytest.mark.parametrize("kind", SAVED)
def test_vectors_in_batches_are_those_of_a_forward_of_each(folders, kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("capture_lib.retrieval.foundation.BATCH", 2)  # of several lengths and photos
    model = ImageText(str(folders[kind]), MARGIN)
    items = []
    for number in range(3):
        photo, boxes = draw([2 * number, 2 * number + 1], 96, 120)
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
        items += [(tmp_path / f"{number}.png", box / [120, 96, 120, 96]) for box in boxes]
    found = model.images(items, workers=int(kind == "clip"))
    raw = transformers.AutoModel.from_pretrained(folders[kind])
    processor = transformers.AutoProcessor.from_pretrained(folders[kind])
    with torch.inference_mode():
        for vector, (path, box) in zip(found, items, strict=True):
            crop = Image.fromarray(cut(np.asarray(Image.open(path)), box, MARGIN))
            inputs = processor.image_processor(images=[crop], return_tensors="pt")
            pooled = raw.vision_model(**inputs).pooler_output
            expected = pooled if "siglip" in kind else raw.visual_projection(pooled)
            assert vector == pytest.approx(expected[0].numpy(), abs=1e-5)
    assert found.dtype == np.float32 and len(np.unique(found.round(3), axis=0)) == len(items)


@pytest.mark.parametrize("kind", SAVED)
def test_captions_are_read_as_the_model_learned_to(folders, kind: str, monkeypatch):
    monkeypatch.setattr("capture_lib.retrieval.foundation.BATCH", 2)
    found = ImageText(str(folders[kind]), MARGIN).texts(CAPTIONS)
    raw = transformers.AutoModel.from_pretrained(folders[kind])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    with torch.inference_mode():
        for vector, caption in zip(found, CAPTIONS, strict=True):
            if caption in ("", "--"):  # says nothing
                assert not vector.any()
                continue
            if "siglip" in kind:  # lower case, cut or filled to 10 tokens, and padding is read like any token
                ids = tokenizer(caption.lower())["input_ids"]
                ids = [*ids[:9], 1] if len(ids) > 10 else ids + [0] * (10 - len(ids))
                expected = raw.text_model(torch.tensor([ids])).pooler_output
            else:  # alone, so without padding
                ids = tokenizer(caption, truncation=True, max_length={"clip": 20, "chinese_clip": 24}[kind],
                                return_tensors="pt")
                output = raw.text_model(**ids)
                pooled = output.pooler_output if kind == "clip" else output.last_hidden_state[:, 0]
                expected = raw.text_projection(pooled)
            assert vector == pytest.approx(expected[0].numpy(), abs=1e-5)


def test_a_crop_is_the_widened_box_in_a_white_square():
    photo = np.arange(32 * 16 * 3, dtype=np.uint8).reshape(32, 16, 3)
    crop = cut(photo, np.float32([0.25, 0.125, 0.5, 0.875]), margin=0.5)  # columns 4 to 8, rows 4 to 28
    assert crop.shape == (32, 32, 3)  # by 6 higher on both sides: it ends where the photo does
    assert np.array_equal(crop[:, :6], photo[:, 3:9]) and (crop[:, 6:] == 255).all()
    assert cut(photo, np.float32([0.33, 0.5, 0.34, 0.501]), margin=0).shape == (1, 1, 3)


# ---- methods


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("line")
    catalog = make_catalog(place / "shop", 40, 16, 8, 8)
    return Run(beside(str(folders["clip"])), catalog, place / "report", 0)


def beside(embedder: str) -> Profile:
    """The profile with an image-text model."""
    retrieval = replace(TINY.retrieval, embedder=embedder)
    return replace(TINY, parts=f"embedder={embedder}" * bool(embedder), retrieval=retrieval,
                   instances=InstanceSettings(min_score=0.0))


def test_its_methods_stand_beside_ours_where_the_profile_names_it(run: Run, monkeypatch, capsys):
    chosen = comparison.choices(run)
    assert set(chosen) >= METHODS and len(chosen["foundation-fusion"]["tried"]) == 5
    assert len(chosen["capture-beside-foundation/instance"]["tried"]) == 4
    results = comparison.Results({}, {}, {})
    comparison.collect(comparison.untrained(run), results, " + captions")  # which teach it nothing
    assert set(results.scores) == set(results.boxes) == {"image-only + captions", "late-fusion + captions"}
    assert run.taught().place("foundation") == run.place("foundation")
    scores = pd.read_parquet(comparison.untrained(run) / "scores.parquet")
    boxes = pd.read_parquet(comparison.untrained(run) / "boxes.parquet")
    for table in (scores, boxes):
        assert METHODS <= set(table.index.get_level_values("method"))

    # the vectors are those of each instance's crop and of its caption, made once
    monkeypatch.setattr(ImageText, "__init__", None)
    sets = evaluation.embedded(run)
    monkeypatch.undo()
    model = ImageText(run.profile.retrieval.embedder, run.profile.encoder.margin)
    for split, samples in sets.items():
        paths = [run.catalog.photos[samples.ids[owner]] for owner in samples.owners]
        items = list(zip(paths, samples.boxes, strict=True))
        assert samples.instance["foundation_image"] == pytest.approx(model.images(items, 0), abs=1e-5)
        captions = list(stages.samples(run, split)["caption"])
        assert samples.image["foundation_text"] == pytest.approx(model.texts(captions), abs=1e-5)
        assert np.array_equal(samples.instance["foundation_text"], samples.image["foundation_text"][samples.owners])
    for name in METHODS:
        level, representation = ranking.METHODS[name].level, chosen[name]["representation"]
        ranked = ranking.rank(sets["test"], sets["gallery"], level, representation)
        expected = ranking.score(ranked, sets["test"], sets["gallery"])
        pd.testing.assert_frame_equal(scores.loc[name], expected)


def test_an_explorer_and_a_search_answer_by_it(run: Run):
    found = open_searcher(run, LEVELS).search(run.catalog.photos["test-1"], "kind1", method="foundation-fusion")
    assert found.how.startswith("pretrained image-text model, late fusion, ") and len(found.hits[0]) == 10
    both = open_searcher(run).search(run.catalog.photos["test-1"], "kind1", method="capture-beside-foundation/instance")
    assert both.representation in ranking.BESIDE_FOUNDATION and len(both.hits[0]) == 10
    explorer = open_explorer(run)
    sets = evaluation.embedded(run)
    for name in METHODS:
        level = ranking.METHODS[name].level
        state = explorer.settle(State(query=3, model=name, level=level))
        expected = ranking.rank(sets["test"], sets["gallery"], level, explorer.choices[name])[3]
        assert explorer.ranking(state).scores == pytest.approx(expected.scores, abs=1e-4)
    assert not len(explorer.ranking(replace(state, model="foundation-text", level="image", worded=False)).rows)


def test_without_it_nothing_of_it_is_there(run: Run):
    plain = replace(run, profile=beside(""))
    assert plain.stages != run.stages and not [name for name in tasks_of(plain) if "image-text" in name]
    sets = evaluation.embed(run, None, stages.caption_words(run))
    evaluation.add_foundation(plain, sets)
    ours = {"image-only", "text-only", "late-fusion"}
    assert set(ranking.possible(ranking.METHODS, sets["gallery"])) == ours
    evaluation.add_foundation(run, sets)
    assert set(ranking.possible(ranking.METHODS, sets["gallery"])) == ours | METHODS
    assert not plain.stages.exists()


def test_without_captions_images_alone_are_compared(folders, tmp_path: Path):
    catalog = make_catalog(tmp_path / "shop", 16, 8, 0, 2, captions=False)
    mute = Run(beside(str(folders["siglip"])), catalog, tmp_path / "report", 0)
    assert set(comparison.choices(mute)) == {"image-only", "foundation-image"}


def test_other_weights_in_the_same_folder_are_embedded_anew(folders, run: Run, capsys):
    file = folders["clip"] / "model.safetensors"
    before = np.load(evaluation.foundation_folder(run) / "test" / "images.npy")
    content = file.read_bytes()
    save_file({name: -value for name, value in load_file(file).items()}, file, {"format": "pt"})
    capsys.readouterr()
    assert not np.allclose(np.load(evaluation.foundation_folder(run) / "test" / "images.npy"), before)
    assert "foundation: made anew, because settings.weights" in capsys.readouterr().out
    file.write_bytes(content)


def test_a_run_embeds_by_it_beside_the_training(run: Run):
    tasks = tasks_of(run)
    assert tasks["image-text vectors"].needs == ("regions",)
    for mark in ("", " + captions"):
        assert "image-text vectors" in tasks[f"embeddings{mark}"].needs
        assert "image-text vectors" in tasks[f"baselines{mark}"].needs
    done = set()
    for name, task in tasks.items():
        assert done.issuperset(task.needs), name
        done.add(name)


def test_the_report_groups_them():
    groups = site.grouped(dict.fromkeys(("image-only", *sorted(METHODS), "capture/instance"), {}))
    assert [set(names) for names in groups.values() if names] == [{"image-only"}, METHODS, {"capture/instance"}]
    assert site.in_words("foundation-image") == "Pretrained image-text model, image alone"


# ---- refusals


def test_what_is_no_image_text_model_is_one_line(folders, tmp_path: Path, monkeypatch):
    def model(folder: Path) -> None:
        ImageText(str(folder), MARGIN)

    def offline(*_, **__):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused(lambda: model("somebody/clip"), "somebody/clip", "neither a folder nor", "OSError")
    (tmp_path / "empty").mkdir()
    refused(lambda: model(tmp_path / "empty"), "empty", "model_type", "config.json")
    transformers.BertModel(transformers.BertConfig(vocab_size=9, **TOWER)).save_pretrained(tmp_path / "bert")
    refused(lambda: model(tmp_path / "bert"), "bert: a BertModel with a BertTokenizer does not describe both")
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **TOWER))
    save(tmp_path / "vit", vit, transformers.ViTImageProcessor())
    refused(lambda: model(tmp_path / "vit"), "vit: a ViTModel with a ViTImageProcessor does not describe both")


@pytest.mark.parametrize("change, expected", [
    (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "model.safetensors"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"), "cannot read it"),
    (lambda folder: (folder / "processor_config.json").unlink(), "cannot read it"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer has 2 tokens, its model 514"),
    (lambda folder: shorten(folder / "model.safetensors"), "missing parameter"),
    (lambda folder: edit(folder / "config.json", model_type="new", auto_map={"AutoModel": "evil.Model"}), "cannot"),
])
def test_a_folder_that_lacks_something_is_one_line(tmp_path: Path, change, expected: str):
    save_clip(tmp_path / "clip")
    (tmp_path / "clip" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(tmp_path / "clip")
    refused(lambda: ImageText(str(tmp_path / "clip"), MARGIN), str(tmp_path / "clip"), expected)
    assert not (tmp_path / "ran").exists()


def shorten(weights: Path) -> None:
    """Take one tensor out of a file."""
    tensors = load_file(weights)
    del tensors["visual_projection.weight"]
    save_file(tensors, weights, {"format": "pt"})


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_name_is_fetched_without_code_and_pickles(folders, monkeypatch):
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folders["clip"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert ImageText("somebody/clip", MARGIN).texts(["kind"]).shape == (1, 12)
    assert asked == [("somebody/clip", ["*.json", "*.txt", "*.model", "model*.safetensors"])]
