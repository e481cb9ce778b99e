"""Sends only the doubtful parts of a frame: chosen, cut out, packed into one mosaic, and their answers put back.

select    which parts of a frame are candidates, and which of them the gate is asked about
silent    a random look at frames in which the edge found nothing
cutouts   cut-outs with context, and the mapping between a cut-out's pixels and the frame's
mosaic    cut-outs packed into one picture, and unpacked on the other side
header    what travels beside the picture, and the checks of what comes from outside
columns   a classifier's answers in few bytes
answers   the cloud's answers merged into the frame's regions, and the one decision of the frame

`Box` is (left, top, right, bottom) in pixels of the full frame; right and bottom lie outside.
"""
