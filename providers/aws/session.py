"""One botocore session a process: it keeps the service models that it has read, which are most of what a client costs
(a tenth of a second for S3, most of one for EC2).
"""

from __future__ import annotations

import functools
import threading
from typing import Any

_making = threading.Lock()
"""A session may be used by one thread at a time (boto3 guide, multithreading); its clients by many."""


@functools.cache
def _session() -> Any:
    import botocore.session

    return botocore.session.get_session()


def make_client(service: str, **settings: Any) -> Any:
    """A client; nothing is sent yet.

    Raises:
        botocore.exceptions.BotoCoreError, ValueError: the settings are impossible.
    """
    with _making:
        return _session().create_client(service, **settings)


def credentials() -> Any:
    """What the SDK's own chain finds; None: nothing. It renews them itself."""
    with _making:
        return _session().get_credentials()
