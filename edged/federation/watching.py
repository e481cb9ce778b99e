"""Asks cloudd which federated jobs there are."""

from __future__ import annotations

from edged.link.http import call, open_session
from edgekit.identity import Identity, client_context
from edgekit.messages.federation import WAIT_S, JobList

_MAX_LIST = 1 << 20


async def ask(identity: Identity, url: str, revision: str, now: float) -> JobList:
    """The list, held by cloudd while it is still `revision`. `now`: seconds since the epoch.

    Raises LinkError, IdentityError, OSError.
    """
    context = client_context(identity.authority_path, identity.certificate_path, identity.key_path, now)
    known = f"?known={revision}" if revision.isalnum() else ""
    async with open_session(context) as session:
        path = f"/v1/federation/jobs{known}"
        return await call(session, url, path, JobList, timeout_s=WAIT_S + 15.0, max_bytes=_MAX_LIST)
