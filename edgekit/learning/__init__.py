"""Decides when a model learns, by which means, and whether what was learned may stay: triggers, ladder, acceptance.

Pure state machines: the state goes in and comes out as msgspec Structs, the clock is an argument, every decision is a
`Record` with its numbers. Only `judging` and `box_judging` need numpy, so that a supervisor without it can hold all of
the rest.

Times are seconds of one clock that goes on over restarts. If it jumps back, waiting begins anew; if it jumps forward,
nothing counts as having lasted during the jump.
"""
