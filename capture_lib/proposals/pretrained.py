"""Image models of timm with weights that others trained: by name, which fetches them, or from a folder."""
import difflib
import json
from pathlib import Path

import torch
from torch import nn

from capture_lib.utils import InputError


def read_config(folder: Path) -> dict:
    """Return the config.json of a folder, {} where there is none."""
    file = folder / "config.json"
    try:
        return dict(json.loads(file.read_bytes())) if file.exists() else {}
    except (OSError, ValueError, TypeError):
        raise InputError(f"{file}: not a JSON object; copy the folder again") from None


def kind_of(source: str) -> str:
    """Return whose model a name or a folder stands for: "timm" or "transformers"; InputError: no such folder."""
    if Path(source).is_dir():
        return "transformers" if "model_type" in read_config(Path(source)) else "timm"
    if Path(source).exists() or source.startswith((".", "/", "~")):
        raise InputError(f"{source}: no such folder; name one with a model's config.json and model.safetensors")
    return "transformers" if "/" in source and not source.startswith(("timm/", "hf-hub:")) else "timm"


def open_model(source: str) -> nn.Module:
    """Return a timm model, in evaluation mode, that turns photos into the vectors (B, F) of its classifier's input.

    InputError: the name is unknown, the hub out of reach, or the folder holds something else.
    """
    import timm  # slow to import
    if kind_of(source) == "transformers":
        raise InputError(f"{source}: a model of transformers, or no folder; name one of timm, such as convnext_tiny")
    if Path(source).is_dir():
        name, options = in_folder(Path(source))
        advice = "its weights are damaged, or another model's; copy the folder again"
    else:
        name, options = source.removeprefix("timm/"), {}
        known = {*timm.list_models(pretrained=True, include_tags=False), *timm.list_pretrained()}
        if not name.startswith("hf-hub:") and name not in known:
            near = ", ".join(difflib.get_close_matches(name, sorted(known), 4)) or "all of timm.list_pretrained()"
            raise InputError(f"{source}: timm has no such weights, nor is it a folder; near are {near}")
        advice = "without the hub, name a folder with the model's config.json and model.safetensors"
    try:
        model = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # of the hub, of safetensors, of torch …
        cause = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputError(f"{source}: cannot be opened ({cause}); {advice}") from None
    model.reset_classifier(0)
    return model.eval()


def in_folder(folder: Path) -> tuple[str, dict]:
    """Return how timm creates a folder's model: from its layout, config.json and weights, or by the folder's name."""
    import timm
    config = read_config(folder)
    name = config.get("architecture", folder.resolve().name)
    files = [file for suffix in ("safetensors", "pth", "bin") for file in sorted(folder.glob(f"*.{suffix}"))]
    if not (isinstance(name, str) and timm.is_model(name) and files):
        raise InputError(f"{folder}: holds no image model of timm: model.safetensors, and a config.json whose "
                         "\"architecture\" timm knows")
    if config:
        return f"local-dir:{folder}", {}
    try:
        weights = timm.models.load_state_dict(str(files[0]))  # tensors alone, of any file
    except Exception:
        raise InputError(f"{files[0]}: damaged, or it holds more than tensors; copy it again") from None
    means = [value for key, value in weights.items() if key.endswith("running_mean")]
    if means and not any(map(torch.any, means)):  # folded, as converters from TensorFlow do: it pads and scales so
        scale = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return name, {"pad_type": "same", "pretrained_cfg_overlay": {"state_dict": weights, **scale}}
    return name, {"pretrained_cfg_overlay": {"state_dict": weights}}


def save_model(model: nn.Module, folder: Path) -> None:
    """Write a model in timm's layout."""
    from timm.models import save_for_hf
    save_for_hf(model.to(memory_format=torch.contiguous_format), folder, safe_serialization=True)


def preprocessing(model: nn.Module) -> tuple:
    """Return the size of a model's photos, (height, width), and what it does to them: (B, 3, H, W) in [0, 1]."""
    from timm.data import resolve_model_data_config
    from torchvision.transforms import Normalize
    config = resolve_model_data_config(model)
    return config["input_size"][1:], Normalize(config["mean"], config["std"])


def map_numbers(model: nn.Module) -> tuple:
    """Return which maps lie at strides 8 and 16 of photos of any size; () of transformers, which lack them."""
    info = getattr(model, "feature_info", [])
    strides = [level["reduction"] for level in getattr(info, "info", info)]
    last = {stride: number for number, stride in enumerate(strides)}
    fixed = model.pretrained_cfg.get("fixed_input_size") or not {8, 16} <= last.keys()
    return () if fixed else (last[8], last[16])
