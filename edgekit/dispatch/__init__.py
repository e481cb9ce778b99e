"""Decides where each request runs: on this device, in the cloud, later from the disk, or not at all.

Pure: the clock is an argument; no thread, task, socket or file inside. The rules, their numbers and what they
reached in simulation are those of the research, `algorithms.md` section 5.
"""
