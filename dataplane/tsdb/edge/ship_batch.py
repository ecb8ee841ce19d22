"""A noted batch as it lies in the bucket, and whether what lies there is it.

The bytes follow from what is noted, the files and the key: who makes them twice makes the same. But tables' options may
change in between, which a batch's schemas carry; so what is found under the number is taken for it when this edge
signed it and it has all of the files.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.tsdb.edge.outbox import Outbox
from dataplane.tsdb.edge.ship_state import Shipment
from dataplane.tsdb.schema.files import ShippedBatch, opened, signed
from providers.base.errors import Invalid


def batch_bytes(outbox: Outbox, shipment: Shipment, database: str, key: Ed25519PrivateKey) -> bytes | None:
    """The signed batch, of those of its files that are there still; None: of none."""
    metas = [meta for file_id in shipment.file_ids if (meta := outbox.meta(file_id)) is not None]
    if not metas:
        return None
    schemas = {(meta.table, meta.fingerprint): outbox.schema(meta) for meta in metas}
    files, versions = tuple(metas), tuple(schemas.values())
    return signed(ShippedBatch(database, outbox.edge, shipment.number, shipment.made_ms, files, versions), key)


def is_ours(data: bytes, shipment: Shipment, database: str, edge: str, key: Ed25519PrivateKey) -> bool:
    """Whether that is the batch, of an earlier life or of a request whose answer was lost."""
    try:
        batch = opened(data, key.public_key(), database, edge, shipment.number)
    except Invalid:
        return False
    return set(shipment.file_ids) <= {meta.file_id for meta in batch.files}
