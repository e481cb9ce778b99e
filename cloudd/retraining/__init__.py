"""Retraining: a device's labelled pictures teach a larger network here, and that one teaches the device's own.

service    all jobs: asked for, filled, computed one after another, handed out, forgotten
shelf      the records of all jobs, and who has asked for them of late
bench      where jobs are computed, one at a time
folders    what lies on the disk for each device, whatever instruction the power fails at
view       one job as an operator sees it
record     what is durable about a job beside its request
routes     of the device API
process    a job's process as the daemon sees it, bounded and confined
order      what both tell each other
working    the process: from the files of a job to a package
material   the pictures and the network of a job, checked before anything is computed
labels     what a classifier needs beside
boxes      what a detector needs beside
centres    a smaller detector's loss against a larger one's maps
teacher    the larger network: which one, and its training on the labels
student    the device's own network, taught by the larger one
course     what both trainings share: a plan that fits into the time, checkpoints, pausing
lineage    what the package says about where it comes from
"""
