"""ONNX graphs as they lie in a model: what makes what, what can go, and the layer that makes the classes.

Needs the package `onnx`, so nothing is imported by itself: `editing` copies and cuts, `logits` finds the last layer of
a classifier. Nothing in here touches a file.
"""
