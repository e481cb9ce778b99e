from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from train_bench import OLD, accuracy, pattern, png, workplace

from edged.train import scene
from edged.train.network import Network, read_network
from edgekit.graphs.errors import NetworkError
from edgekit.packages import Package
from edgekit.training import Pictures


def pictures(base: Package, contrast: float) -> Pictures:
    return Pictures(lambda at: png(OLD[at % len(OLD)], at, contrast), base.manifest.input)


def statistics(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Running mean and variance of the first normalisation."""
    import onnx.numpy_helper

    node = next(one for one in network.model.graph.node if one.op_type == "BatchNormalization")
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in network.model.graph.initializer}
    return arrays[node.input[3]], arrays[node.input[4]]


def test_the_first_layers_statistics_are_those_of_all_pictures_together(base: Package, tmp_path: Path) -> None:
    network, count = read_network(base), 75  # two batches of unequal size
    found = scene.reestimated(network, pictures(base, 0.5), range(count), workplace(tmp_path))
    import onnx.numpy_helper

    conv = next(one for one in network.model.graph.node if one.op_type == "Conv")
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in network.model.graph.initializer}
    kernel = arrays[conv.input[1]].astype(np.float64)
    spec = base.manifest.input
    maps = []
    for at in range(count):
        image = np.pad((pattern(OLD[at % 4], at, 0.5) - spec.mean[0]) * spec.scale[0], 1)
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3))
        maps.append(np.einsum("hwij,cij->chw", windows, kernel[:, 0]))
    expected = np.stack(maps)
    mean, variance = statistics(found)
    np.testing.assert_allclose(mean, expected.mean(axis=(0, 2, 3)), atol=2e-3)
    np.testing.assert_allclose(variance, expected.var(axis=(0, 2, 3)), rtol=0.02)


def test_a_model_without_its_own_normalisation_and_too_few_pictures_are_refused(base: Package, tmp_path: Path) -> None:
    network = read_network(base)
    with pytest.raises(NetworkError, match="31 pictures of the present scene, and 32 are needed"):
        scene.reestimated(network, pictures(base, 1.0), range(31), workplace(tmp_path))
    for node in network.model.graph.node:
        if node.op_type == "BatchNormalization":
            node.op_type = "Identity"
    with pytest.raises(NetworkError, match="no BatchNormalization of its own"):
        scene.reestimated(network, pictures(base, 1.0), range(64), workplace(tmp_path))
    assert accuracy(base, OLD, range(500, 505)) > 0.9
