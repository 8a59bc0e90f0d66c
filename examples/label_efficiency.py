# %% [markdown]
# # From unannotated scenes to a label-efficiency curve
#
# A small world that knows its own truth stands for your archive. An encoder learns from its scenes and a land-cover
# map, part of which is out of date. Then it is asked how many labels it saves on a task with labels.
#
# The settings below are small, for a first look. `make demo` does the same with all six scenes and more steps.

# %%
import json
import shlex
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

STEPS = 60
LABELS = ["10%", "30%", "100%"]


def run(command: str) -> None:
    """Run a command as it would be typed in a terminal."""
    print(f"$ {command}")
    program, *words = shlex.split(command)
    module = {"geokr": ["pipeline.command"], "python": words[1:2]}[program]
    subprocess.run([sys.executable, "-m", *module, *words[2 if program == "python" else 0 :]], check=True)


# %% [markdown]
# ## Scenes, heights and a map
#
# Six Gaofen deliveries as they are ordered, a DEM, and two sheets of GlobeLand30 that meet inside the scenes.

# %%
run("geokr sample world")

# %% [markdown]
# ## The data set
#
# Two of the scenes are orthorectified and cut into tiles, and each tile gets the exact area share of each class under
# it. Some places are held out, in cells that are small because the world is. The data set ends with a card,
# `dataset/README.md`, whose picture shows tiles beside their map.

# %%
settings = "build: {index: {split: {cell: 2500, shares: {train: 0.75, val: 0.25}}}}"
Path("settings.yaml").write_text(settings, encoding="utf-8")
scenes = " ".join(str(path) for path in sorted(Path("world/scenes").glob("GF[26]_*")))
run(
    f"geokr build --scenes {scenes} --landcover world/landcover --dem world/dem.tif "
    "--params settings.yaml --tile 64 --stride 48 --out dataset --workers 1"
)
print(Path("dataset/README.md").read_text(encoding="utf-8"))

# %% [markdown]
# ## Pre-training
#
# The network predicts the shares of each tile, steadied by a mean teacher. No tile has a label that a person gave it.

# %%
run(
    "geokr train --data dataset --out run model=resnet10t bands=red,green,blue,nir image_size=32 batch=32 "
    f"steps={STEPS} probe=0 loggers=[] validate_every=0"
)

# %% [markdown]
# ## How many labels does it save?
#
# A linear classifier on frozen features, trained with a tenth of the labels, with three tenths and with all, against
# the same network with random weights. The images lie beyond the scenes, and their labels are what the ground is today.

# %%
run("python -m pipeline.sample.chips world chips")
run(
    f"geokr evaluate classification --data chips --encoder scratch run --mode linear --labels {' '.join(LABELS)} "
    "--seeds 2 --out evaluation val=0.2"
)

# %%
(task,) = json.loads(Path("evaluation/metrics.json").read_text(encoding="utf-8")).values()
(modes,) = task.values()
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
for encoder, accuracy in modes["linear"].items():
    axes.plot(LABELS, [accuracy[share] for share in LABELS], marker="o", label=encoder)
axes.set_xlabel("labels")
axes.set_ylabel("accuracy")
axes.legend()
figure.savefig("label_efficiency.png")
figure
