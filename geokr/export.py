"""The encoder of a run in the forms that others load: `python -m geokr.export RUN --out FOLDER`.

    encoder = timm.create_model(model, num_classes=0, in_chans=bands)
    encoder.load_state_dict(safetensors.torch.load_file("FOLDER/encoder.safetensors"))

Its input is (pixels / 255 - mean) / std; model, bands, mean, std and more are in the file's header, in the model
card README.md and in item.json, a STAC item. Other forms, if asked for: encoder.onnx and encoder.pt2
(torch.export) take any number of images of the size of training, and torchvision.safetensors has the names of
torchvision's ResNet and VGG.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from geokr.encoder import ENCODER, build_encoder, to_torchvision
from geokr.pretraining.card import model_card, published_name, stac_item, to_json
from geokr.pretraining.checkpoint import BEST, LAST, Checkpoint, load
from geokr.storage.files import replacing

FORMS = ("onnx", "pt2", "torchvision")
"""Forms beside the safetensors file with timm's names."""


def export(checkpoint: Checkpoint, out: Path) -> None:
    """Write the teacher's encoder, or the student's where there is no teacher, with timm's own names.

    The header maps text to text; lists are JSON: model, image_size, bands, mean, std, classes, dataset,
    objective, start (where the encoder started from) and step.
    """
    with replacing(out) as file:
        file.write(_sort_header(to_safetensors(encoder_weights(checkpoint), encoder_header(checkpoint))))


def encoder_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The encoder's weights with timm's names."""
    weights = checkpoint.networks[checkpoint.exported]
    prefix = "encoder."
    return {
        name.removeprefix(prefix): tensor.contiguous() for name, tensor in weights.items() if name.startswith(prefix)
    }


def encoder_header(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "model": str(checkpoint.config["model"]),
        "image_size": str(checkpoint.config["image_size"]),
        "bands": json.dumps(checkpoint.config["bands"]),
        "mean": json.dumps(checkpoint.mean),
        "std": json.dumps(checkpoint.std),
        "classes": json.dumps(checkpoint.facts["classes"]),
        "dataset": published_name(checkpoint.dataset),
        "objective": str(checkpoint.config["objective"]),
        "start": checkpoint.start,
        "step": str(checkpoint.step),
    }


def _sort_header(content: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library writes the metadata in a random order.

    The header is JSON behind its length, 8 bytes, little-endian; places of tensors are counted from its end.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def rebuild_encoder(checkpoint: Checkpoint) -> nn.Module:
    """The encoder, in evaluation mode."""
    encoder = build_encoder(
        checkpoint.config["model"], len(checkpoint.config["bands"]), checkpoint.config["image_size"]
    )
    encoder.load_state_dict(encoder_weights(checkpoint))
    return encoder.eval()


def export_all(checkpoint: Checkpoint, out: Path, forms: tuple[str, ...], metrics: dict[str, Any]) -> list[str]:
    """Write the encoder, its card and its STAC item into a folder. metrics: as in metrics.json, or empty.

    Returns the names of the files with weights. Raises ValueError where a form needs a package that is not there.
    """
    config = checkpoint.config
    encoder = rebuild_encoder(checkpoint)
    example = torch.zeros(2, len(config["bands"]), config["image_size"], config["image_size"])
    with torch.no_grad():
        features = encoder(example).shape[1]
    written = [ENCODER]
    export(checkpoint, out / ENCODER)
    for form in forms:
        match form:
            case "onnx":
                written.append("encoder.onnx")
                _export_onnx(encoder, example, out / written[-1])
            case "pt2":
                written.append("encoder.pt2")
                with replacing(out / written[-1]) as file:
                    torch.export.save(_trace(encoder, example), file)
            case _:
                written.append("torchvision.safetensors")
                with replacing(out / written[-1]) as file:
                    file.write(
                        _sort_header(
                            to_safetensors(to_torchvision(encoder_weights(checkpoint)), encoder_header(checkpoint))
                        )
                    )
    sizes = {name: (out / name).stat().st_size for name in written}
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    with replacing(out / "README.md") as file:
        file.write(model_card(checkpoint, features, metrics).encode())
    with replacing(out / "item.json") as file:
        file.write(to_json(stac_item(checkpoint, features, parameters, sizes, metrics)).encode())
    return written


def _trace(encoder: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """The encoder as a graph for any number of images."""
    with torch.no_grad():
        return torch.export.export(encoder, (example,), dynamic_shapes=({0: torch.export.Dim("images")},))


def _export_onnx(encoder: nn.Module, example: torch.Tensor, out: Path) -> None:
    try:
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ValueError("the form onnx needs the packages onnx and onnxscript") from error
    program: Any = torch.onnx.export(
        _trace(encoder, example), input_names=["image"], output_names=["features"], dynamo=True, verbose=False
    )
    with tempfile.TemporaryDirectory() as folder:
        program.save(f"{folder}/encoder.onnx", external_data=False)
        with replacing(out) as file:
            file.write(Path(folder, "encoder.onnx").read_bytes())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m geokr.export", description="Write the encoder of a run for others."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--forms", nargs="*", default=[], choices=FORMS, help="further forms of the encoder")
    parser.add_argument(
        "--best", action="store_true", help="take the step with the best validation instead of the last one"
    )
    chosen = parser.parse_args(arguments)
    try:
        checkpoint = load(chosen.run / (BEST if chosen.best else LAST))
        judged = chosen.run / "metrics.json"
        metrics = json.loads(judged.read_text(encoding="utf-8")) if judged.exists() else {}
        if metrics.get("steps") != checkpoint.step:  # they are of the last step
            metrics = {}
        written = export_all(checkpoint, chosen.out, tuple(chosen.forms), metrics)
    except (ValueError, OSError) as error:
        print(f"geokr.export: {error}", file=sys.stderr)
        return 2
    what = f"encoder of {checkpoint.config['model']} after {checkpoint.step} steps"
    print(f"{chosen.out}: {what}: {', '.join([*written, 'README.md', 'item.json'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
