"""Descriptions published with an encoder: a model card, and a STAC item with the MLM extension."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geokr.encoder import creation_settings, is_vgg
from geokr.landcover.legend import KNOWLEDGE, read_toml
from geokr.pretraining.checkpoint import Checkpoint
from geokr.pretraining.facts import LABELS_JOINED
from geokr.pretraining.objectives import choose
from geokr.storage.files import in_bucket

MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
"""Schema of the STAC extension for machine learning models that `make_stac_item` follows."""

NUMBERS = {
    "val_kl": r"KL(A \|\| p), nats",
    "val_kl_mean_baseline": "the same, if the mean label of the training tiles is predicted",
    "val_top1": "share of tiles with the right largest class",
    "val_knn_top1": "the same, predicted by the most similar training tiles",
    "val_mae": "absolute error of a share, mean over classes",
}
"""Keys of metrics.json that a card shows -> their meaning, over the held-out tiles."""


def public_name(dataset: str) -> str:
    """The name of a data set to publish: its address in a bucket, or the name of its local directory."""
    return dataset if in_bucket(dataset) else Path(dataset).absolute().name


def format_model_card(checkpoint: Checkpoint, features: int, metrics: Mapping[str, Any]) -> str:
    """The model card: Markdown with a YAML header for model hubs. metrics: as in metrics.json, or empty."""
    config, facts = checkpoint.config, checkpoint.facts
    bands = ", ".join(config["bands"])
    rows = [
        f"| {band} | {low:g} | {high:g} | {mean:.6f} | {std:.6f} |"
        for band, low, high, mean, std in zip(
            config["bands"], facts["low_pixel"], facts["high_pixel"], checkpoint.mean, checkpoint.std, strict=True
        )
    ]
    shares = [
        f"| {name} | {100 * share:.1f} % |" + (f" {metrics['val_mae_of'][name]:.4f} |" if metrics else " |")
        for name, share in zip(facts["classes"], facts["mean_label"], strict=True)
    ]
    numbers = [f"| {meaning} | {metrics[name]:.4f} |" for name, meaning in NUMBERS.items() if name in metrics]
    objective = config["objective"]
    chosen = choose(objective)
    loss = chosen.formula.format(**config)
    settings = creation_settings(config["model"], len(config["bands"]), config["image_size"])
    creation = ", ".join([f'"{config["model"]}"', *(f"{name}={value}" for name, value in settings.items())])
    removal = "encoder.pre_logits = torch.nn.Identity()\n" if is_vgg(config["model"]) else ""
    return f"""---
library_name: timm
tags: [remote-sensing, land-cover, image-feature-extraction]
---

# {config["model"]}, pre-trained on satellite images

An encoder of satellite images: {bands} in, {features} features out. It was pre-trained by GeoKR to {chosen.task}

```python
import timm
{"import torch" + chr(10) if removal else ""}from safetensors.torch import load_file

encoder = timm.create_model({creation})
{removal}encoder.load_state_dict(load_file("encoder.safetensors"))
```

The input is (unit - mean) / std, where unit = (pixels - low) / (high - low), clipped to 0..1, of {facts["pixel_type"]}
pixels ({describe_units(facts)}), with images of {config["image_size"]} px in training:

| band | low | high | mean | std |
|---|---|---|---|---|
{chr(10).join(rows)}

## Data

{facts["training_tiles"]} training tiles and {facts["held_out_tiles"]} held out by place, from
{describe_datasets(checkpoint)}, labelled with `{facts["labels"]}`.{describe_extent(facts)}

| class | mean share in training | absolute error of held-out shares |
|---|---|---|
{chr(10).join(shares)}

## Training

Objective `{objective}`: {loss}. {checkpoint.step} steps of {config["batch"]} tiles with {config["optimiser"]}. The
encoder started from {checkpoint.start}.{describe_share(checkpoint.end_share)}

| held-out tiles | |
|---|---|
{chr(10).join(numbers) or "| not validated at this step | |"}

## Licences

