"""HTTP/1.1 without surprises: bounded in bytes and seconds, every refusal is JSON, hostile framing is refused."""

from edged.serve.http.messages import Buffer, HttpError, Request, Response, json_response, problem
from edged.serve.http.server import Handler, HttpServer, Limits

__all__ = ["Buffer", "Handler", "HttpError", "HttpServer", "Limits", "Request", "Response", "json_response", "problem"]
