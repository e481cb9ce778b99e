"""Why federated learning refuses something."""


class FederatedError(ValueError):
    """Tensors, settings or sums that do not fit together; the message says which and what to do."""


class BudgetSpent(FederatedError):
    """The device's privacy budget does not allow this round; nothing was charged and nothing may be sent."""
