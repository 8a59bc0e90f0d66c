"""Export the encoder of a run for use in other software: `geokr export RUN --out FOLDER`.

    encoder = timm.create_model(model, num_classes=0, in_chans=bands)  # img_size=image_size if its size is fixed
    encoder.pre_logits = torch.nn.Identity()  # a VGG alone
    encoder.load_state_dict(safetensors.torch.load_file("FOLDER/encoder.safetensors"))

The input is (unit - mean) / std, where unit = (pixels - low) / (high - low), clipped to 0..1; 8-bit pixels have low 0
and high 255. Model, bands, low, high, mean, std and more are in the file's header, in the model card README.md and in
the STAC item item.json. timm's ResNet and VGG name their weights as torchvision's do, which take the same file.
Optional forms are encoder.onnx and encoder.pt2 (torch.export), which take any number of images of the training size,
and encoder.ckpt, which torchgeo's trainers take as `weights`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geokr.encoder import ENCODER, build_encoder
from geokr.pretraining.card import format_model_card, make_stac_item, public_name, to_json
from geokr.pretraining.checkpoint import BEST, LAST, Checkpoint, load
from geokr.pretraining.start import START, interpolate
from geokr.storage import inputs
from geokr.storage.files import replace_file
from geokr.weights import Header, format_file

FORMS = ("onnx", "pt2", "torchgeo")
"""Forms in addition to the safetensors file with timm's names."""


def export(checkpoint: Checkpoint, out: Path) -> None:
    """Write the encoder of the teacher, or of the student if there is no teacher, with timm's names.

    The header maps strings to strings, with lists as JSON: model, image_size, bands, pixel_type, low, high, mean,
    std, classes, dataset, objective, start (the weights that the encoder started from) and step.
    """
    with replace_file(out) as file:
        file.write(format_file(encoder_weights(checkpoint), *encoder_header(checkpoint)))


def encoder_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Extract the encoder's weights, with timm's names: between those of its start and its end, if the run says so."""
    weights = checkpoint.networks[checkpoint.exported]
    prefix = "encoder."
    end = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return end if checkpoint.end_share == 1 else interpolate(checkpoint.networks[START], end, checkpoint.end_share)


def encoder_header(checkpoint: Checkpoint) -> tuple[Header, dict[str, str]]:
    """What the file records about the encoder, and about its pre-training."""
    config, facts = checkpoint.config, checkpoint.facts
    header = Header(
        model=config["model"],
        image_size=config["image_size"],
        bands=config["bands"],
        pixel_type=facts["pixel_type"],
        low=facts["low_pixel"],
        high=facts["high_pixel"],
        mean=tuple(checkpoint.mean),
        std=tuple(checkpoint.std),
    )
    return header, {
        "classes": json.dumps(facts["classes"]),
        "dataset": ", ".join(map(public_name, checkpoint.datasets)),
        "objective": str(config["objective"]),
        "start": checkpoint.start,
        "step": str(checkpoint.step),
    }


def rebuild_encoder(checkpoint: Checkpoint) -> nn.Module:
    """Build the encoder of a checkpoint, in evaluation mode."""
    encoder = build_encoder(
        checkpoint.config["model"], len(checkpoint.config["bands"]), checkpoint.config["image_size"]
    )
    encoder.load_state_dict(encoder_weights(checkpoint))
    return encoder.eval()


def export_all(checkpoint: Checkpoint, out: Path, forms: tuple[str, ...], metrics: dict[str, Any]) -> list[str]:
    """Write the encoder, its model card and its STAC item to a folder. metrics: as in metrics.json, or empty.

    Returns the names of the files with weights. Raises ValueError if a form needs a package that is not installed.
    """
    config = checkpoint.config
    encoder = rebuild_encoder(checkpoint)
    example = torch.zeros(2, len(config["bands"]), config["image_size"], config["image_size"])
    with torch.no_grad():
        features = encoder(example).shape[1]
    filenames = [ENCODER]
    export(checkpoint, out / ENCODER)
    for form in forms:
        match form:
            case "onnx":
                filenames.append("encoder.onnx")
                _export_onnx(encoder, example, out / filenames[-1])
            case "torchgeo":
                filenames.append("encoder.ckpt")
                with replace_file(out / filenames[-1]) as file:
                    torch.save(_as_lightning_checkpoint(config["model"], encoder), file)
            case _:
                filenames.append("encoder.pt2")
                with replace_file(out / filenames[-1]) as file:
                    torch.export.save(_trace(encoder, example), file)
    sizes = {name: (out / name).stat().st_size for name in filenames}
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    with replace_file(out / "README.md") as file:
        file.write(format_model_card(checkpoint, features, metrics).encode())
    with replace_file(out / "item.json") as file:
        file.write(to_json(make_stac_item(checkpoint, features, parameters, sizes, metrics)).encode())
    return filenames


def _as_lightning_checkpoint(model: str, encoder: nn.Module) -> dict[str, Any]:
    """The parts of a checkpoint of Lightning's that torchgeo reads: the network's name, and its weights."""
    weights = {f"model.{name}": value for name, value in encoder.state_dict().items()}
    return {"hyper_parameters": {"model": model}, "state_dict": weights}


def _trace(encoder: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Trace the encoder as a graph for any number of images."""
    with torch.no_grad():
        return torch.export.export(encoder, (example,), dynamic_shapes=({0: torch.export.Dim("images")},))


def _export_onnx(encoder: nn.Module, example: torch.Tensor, out: Path) -> None:
    try:
        import onnxscript  # noqa: F401  # needed by torch's exporter
    except ImportError as error:
        raise ValueError("the form onnx needs the packages onnx and onnxscript") from error
    program: Any = torch.onnx.export(
        _trace(encoder, example), input_names=["image"], output_names=["features"], dynamo=True, verbose=False
    )
    with tempfile.TemporaryDirectory() as folder:
        program.save(f"{folder}/encoder.onnx", external_data=False)
        with replace_file(out) as file:
            file.write(Path(folder, "encoder.onnx").read_bytes())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geokr export", description="Export the encoder of a run for use in other software."
    )
    parser.add_argument("run", type=inputs.local_path, metavar="RUN", help="directory of the run")
    parser.add_argument("--out", type=inputs.local_path, required=True, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--forms", nargs="*", default=[], choices=FORMS, help="additional forms of the encoder")
    parser.add_argument(
        "--best", action="store_true", help="export the step with the best validation instead of the last step"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    try:
        checkpoint = load(options.run / (BEST if options.best else LAST))
        metrics_path = options.run / "metrics.json"
        metrics = json.loads(metrics_path.read_text(encoding="utf-8")) if metrics_path.exists() else {}
        if metrics.get("steps") != checkpoint.step:  # metrics.json is about the last step
            metrics = {}
        filenames = export_all(checkpoint, options.out, tuple(options.forms), metrics)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    summary = f"encoder of {checkpoint.config['model']} after {checkpoint.step} steps"
    print(f"{options.out}: {summary}: {', '.join([*filenames, 'README.md', 'item.json'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
