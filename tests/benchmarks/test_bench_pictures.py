from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import pictures

pytestmark = pytest.mark.real_data


@pytest.mark.parametrize("name", ["solder-tht", "pcb-bare"])
def test_the_parts_share_no_board_and_hold_every_label(real_data: Path, name: str) -> None:
    data = pictures.load(name, real_data)
    boards = [{item.board for item in part} for part in (data.calibration, data.test)]
    assert boards[0] and boards[1] and not boards[0] & boards[1]
    for labels in (data.train_y, [i.label for i in data.calibration], [i.label for i in data.test]):
        assert set(labels) == set(range(len(data.labels)))
    assert data.train_x.shape == (len(data.train_y), 80, 80) and data.train_x.dtype == np.uint8
    assert {pictures.decode(item.data).shape for item in data.test[:20]} == {(64, 64)}


def test_the_split_is_the_same_every_time(real_data: Path) -> None:
    one, two = (pictures.load("pcb-bare", real_data) for _ in range(2))
    assert one.test == two.test and one.calibration == two.calibration
    assert np.array_equal(one.train_x, two.train_x)


def test_an_unknown_data_set_is_named(real_data: Path) -> None:
    with pytest.raises(ValueError, match="solder-tht, pcb-bare"):
        pictures.load("nuts", real_data)
