"""Sets that torchgeo knows by name are read with its classes and its split."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from geokr.evaluation.task import Settings
from geokr.evaluation.torchgeo_sets import read_torchgeo
from geokr.settings import ConfigError
from geokr.storage.inputs import InputError


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    """EuroSAT as torchgeo lays it out; each pixel of band k has the value 100 k, from 0."""
    images = tmp_path / "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    pixels = np.repeat(np.arange(13, dtype=np.uint16) * 100, 64).reshape(13, 8, 8)
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{kind}_{number}.tif" for kind in ("Forest", "River")]
        (tmp_path / f"eurosat-{split}.txt").write_text("".join(name.replace(".tif", ".jpg\n") for name in names))
        for name in names:
            (images / name.split("_")[0]).mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(
                    images / name.split("_")[0] / name, "w", driver="GTiff", count=13, height=8, width=8, dtype="uint16"
                ) as image:
                    image.write(pixels)
    return tmp_path


def test_a_set_of_torchgeos(eurosat: Path) -> None:
    examples = read_torchgeo(f"torchgeo:EuroSAT:{eurosat}", Settings(scale=10000))
    assert examples.classes == ("Forest", "River")
    assert {split: [Path(examples.names[i]).name for i in part] for split, part in examples.split.items()} == {
        split: [f"Forest_{number}.tif", f"River_{number}.tif"] for number, split in enumerate(("train", "val", "test"))
    }
    assert len(examples.bands) == 13
    red = examples.bands.index("red")
    assert (examples.image(3)[red] == 300).all()  # B04
    assert [examples.target(i) for i in range(2)] == [0, 1]


def test_what_torchgeo_does_not_know_or_find_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected torchgeo:NAME:FOLDER"):
        read_torchgeo(f"torchgeo:NoSuchSet:{tmp_path}", Settings())
    with pytest.raises(InputError, match="torchgeo does not find EuroSAT there"):
        read_torchgeo(f"torchgeo:EuroSAT:{tmp_path}", Settings())
