"""The encoder of a run as a file that timm loads: `python -m geokr.export RUN --out ENCODER`.

    encoder = timm.create_model(model, num_classes=0, in_chans=bands)
    encoder.load_state_dict(safetensors.torch.load_file(ENCODER))

Its input is (pixels / 255 - mean) / std; model, bands, mean, std and more are in the file's header.
"""

import argparse
import json
import sys
from pathlib import Path

from safetensors.torch import save as to_safetensors

from geokr.checkpoint import BEST, LAST, Checkpoint, load, replacing

ENCODER = "encoder.safetensors"


def export(checkpoint: Checkpoint, out: Path) -> None:
    """Write the teacher's encoder, or the student's where there is no teacher, with timm's own names.

    The header maps text to text; lists are JSON: model, image_size, bands, mean, std, classes, dataset,
    objective, start (where the encoder started from) and step.
    """
    weights = checkpoint.student if checkpoint.teacher is None else checkpoint.teacher
    prefix = "encoder."
    encoder = {
        name.removeprefix(prefix): tensor.contiguous() for name, tensor in weights.items() if name.startswith(prefix)
    }
    header = {
        "model": str(checkpoint.config["model"]),
        "image_size": str(checkpoint.config["image_size"]),
        "bands": json.dumps(checkpoint.config["bands"]),
        "mean": json.dumps(checkpoint.mean),
        "std": json.dumps(checkpoint.std),
        "classes": json.dumps(checkpoint.facts["classes"]),
        "dataset": checkpoint.dataset,
        "objective": str(checkpoint.config["objective"]),
        "start": checkpoint.start,
        "step": str(checkpoint.step),
    }
    with replacing(out) as file:
        file.write(_in_order(to_safetensors(encoder, header)))


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library writes the metadata in a random order.

    The header is JSON behind its length, 8 bytes, little-endian; places of tensors are counted from its end.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m geokr.export", description="Write the encoder of a run for timm.")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run")
    parser.add_argument("--out", type=Path, required=True, metavar="ENCODER", help="file to write (.safetensors)")
    parser.add_argument(
        "--best", action="store_true", help="take the step with the best validation instead of the last one"
    )
    chosen = parser.parse_args(arguments)
    try:
        checkpoint = load(chosen.run / (BEST if chosen.best else LAST))
        export(checkpoint, chosen.out)
    except (ValueError, OSError) as error:
        print(f"geokr.export: {error}", file=sys.stderr)
        return 2
    print(f"{chosen.out}: encoder of {checkpoint.config['model']} after {checkpoint.step} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
