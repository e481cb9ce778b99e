from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudd.train import TrainError, Wishes, choose
from cloudd.train.recipe import WIDTHS, macs_of
from edgekit.architectures import ArchitectureError, Spec
from edgekit.datasets.dataset import Dataset, LabelledBox, Picture
from edgekit.datasets.formats import read_dataset
from edgekit.vision.images import encode_png


def flat(count: int, width: int, height: int, boxes: bool = False, colour: bool = False) -> Dataset:
    """Pictures of one content; only their number and size matter to a recipe."""
    image = np.full((height, width, 3), 90, np.uint8)
    if colour:
        image[: height // 2, :, 0] = 200
    data = encode_png(image)
    box = (LabelledBox("a", 0, 0, 20, 20), LabelledBox("b", 20, 20, 40, 40))
    pictures = tuple(
        Picture(f"{n}", "", "" if boxes else "ab"[n % 2], box if boxes else None, width=width, height=height)
        for n in range(count)
    )
    return Flat(pictures, lambda picture: data)


class Flat(Dataset):
    def read(self, picture: Picture) -> bytes:
        return self.fetch(picture)


@pytest.mark.parametrize(
    ("data", "architecture", "size"),
    [
        (flat(600, 238, 187), "tiny_cnn", (64, 64)),
        (flat(600, 40, 36), "tiny_cnn", (32, 32)),
        (flat(600, 640, 480), "tiny_cnn", (64, 64)),
        (flat(3000, 640, 480), "mobilenet_v2", (224, 224)),
        (flat(600, 640, 480, boxes=True), "centre_point", (512, 384)),
        (flat(600, 100, 80, boxes=True), "centre_point", (160, 128)),
    ],
)
def test_network_and_size_follow_the_pictures(data: Dataset, architecture: str, size: tuple[int, int]) -> None:
    network = choose(data, data.pictures, Wishes()).network
    assert (network.architecture, (network.input_width, network.input_height)) == (architecture, size)


def test_grey_pictures_get_a_grey_network_and_coloured_ones_a_coloured_one() -> None:
    for colour, channels in ((False, 1), (True, 3)):
        data = flat(100, 60, 60, colour=colour)
        assert choose(data, data.pictures, Wishes()).network.channels == channels
    data = flat(100, 60, 60)
    assert choose(data, data.pictures, Wishes(colour="rgb")).network.channels == 3


def test_what_is_wished_for_is_done() -> None:
    data = flat(200, 60, 60)
    wishes = Wishes(
        architecture="resnet18", size=(48, 32), epochs=3, seconds=60, balance="full", symmetry="any", seed=7
    )
    recipe = choose(data, data.pictures, wishes)
    assert (recipe.network.architecture, recipe.network.input_width, recipe.network.input_height) == (
        "resnet18",
        48,
        32,
    )
    assert recipe.network.seed == recipe.settings.seed == 7
    assert (recipe.settings.epochs, recipe.settings.max_seconds, recipe.settings.balance) == (3, 60, "full")
    assert recipe.augmentation.quarter_turns and not choose(data, data.pictures, Wishes()).augmentation.flip_horizontal


def test_few_pictures_are_shown_more_often_than_many() -> None:
    few, many = (choose(flat(count, 60, 60), flat(count, 60, 60).pictures, Wishes()) for count in (100, 4000))
    assert few.settings.epochs > many.settings.epochs


def test_the_widest_network_within_the_device_s_budget_is_taken() -> None:
    data = flat(100, 60, 60)
    whole = choose(data, data.pictures, Wishes())
    assert whole.network.width == 1.0
    half = choose(data, data.pictures, Wishes(macs=whole.macs // 2))
    assert half.network.width in WIDTHS[1:] and half.macs <= whole.macs // 2
    with pytest.raises(TrainError, match=r"the narrowest tiny_cnn for 48x48 pixels needs [\d,]+ multiply-adds"):
        choose(data, data.pictures, Wishes(macs=1000))


def test_multiply_adds_are_those_of_the_layers() -> None:
    spec = Spec(architecture="tiny_cnn", classes=2, input_width=64, input_height=64, channels=1)
    layers = 64 * 64 * 16 * 9 + 32 * 32 * 32 * 16 * 9 + 16 * 16 * 64 * 32 * 9 + 8 * 8 * 96 * 64 * 9 + 96 * 2
    assert macs_of(spec) == layers


def test_wishes_that_do_not_suit_the_data_are_refused() -> None:
    whole, boxes = flat(50, 60, 60), flat(50, 60, 60, boxes=True)
    with pytest.raises(TrainError, match="centre_point finds boxes, but the data has one label a picture"):
        choose(whole, whole.pictures, Wishes(architecture="centre_point"))
    with pytest.raises(TrainError, match="tiny_cnn answers with one label for the whole picture, but the data has box"):
        choose(boxes, boxes.pictures, Wishes(architecture="tiny_cnn"))
    with pytest.raises(ArchitectureError, match="multiples of 16"):
        choose(boxes, boxes.pictures, Wishes(size=(100, 100)))
    with pytest.raises(TrainError, match="8x64 pixels"):
        choose(whole, whole.pictures, Wishes(size=(8, 64)))


def test_the_same_pictures_and_wishes_give_the_same_recipe(discs: Path) -> None:
    data = read_dataset(discs, "board")
    assert choose(data, data.pictures, Wishes()) == choose(data, data.pictures, Wishes())
