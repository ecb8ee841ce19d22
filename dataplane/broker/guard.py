"""ACLs before the handlers: which resources each request names, which operation it needs on them, and what the answer
says of those that are denied. One table, `RULES`; a request without a rule is not let through.

A rule takes a request apart: what is allowed goes on to the handler as if nothing else had been asked for, and what is
denied is added to its answer afterwards. Produce and Fetch, which come too often, ask `Access` themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dataplane.broker.authorize import Access
from dataplane.broker.guard_admin import ADMIN_RULES
from dataplane.broker.guard_clients import CLIENT_RULES
from dataplane.broker.guard_rules import Rule, Topics
from dataplane.broker.wire import Request
from dataplane.broker.wire_primitives import Malformed

RULES: Mapping[int, Rule] = {**CLIENT_RULES, **ADMIN_RULES}

Handle = Callable[[Request], Awaitable[dict[str, Any] | None]]


async def guarded(request: Request, access: Access, topics: Topics, handle: Handle) -> dict[str, Any] | None:
    """The response to a request of a session with this access: what `handle` answers to what is allowed, and refusals.

    Raises:
        Malformed: there is no rule for this api.
    """
    rule = RULES.get(request.api_key)
    if rule is None:
        raise Malformed(f"api {request.api_key} has no rule of who may use it")
    passage = rule(request.body, access, topics)
    if passage.body is None:
        return passage.finish({})
    fields = await handle(dataclasses.replace(request, body=passage.body))
    return passage.finish(fields) if fields is not None else None
