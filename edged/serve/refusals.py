"""Why the engine does not run a job: each reason as an exception with a sentence for the client."""

from __future__ import annotations

from typing import Literal


class NotRun(Exception):
    """The job was not run and can be tried again after `retry_after_s` whole seconds. HTTP: 503 with Retry-After."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(NotRun):
    """There is no place for the job."""

    def __init__(self, lane: str, limit: int, retry_after_s: int) -> None:
        super().__init__(f"{lane} has {limit} requests waiting already; try again in {retry_after_s} s", retry_after_s)


class Overloaded(NotRun):
    """The job cannot be expected to be answered by its deadline; refused when it came, or when others displaced it."""

    def __init__(self, lane: str, answer_s: float, left_s: float, retry_after_s: int) -> None:
        super().__init__(
            f"{lane} is overloaded: an answer would take {answer_s * 1000:.0f} ms, its deadline is in "
            f"{max(0.0, left_s) * 1000:.0f} ms; try again in {retry_after_s} s",
            retry_after_s,
        )


class DeadlinePassed(NotRun):
    """The job still waited when its deadline, or its own limit for waiting, passed."""

    def __init__(self, lane: str, waited_ms: float, retry_after_s: int = 1) -> None:
        super().__init__(f"{lane} is overloaded: the request waited {waited_ms:.0f} ms, past its deadline")
        self.retry_after_s = retry_after_s


class Elsewhere(NotRun):
    """Not here: the cloud is to be asked now ("offload"), or the sample goes to the disk for later ("spool")."""

    def __init__(self, place: Literal["offload", "spool"], key: object, message: str) -> None:
        """`key`: of the job, as the dispatcher knows it."""
        super().__init__(message)
        self.place, self.key = place, key


class Kept(NotRun):
    """The sample is on the disk, and the cloud answers it when there is time. Not to be sent again. HTTP: 202."""

    def __init__(self, sample_id: str, message: str) -> None:
        super().__init__(message)
        self.sample_id = sample_id


class StaleFrame(NotRun):
    """A newer frame of the same stream came while this one waited."""

    def __init__(self, lane: str) -> None:
        super().__init__(f"{lane}: a newer frame of this stream came")
