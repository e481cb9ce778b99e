"""A model for MLServer: FP32 as JSON numbers, or a JPEG as BYTES in base64. Runs in MLServer's own interpreter."""

from __future__ import annotations

from common import SIDES, Preparation, open_session
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):  # type: ignore[misc]
    """Named as one of SIDES."""

    async def load(self) -> bool:
        self._session = open_session(self.name)
        self._prepare = Preparation(SIDES[self.name])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = payload.inputs[0]
        if given.datatype == "BYTES":
            values = self._prepare(Base64Codec.decode_input(given)[0])
        else:
            values = NumpyCodec.decode_input(given)
        logits = self._session.run(None, {"input": values})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
