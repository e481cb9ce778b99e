"""Writes files of TensorFlow: `tensorflow_maker.py FOLDER MARKER`, under an interpreter that has it.

The network sorts pictures by brightness, as those of foreign_models. `lambda.keras` holds Python code, `writes` is a
SavedModel that writes MARKER when it is run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-not-found,import-untyped,unused-ignore]


def network(*more: Any) -> Any:
    layers = tf.keras.layers
    model = tf.keras.Sequential([
        layers.Input((16, 16, 3)),
        layers.Conv2D(4, 3, padding="same", use_bias=False),
        layers.BatchNormalization(epsilon=1e-5),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, activation="softmax"),
        *more,
    ])  # fmt: skip
    kernel = np.zeros((3, 3, 3, 4), np.float32)
    kernel[1, 1] = 1 / 3
    centres = (np.arange(3, dtype=np.float32) + 0.5) / 3
    model.layers[0].set_weights([kernel])
    model.layers[1].set_weights([np.ones(4), np.zeros(4), np.zeros(4), np.full(4, 1 - 1e-5)])
    model.layers[4].set_weights([np.repeat(120 * centres[None] / 4, 4, 0), -60 * centres**2])
    return model


class Writes(tf.Module):  # type: ignore[misc,unused-ignore]
    def __init__(self, marker: str) -> None:
        super().__init__()
        self._marker = marker

    @tf.function(input_signature=[tf.TensorSpec([1, 16, 16, 3], tf.float32)])  # type: ignore[misc,unused-ignore]
    def __call__(self, x: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(self._marker, "executed")]):
            return tf.nn.softmax(tf.reduce_mean(x, [1, 2]))


def main(folder: Path, marker: str) -> None:
    model = network()
    model.save(folder / "net.keras")
    model.save(folder / "net.h5")
    model.export(folder / "saved")
    network(tf.keras.layers.Lambda(lambda x: x)).save(folder / "lambda.keras")
    writes = Writes(marker)
    tf.saved_model.save(writes, str(folder / "writes"), signatures={"serving_default": writes.__call__})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
