"""Takes whole channels out of a convolutional ONNX graph, so that a smaller dense graph of the same form is left.

Needs the package `onnx`, so nothing is imported by itself: `reader` finds which channels stand and fall together,
`importance` ranks them, `surgery` cuts.
"""
