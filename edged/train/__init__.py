"""One learning job on the device, in a process of its own: from labelled pictures to a judged candidate package.

lessons     the labelled pictures of a service, for whoever learns from them
network     a package's float classifier as ONNX: its features, its last layer, its normalisations
scene       rung `batchnorm`
head        rung `head`
tuning      rungs `last-blocks` and `full`
candidate   from a network to a judged, sealed package
lineage     where a candidate comes from
pace        giving way, progress, pause
sensors     what the machine says about memory and heat
job         one order from its beginning to its end
"""
