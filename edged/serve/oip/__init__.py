"""Open Inference Protocol v2 over REST as Triton speaks it: codec, models, statistics, repository.

`request`, `tensors` and `reply` are the wire, `models` what can be asked for, `inference` the way of a request through
the engine, `metadata` what the protocol tells about all that, `endpoints` the routes.
"""

from edged.serve.oip.endpoints import ProtocolApi
from edged.serve.oip.models import ModelTable, ServedModel, of_service, without_service
from edged.serve.oip.request import binary_at
from edged.serve.oip.tensors import RequestError, Unsupported

__all__ = [
    "ModelTable",
    "ProtocolApi",
    "RequestError",
    "ServedModel",
    "Unsupported",
    "binary_at",
    "of_service",
    "without_service",
]
