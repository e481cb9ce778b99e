"""Federated learning from sums: what a device contributes to a round, and how everybody applies the published sum.

Pure numpy: no clock, no randomness, no model format, no file but in `opening`. The sum itself is `edgekit.secagg`'s,
masked or not.

layout       named tensors <-> one flat vector, with a digest; which tensors stay personal
sums         the published sum, the numbers of its round, whole numbers without loss
strategy     the interface: contribution -> sum -> apply; state, what the local training adds to its gradient
averaging    FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi
scaffold     SCAFFOLD
nova         FedNova
robust       medians and trimmed means over sums of disjoint cohorts
heads        closed-form heads in one round, with exact removal of a site
head_jobs    such a head as a job: features' scales, the last layer that the totals make
evaluation   metrics as sums
buffer       asynchronous rounds: the buffer is the cohort
noise        exact Skellam noise from a key stream
accountant   Renyi differential privacy and its conversion
plan         what a job is; which combinations are refused
privacy      clip and distributed noise on the code of a sum
budget       what a device has spent, and when it refuses
opening      a job's rules and first state out of its files
rounds       what a job computes: the numbers of its rounds, what they are bound to, how sums move the state

Everything that follows a published sum uses only +, -, *, / and square root, element by element, on float32 or whole
numbers: IEEE 754 fixes each of them, so every device arrives at the same bits whatever its processor. The last layer
that the totals of a head make is not a part of the state, and may differ in its last bits.
docs/federated.md has the formulas' sources and the limits.
"""
