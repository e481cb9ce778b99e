"""Decides in which form samples go to the cloud, or that they stay: link estimates, planner, its explanation.

The gate (`edgekit.gates`) decides *which* samples need the cloud. The planner decides *how* the answer model is reached
for those: whole at the edge, from the frame's JPEG, from a mosaic of its uncertain regions, or split. Pure: no clock,
no socket, no numpy; `simulation` puts the same code on simulated links.
"""
