"""A real cloud as the subject: `make conformance CLOUD=aws` with an account, a bucket and its region.

    YUNHE_CLOUD                     aliyun, azure, gcp, aws or private
    YUNHE_CONFORMANCE_BUCKET        a bucket (Azure: container) that exists already; it is never created or removed
    YUNHE_CONFORMANCE_REGION        where it is
    YUNHE_CONFORMANCE_ENDPOINT      optional: another endpoint than the cloud's own (private: needed)
    YUNHE_CONFORMANCE_CREDENTIALS   optional: a reference as `StoreAddress.credentials_file` takes it; else the SDK's
                                    own chain finds them (environment, profile, role, workload identity)

Every key of a run begins with its own id, `yunhe-conformance-<32 hex digits>/`. Nothing else is written or removed, and
all of it is removed again after each test and at the end, whatever became of the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from providers.base.clock import SystemRng
from providers.base.objects import ObjectStore
from providers.base.registry import PROVIDERS, StoreAddress
from tests.conformance.stores import KINDS, Judge, Kind

RUN = f"yunhe-conformance-{SystemRng().token()}/"

_NAMES = {
    "bucket": "YUNHE_CONFORMANCE_BUCKET",
    "region": "YUNHE_CONFORMANCE_REGION",
    "endpoint": "YUNHE_CONFORMANCE_ENDPOINT",
    "credentials_file": "YUNHE_CONFORMANCE_CREDENTIALS",
}


class _Account:
    """`Judge` over an account: there is nothing to start, and nothing to end."""

    def __init__(self, address: StoreAddress) -> None:
        self._address = address

    def address(self, bucket: str, provider: str | None = None) -> StoreAddress:
        return self._address

    def close(self) -> None:
        pass


def kind_of_environment(environment: Mapping[str, str]) -> Kind:
    """The kind that the environment describes.

    Raises:
        ValueError: an unknown cloud, no bucket, no region.
    """
    cloud = environment["YUNHE_CLOUD"]
    if cloud not in PROVIDERS:
        raise ValueError(f"YUNHE_CLOUD is one of {', '.join(PROVIDERS)}, not {cloud!r}")
    found = {field: environment.get(name) or None for field, name in _NAMES.items()}
    bucket, region = found["bucket"], found["region"]
    if bucket is None or region is None:
        raise ValueError(f"a real cloud's run needs {_NAMES['bucket']} and {_NAMES['region']}")
    address = StoreAddress(cloud, bucket, region, found["endpoint"], found["credentials_file"])

    def start(folder: Path) -> Judge:
        return _Account(address)

    express = bucket.endswith("--x-s3")
    like = next(kind for kind in KINDS if kind.provider == cloud and kind.express == express)
    return Kind(
        f"real-{cloud}",
        None,
        cloud,
        bucket,
        appends=like.appends,
        express=express,
        judge=start,
        gaps=like.gaps,
        prefix=RUN,
        creates_bucket=False,
    )


async def sweep(store: ObjectStore, prefix: str) -> None:
    """Remove all that this run has put under `prefix`, which must be its own."""
    assert prefix.startswith(RUN), prefix
    await store.collect_uploads(prefix, 0)
    while rows := await store.list(prefix, limit=1000):
        await store.delete([row.key for row in rows])
