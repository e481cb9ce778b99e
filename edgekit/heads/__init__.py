"""Heads on frozen features in closed form: classes from additive sums, unknowns by a certified rate, anomalies by maps.

A backbone that stays as it is turns a picture into features; what is learned here needs no gradient, no stored picture
and less than a second. All that is kept are sums, which add up over sites (masked, if need be) and can be taken out
again to the last bit of their rounding. Pure numpy; no clock, no file.
"""
