"""Two tiers: the devices of a site learn in a job between sites, as one client that their site's leader speaks for.

A site's job (`FederatedJob.upper` is set) has the states of the upper job: the same first values, moved by what the
upper job publishes and by nothing else. Its own rounds give the site's sum for one state, and move nothing. The
leader's update in the upper job is the mean of that sum:

    devices --masked sum--> site --mean, weight--> masked sum of sites --> the next state of everybody

With the weights of the plan in both tiers, sum_s W_s mean_s / sum_s W_s is the mean over all devices, as in one tier;
with weights of 1, all sites count the same. The same holds of FedNova's vector, mean d_i / a_i beside mean a_i.
"""

from __future__ import annotations

import msgspec

from edgekit.federated import evaluation
from edgekit.federated.averaging import Adaptive, FedAvg, FedAvgM
from edgekit.federated.errors import FederatedError
from edgekit.federated.evaluation import Figures
from edgekit.federated.head_jobs import OneRoundHead
from edgekit.federated.nova import FedNova, NovaStrategy
from edgekit.federated.plan import Plan
from edgekit.federated.rounds import CohortSum, JobRules
from edgekit.federated.strategy import LocalResult, State
from edgekit.federated.sums import Sum
from edgekit.messages.federation import FederatedJob

SHARED = (
    "service", "model", "package", "labels", "local", "rounds", "evaluate_every", "files",
)  # fmt: skip
"""Fields that a site's job has of the upper one, beside the plan."""


def site_plan(upper: Plan) -> Plan:
    """The plan of a site's job: the upper one's without buckets, which are of sites.

    Raises FederatedError for an upper plan that cannot go through two tiers.
    """
    if not isinstance(upper.strategy, FedAvg | FedAvgM | Adaptive | FedNova):
        kept = "a head" if isinstance(upper.strategy, OneRoundHead) else type(upper.strategy).__name__.lower()
        raise FederatedError(
            f"with {kept} a device keeps what it has in a sum, and no published sum of sites tells it whether that is "
            "in there; through two tiers go fedavg, fedavgm, adaptive and fednova"
        )
    if upper.max_age:
        raise FederatedError("an asynchronous job (max_age) has one tier: a site's sum belongs to one state")
    if upper.privacy is not None:
        raise FederatedError(
            "a job with privacy has one tier: the noise that hides a device within its site is longer than the update "
            "of one client between sites may be"
        )
    return msgspec.structs.replace(upper, robust=None)


def check_site_job(job: FederatedJob) -> None:
    """What devices and leader demand of a site's job beside the rules of any job. Raises FederatedError."""
    upper = job.upper
    if upper is None:
        return
    if upper.upper is not None:
        raise FederatedError("the upper job of a site's job has an upper job itself; there are two tiers, not three")
    for name in SHARED:
        if getattr(job, name) != getattr(upper, name):
            raise FederatedError(f"the site's job has another {name} than the upper job")
    try:
        plan, above = (msgspec.json.decode(one.plan, type=Plan) for one in (job, upper))
    except msgspec.DecodeError as error:
        raise FederatedError(f"the plan of the job cannot be read: {error}") from None
    if plan != site_plan(above):
        raise FederatedError("the site's job has another plan than the upper job")


def moving_rules(rules: JobRules) -> JobRules:
    """The rules whose sums move the state: a site's job has those of the upper job. Raises FederatedError."""
    upper = rules.job.upper
    if upper is None:
        return rules
    check_site_job(rules.job)
    return alike(rules, upper)


def alike(rules: JobRules, job: FederatedJob) -> JobRules:
    """The rules of another job with the tensors of this one. Raises FederatedError."""
    layout = rules.strategy.layout
    return JobRules(job, {slot.name: slot.shape for slot in layout.slots} | dict.fromkeys(layout.personal, (1,)))


def site_result(rules: JobRules, state: State, total: CohortSum) -> LocalResult:
    """What a site's sum is as the update of one client. `rules` are the site job's, which made it.

    The samples are such that `Weighting.of` gives the sum of the devices' weights, or the most that is allowed.
    Raises FederatedError for a sum that cannot be one of this job's rounds.
    """
    strategy = rules.plan.strategy
    if not isinstance(strategy, FedAvg | FedAvgM | Adaptive | FedNova):
        raise FederatedError("a site's job has another strategy than can go through two tiers")
    found = Sum.of_words(total.words, total.survivors, total.config)
    mean, effective = found.mean, 0.0
    if isinstance(rules.strategy, NovaStrategy):
        mean, effective = rules.strategy.site(mean)
    if mean.shape != state.model.shape:
        raise FederatedError(f"the site's sum has {mean.size} values; the model has {state.model.size}")
    return LocalResult(
        delta=mean,
        samples=found.weight * strategy.weighting.samples,
        steps=1,
        learning_rate=0.0,
        effective=effective,
    )


def site_figures(rules: JobRules, total: CohortSum) -> Figures:
    """The confusion and mean loss of all devices of a site, from the sum of an evaluation round. FederatedError."""
    return evaluation.figures(rules.evaluation, Sum.of_words(total.words, total.survivors, total.config))
