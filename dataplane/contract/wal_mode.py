"""Where an append is durable: the word that brokers' and databases' specs share."""

from __future__ import annotations

from enum import StrEnum


class WalMode(StrEnum):
    """Where an append is durable before it is acked (design §5)."""

    REGIONAL_BLOCK = "regional-block"
    BLOCK_EXPRESS = "block+express"
    OBJECT = "object"
    ZONAL_BLOCK = "zonal-block"