{chr(10).join(f"- {line}" for line in list_licences(facts["labels"]))}
"""


def describe_share(end_share: float) -> str:
    if end_share == 1:
        return ""
    return (
        f" Its weights are {end_share:g} of those at the end and {1 - end_share:g} of those at the start; the numbers "
        "below are of the end."
    )


def describe_extent(facts: Mapping[str, Any]) -> str:
    """Describe in one sentence where and when the tiles were acquired, as far as known."""
    parts = []
    if facts["bounds"]:
        west, south, east, north = facts["bounds"]
        parts.append(f"within {west:.2f} to {east:.2f} E and {south:.2f} to {north:.2f} N")
    if facts["acquired"]:
        parts.append("between {} and {}".format(*(time[:10] for time in facts["acquired"])))
    return f" Acquired {' '.join(parts)}." if parts else ""


def describe_pixels(facts: Mapping[str, Any]) -> str:
    """Describe the pixels that the encoder takes, in one sentence."""
    if facts["pixel_type"] == "uint8":
        return "8-bit pixels, stretched per scene like the tiles of the data set."
    pairs = zip(facts["low_pixel"], facts["high_pixel"], strict=True)
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in pairs)
    return f"16-bit pixels of the data set, {describe_units(facts)}, clipped band by band to {ranges}."


def describe_units(facts: Mapping[str, Any]) -> str:
    """What a pixel stands for, and in which steps."""
    words = [facts["quantity"]]
    if facts["scale_factor"] != 1:
        words.append(f"in steps of {facts['scale_factor']:g}")
    if facts["add_offset"]:
        words.append(f"above {facts['add_offset']:g}")
    return " ".join(words)


def describe_datasets(checkpoint: Checkpoint) -> str:
    """The data sets of a run, with the number of training tiles of each if there are several."""
    names = [f"`{public_name(dataset)}`" for dataset in checkpoint.datasets]
    if len(names) == 1:
        return f"the data set {names[0]}"
    counts = checkpoint.facts["tiles_by_dataset"]
    return "the data sets " + ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))


def list_licences(labels: str) -> list[str]:
    """List the licences of everything that went into an encoder, one line each. labels: see DataFacts."""
    maps = []
    for name in labels.split(LABELS_JOINED):
        path = KNOWLEDGE / "products" / f"{name.rpartition('_')[0]}.toml"
        product = read_toml(path) if path.is_file() else {}
        title, licence = product.get("title", name), product.get("licence", "not stated; ask the owner of the product")
        maps.append(f"Land cover: {title}: {licence}.")
    return [
        *maps,
        "Images: the rights remain with the owner of the satellite images; the owner's terms apply to derived works.",
        "Code: GeoKR, Apache-2.0.",
        "These weights: no licence unless their author states one.",
    ]


def make_stac_item(
    checkpoint: Checkpoint, features: int, parameters: int, files: Mapping[str, int], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe the encoder as a STAC item with the MLM extension.

    features: width of the encoder's output. parameters: number of parameters of the encoder. files: name -> size in
    bytes. metrics: as in metrics.json, or empty. The item has the extent and the dates of the tiles. If the extent is
    unknown, it is left empty; if the dates are unknown, the item has the year of the label set, or 1970.
    """
    config, facts = checkpoint.config, checkpoint.facts
    bands = list(config["bands"])
    bounds = list(facts["bounds"]) if facts["bounds"] else None
    year = facts["labels"].rpartition("_")[2]
    first, last = facts["acquired"] or [f"{year if year.isdigit() else 1970}-01-01T00:00:00"] * 2
    properties = {
        "datetime": None,
        "start_datetime": f"{first}Z",
        "end_datetime": f"{last}Z",
        "title": f"{config['model']}, pre-trained on satellite images",
        "mlm:name": f"geokr-{config['model']}",
        "mlm:architecture": config["model"],
        "mlm:tasks": ["similarity-search"],
        "mlm:framework": "pytorch",
        "mlm:total_parameters": parameters,
        "mlm:pretrained": True,
        "mlm:pretrained_source": ", ".join(map(public_name, checkpoint.datasets)),
        "mlm:batch_size_suggestion": config["batch"],
        "mlm:accelerator": None,
        "mlm:input": [
            {
                "name": "image",
                "bands": bands,
                "input": {
                    "shape": [-1, len(bands), config["image_size"], config["image_size"]],
                    "dim_order": ["batch", "bands", "height", "width"],
                    "data_type": "float32",
                },
                "description": describe_pixels(facts),
                "value_scaling": [
                    {"type": "z-score", "mean": low + (high - low) * mean, "stddev": (high - low) * std}
                    for low, high, mean, std in zip(
                        facts["low_pixel"], facts["high_pixel"], checkpoint.mean, checkpoint.std, strict=True
                    )
                ],
                "resize_type": None,
                "pre_processing_function": None,
            }
        ],
        "mlm:output": [
            {
                "name": "features",
                "tasks": ["similarity-search"],
                "result": {"shape": [-1, features], "dim_order": ["batch", "feature"], "data_type": "float32"},
                "description": "Features of the encoder, without the head that predicts land-cover shares.",
                "classification:classes": [],
                "post_processing_function": None,
            }
        ],
        "mlm:hyperparameters": {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
            "classes": list(facts["classes"]),
            "step": checkpoint.step,
            **{f"geokr:{name}": metrics[name] for name in NUMBERS if name in metrics},
        },
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM],
        "id": f"geokr-{config['model']}-{facts['labels']}-{checkpoint.step}",
        "geometry": None if bounds is None else {"type": "Polygon", "coordinates": [bounding_ring(bounds)]},
        **({} if bounds is None else {"bbox": bounds}),
        "properties": properties,
        "links": [],
        "assets": {name.replace(".", "-"): model_asset(name, size) for name, size in files.items()},
    }


def bounding_ring(bounds: list[float]) -> list[list[float]]:
    """The outline of the bounds west, south, east, north: counterclockwise and closed."""
    west, south, east, north = bounds
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def model_asset(name: str, size: int) -> dict[str, Any]:
    """Describe a file of the model, stored next to the item, as a STAC asset. size: bytes."""
    media_type, artifact = {
        "safetensors": ("application/octet-stream; framework=pytorch", "safetensors.torch.save_file"),
        "pt2": ("application/octet-stream; framework=pytorch", "torch.export.save"),
        "ckpt": ("application/octet-stream; framework=pytorch", "torch.save"),
        "onnx": ("application/octet-stream; framework=onnx", "torch.onnx.export"),
    }[name.rpartition(".")[2]]
    return {
        "href": f"./{name}",
        "title": name,
        "type": media_type,
        "roles": ["mlm:model", "data"],
        "mlm:artifact_type": artifact,
        "mlm:memory_size": size,
    }


def to_json(value: Mapping[str, Any]) -> str:
    """Format plain values as JSON. NaN and infinity, which JSON does not have, become null."""

    def replace_non_finite(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: replace_non_finite(inner) for key, inner in part.items()}
        if isinstance(part, list | tuple):
            return [replace_non_finite(inner) for inner in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(replace_non_finite(value), indent=2, allow_nan=False) + "\n"
