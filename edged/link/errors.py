"""What can go wrong between a device and its cloudd, sorted by what has to happen next."""

from __future__ import annotations


class LinkError(Exception):
    """Base: the text is a sentence for a person."""


class Unreachable(LinkError):
    """Nobody useful answers there now; another address or a later time may help."""


class WrongAuthority(LinkError):
    """Somebody answers there, but cannot prove to be the cloudd that this device trusts."""


class Refused(LinkError):
    """The real cloudd says no; asking again at once does not help."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    @property
    def sentence(self) -> str:
        """What it means for the device."""
        if self.status == 401:
            return "cloudd does not accept this device's certificate; if that lasts, join again with a new token"
        return f"cloudd refuses this device: {self}; local work goes on"  # in cloudd's words, which say what helps


class WrongContent(LinkError):
    """The real cloudd sent other bytes than it had announced; they were removed."""


class SyncError(LinkError):
    """A model could not be fetched; what was fetched stays for the next try unless it was wrong."""
