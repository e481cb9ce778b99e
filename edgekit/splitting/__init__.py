"""Cuts a model in two: finds the cuts of an ONNX graph, writes and proves both halves, codes what crosses, times it.

`graph`, `cuts` and `halves` need the `onnx` package and belong to cloudd; `features` and `profile` run on either side.
Splitting is for pictures that may not leave the device: where they may, a JPEG of the frame was quicker in all 40
cases of `research/algorithms.md` 2.
"""
