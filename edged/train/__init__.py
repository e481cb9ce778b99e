"""One learning job on the device, in a process of its own: from labelled pictures to a judged candidate package.

lessons     the labelled pictures of a service, for whoever learns from them; box_lessons and tile_lessons, where labels
            are boxes, or a picture is cut into tiles
views       what a model gets of a picture at once, cut out as serving cuts it
graph       a package's float model as ONNX; network: a classifier, its features and last layer; detector: three maps
scene       rung `batchnorm`
head        rung `head`
tuning      rungs `last-blocks` and `full`
retraining  rung `cloud`: cloudd trains a larger network, which teaches; retraining_client: how cloudd is asked
climbing    one rung, of a classifier or a detector
examining   a classifier's candidate beside the present model; box_examining: a detector's; costs: time and size
candidate   from a network to a judged, sealed package
folding     the un-folded checkpoint that a package may carry
lineage     where a candidate comes from
pace        giving way, progress, pause
sensors     what the machine says about memory and heat
job         one order from its beginning to its end
"""
