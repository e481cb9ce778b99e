"""The room's one error."""


class NetworkError(ValueError):
    """The model cannot learn in this way; the message is a clause that names the node and says why."""
