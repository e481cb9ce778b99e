"""Secure aggregation `secagg/2`: a sum of many devices' vectors of which a cheating server learns no part.

Pure state machines, client half and server half; the protocol and the argument for it are in docs/secagg.md.

client       one device in one round (client_state: what it keeps over a restart)
server       one round at cloudd (reconstruction: from shares to masks)
messages     what travels between them
policy       what a device demands of a round, whatever the server says
roster       which devices may form cohorts, signed by a plant's offline key
parameters   quorum, threshold, degree, and their tails
ledger       what a device must never do twice
audit        the device's signed record of a round
certificate  votes on the survivors
cohort       the checked list of a round's devices
graph, shamir, agreement, masks, fixedpoint, signatures, bitmap   the parts

Only `client`, `server`, `masks` and `fixedpoint` need numpy; nothing is imported here, so that a supervisor may use the
others.
"""
