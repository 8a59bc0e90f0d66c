"""Segmentation data are read as people have them, and refused with one sentence that names the file."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from geokr.evaluation.mask_classes import IGNORE
from geokr.evaluation.masks import MaskSettings, read_masks
from geokr.storage.inputs import InputError

DRIVERS = {".png": "PNG", ".jpg": "JPEG", ".tif": "GTiff"}


def save(path: Path, pixels: np.ndarray, names: tuple[str, ...] = (), palette: dict | None = None) -> Path:
    """Write (band, y, x) or (y, x) pixels."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver=DRIVERS[path.suffix],
            count=pixels.shape[0],
            height=pixels.shape[1],
            width=pixels.shape[2],
            dtype=pixels.dtype,
        ) as file:
            file.write(pixels)
            if names:
                file.descriptions = names
            if palette:
                file.write_colormap(1, palette)
    return path


def image(side: int = 8, bands: int = 3) -> np.ndarray:
    return np.full((bands, side, side + 1), 90, np.uint8)


def mask(*values: int, side: int = 8) -> np.ndarray:
    """A mask whose columns have the values, in equal parts."""
    return np.tile(np.array(values, np.uint8)[np.arange(side + 1) * len(values) // (side + 1)], (side, 1))


def settings(**changes: object) -> MaskSettings:
    return MaskSettings.model_validate(changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images: of class 0, of class 1, and of three parts class 1 with a part of class 0."""
    for name, columns in {"a": (0,), "b": (1,), "c": (1, 1, 0, 1)}.items():
        save(tmp_path / f"images/{name}.jpg", image())
        save(tmp_path / f"masks/{name}.png", mask(*columns))
    return tmp_path


def test_masks_belong_to_the_images_of_their_names(folder: Path) -> None:
    examples = read_masks(folder, settings(classes=["land", "water"]))
    assert examples.names == ("images/a.jpg", "images/b.jpg", "images/c.jpg")
    assert examples.classes == ("land", "water")
    assert examples.bands == ("red", "green", "blue")
    assert examples.scale == 255
    assert examples.split == {}
    assert examples.stratum.tolist() == [0, 1, 1]
    assert examples.group.tolist() == [0, 1, 2]
    assert examples.image(2).shape == (3, 8, 9)
    assert examples.target(2).tolist() == mask(1, 1, 0, 1).tolist()


def test_examples_travel_to_other_processes(folder: Path) -> None:
    copy = pickle.loads(pickle.dumps(read_masks(folder, settings())))
    assert copy.target(1).tolist() == mask(1).tolist()
    assert copy.image(1).shape == (3, 8, 9)


def test_without_names_each_value_is_a_class(folder: Path) -> None:
    save(folder / "masks/a.png", mask(255, 7))
    examples = read_masks(folder, settings(ignore="7"))
    assert examples.classes == ("0", "1", "255")
    assert examples.target(0).tolist() == np.where(mask(255, 7) == 255, 2, IGNORE).tolist()


def test_folders_and_endings_of_other_names(folder: Path) -> None:
    (folder / "images").rename(folder / "img")
    (folder / "masks").rename(folder / "gt")
    for path in list((folder / "gt").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_label"))
    examples = read_masks(folder, settings(images_dir="img", masks_dir="gt", mask_ending="_label"))
    assert examples.names[0] == "img/a.jpg"
    assert examples.target(1).tolist() == mask(1).tolist()


@pytest.mark.parametrize("inside", [False, True])
def test_folders_give_the_split(tmp_path: Path, inside: bool) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c"), ("test", "a")):
        for kind, pixels in (("images", image()), ("masks", mask(0, 1))):
            save(tmp_path / (f"{kind}/{split}" if inside else f"{split}/{kind}") / f"{name}.png", pixels)
    examples = read_masks(tmp_path, settings())
    split = {key: [examples.names[i] for i in positions] for key, positions in examples.split.items()}
    wanted = {"train": ["a", "b"], "val": ["c"], "test": ["a"]}
    form = "images/{}/{}.png" if inside else "{}/images/{}.png"
    assert split == {key: [form.format(key, name) for name in names] for key, names in wanted.items()}


def test_lists_give_the_split(folder: Path) -> None:
    (folder / "train.txt").write_text("a\nc\n")
    (folder / "test.txt").write_text("b.jpg\n")
    examples = read_masks(folder, settings())
    assert {key: positions.tolist() for key, positions in examples.split.items()} == {"train": [0, 2], "test": [1]}


def test_a_table_gives_pairs_splits_and_groups(folder: Path) -> None:
    (folder / "list.csv").write_text(
        "image,mask,split,group\nimages/c.jpg,masks/c.png,train,x\nimages/a.jpg,masks/b.png,test,\n"
        "images/b.jpg,masks/a.png,train,x\n"
    )
    examples = read_masks(folder, settings())
    assert examples.names == ("images/c.jpg", "images/a.jpg", "images/b.jpg")
    assert examples.target(1).tolist() == mask(1).tolist()
    assert {key: positions.tolist() for key, positions in examples.split.items()} == {"train": [0, 2], "test": [1]}
    assert examples.group[0] == examples.group[2] != examples.group[1]


def test_a_table_about_something_else_is_passed_over(folder: Path) -> None:
    (folder / "list.csv").write_text("id,quality\na,1\n")
    assert len(read_masks(folder, settings())) == 3


def test_names_give_groups(folder: Path) -> None:
    for name in ("s1_0", "s1_1", "s2_0"):
        save(folder / f"images/{name}.jpg", image())
        save(folder / f"masks/{name}.png", mask(0, 1))
    group = read_masks(folder, settings(group="(s[0-9])_")).group.tolist()
    assert group[3] == group[4]
    assert len(set(group)) == 5  # a, b, c and s2_0 are alone
    with pytest.raises(InputError, match=r"group=\(: not a regular expression"):
        read_masks(folder, settings(group="("))


def test_colours_mean_classes_in_a_png_and_in_its_palette(folder: Path) -> None:
    (folder / "classes.yaml").write_text("classes: {land: '#00ff00', water: '#0000ff'}\nignore: '#000000'")
    colours = np.array([[0, 255, 0], [0, 0, 255], [0, 0, 0]], np.uint8)
    numbers = mask(0, 1, 2)
    for name in ("a", "b"):
        save(folder / f"masks/{name}.png", colours[numbers].transpose(2, 0, 1))
    save(folder / "masks/c.png", numbers, palette={k: (*map(int, colour), 255) for k, colour in enumerate(colours)})
    examples = read_masks(folder, settings())
    for i in range(3):
        assert examples.target(i).tolist() == np.where(numbers == 2, IGNORE, numbers).tolist()


def test_values_of_a_palette_are_not_its_colours(folder: Path) -> None:
    for name in "abc":
        save(folder / f"masks/{name}.png", mask(0, 1), palette={0: (0, 0, 0, 255), 1: (255, 255, 255, 255)})
    assert read_masks(folder, settings()).classes == ("0", "1")


def test_a_folder_a_class_holds_binary_masks(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"images/{name}.png", image())
        save(tmp_path / f"masks/road/{name}.png", mask(0, 255, 255, 128))
    save(tmp_path / "masks/house/b.png", mask(0, 0, 1))  # an image without houses may have no mask of them
    examples = read_masks(tmp_path, settings(ignore=[128]))
    assert examples.classes == ("background", "house", "road")
    road = np.select([mask(0, 255, 255, 128) == 255, mask(0, 255, 255, 128) == 128], [2, IGNORE], 0)
    assert examples.target(0).tolist() == road.tolist()
    other = read_masks(tmp_path, settings(ignore=[128], classes=["road", "house"], background="rest"))
    assert other.classes == ("rest", "road", "house")
    assert other.target(1).tolist() == np.where(mask(0, 0, 1) == 1, 2, np.where(road == 2, 1, road)).tolist()
    with pytest.raises(InputError, match="masks of house, road, but classes names road, tree: house differs"):
        read_masks(tmp_path, settings(classes=["road", "tree"]))


def test_sixteen_bits_and_bands_by_name(tmp_path: Path) -> None:
    bands = ("blue", "green", "red", "nir", "swir1")
    pixels = np.arange(5, dtype=np.uint16)[:, None, None] * 1000 + np.zeros((5, 8, 9), np.uint16)
    save(tmp_path / "images/a.tif", pixels, bands)
    save(tmp_path / "masks/a.tif", mask(0, 1).astype(np.uint16) * 400)
    examples = read_masks(tmp_path, settings(scale=10000))
    assert examples.bands == bands
    assert examples.scale == 10000
    assert examples.classes == ("0", "400")
    assert examples.image(0)[:, 0, 0].tolist() == [0, 1000, 2000, 3000, 4000]
    with pytest.raises(InputError, match=r"a\.tif: pixels of uint16; say which number means 1\.0"):
        read_masks(tmp_path, settings())


def refusal(folder: Path, **changes: object) -> str:
    with pytest.raises(InputError) as error:
        read_masks(folder, settings(**changes))
    text = str(error.value)
    assert "\n" not in text
    return text.replace(f"{folder}/", "")


def test_a_mask_of_another_size_is_refused(folder: Path) -> None:
    save(folder / "masks/b.png", mask(0, 1, side=9))
    assert refusal(folder) == "masks/b.png: the mask is 10 x 9 px, its image b.jpg is 9 x 8 px"


def test_an_image_without_a_mask_is_refused(folder: Path) -> None:
    (folder / "masks/b.png").unlink()
    assert refusal(folder) == "images/b.jpg: there is no mask masks/b.* for this image"


def test_a_value_without_a_class_is_refused(folder: Path) -> None:
    save(folder / "masks/b.png", mask(0, 5))
    assert refusal(folder, classes=["one", "two"]).startswith("masks/b.png: value 5 at row 0, column 5 has no class")


def test_a_class_that_only_the_test_split_has_is_refused(folder: Path) -> None:
    (folder / "train.txt").write_text("a\n")
    (folder / "test.txt").write_text("c\n")
    assert refusal(folder) == ("masks/c.png: the class 1 is in the test split, but in no mask of the training split")


@pytest.mark.parametrize("name", ["images/b.jpg", "masks/b.png"])
def test_empty_and_unreadable_files_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert refusal(folder) == f"{name}: the file is empty"
    (folder / name).write_bytes(b"no image at all")
    assert refusal(folder).startswith(f"{name}: not a readable image: ")


def test_masks_that_are_pictures_are_refused(folder: Path) -> None:
    noise = np.arange(3 * 8 * 9).reshape(3, 8, 9)
    save(folder / "masks/b.png", noise.astype(np.uint8))
    assert refusal(folder).startswith("masks/b.png: the mask has colours")
    many = np.arange(20 * 20, dtype=np.uint16).reshape(20, 20)
    save(folder / "masks/b.png", many)
    assert refusal(folder) == "masks/b.png: too many values to be classes; name them in classes.yaml"
    save(folder / "masks/b.tif", many.astype(np.float32))
    (folder / "masks/b.png").unlink()
    assert refusal(folder) == "masks/b.tif: values of float32; the values of a mask are whole numbers"


def test_masks_of_one_class_are_refused(folder: Path) -> None:
    for name in "abc":
        save(folder / f"masks/{name}.png", mask(0))
    assert refusal(folder).endswith("expected 2 to 254 classes, got 1")


def test_folders_that_are_not_there_are_refused(folder: Path) -> None:
    assert refusal(folder, images_dir="pictures") == "pictures: no such folder"
    assert refusal(folder, masks_dir="labels") == "labels: no such folder"
    assert refusal(folder, classes_file=f"{folder}/no.yaml") == "no.yaml: no such file of classes"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("images/x.jpg,masks/a.png,", "no such image: images/x.jpg"),
        ("images/a.jpg,,", "no such mask: empty"),
        ("images/a.jpg,masks/a.png,holdout", "the split holdout is none of train, val, test"),
    ],
)
def test_a_row_of_the_table_that_does_not_fit_is_refused(folder: Path, row: str, sentence: str) -> None:
    (folder / "list.csv").write_text(f"image,mask,split\n{row}\n")
    assert refusal(folder) == f"list.csv, line 2: {sentence}"
