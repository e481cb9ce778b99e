"""Turns a forward ONNX graph into a train-step graph of standard operators that a stock onnxruntime executes.

Deriving (`step`, `builder`, `forward`, `reverse`, `rules`, `losses`, `optimisers`) needs the `onnx` package. Executing
a derived step (`run`) needs numpy and onnxruntime only, so this package imports nothing by itself.
"""
