"""A process takes over who is trusted and where its peers are, and nothing else, from a file that is replaced."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.contract.codec import to_json
from dataplane.contract.database import DatabaseConfig, DatabaseRole, DatabaseSpec
from dataplane.tsdb.process.config_file import follow_config, read_config
from providers.base.clock import SystemClock
from providers.base.errors import Invalid
from providers.base.files import replace_file
from providers.base.registry import StoreAddress

SPEC = DatabaseSpec("fleet", "fleet-1", DatabaseRole.CLOUD, "a", http_port=1)
CONFIG = DatabaseConfig("cell", StoreAddress("private", "bucket", "site"), SPEC, "/data", "/ready")


def test_trust_and_peers_are_taken_over_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(to_json(CONFIG))

    async def main() -> None:
        seen: asyncio.Queue[DatabaseConfig] = asyncio.Queue()
        following = asyncio.create_task(follow_config(path, read_config(path), seen.put_nowait, clock=SystemClock()))
        path.write_text("half a fi")
        trusting = replace(SPEC, trust={"car": "ab"}, create_tables=True)
        await asyncio.sleep(0.7)
        assert seen.empty() and not following.done(), "what cannot be read changes nothing"
        replace_file(path, to_json(replace(CONFIG, spec=replace(trusting, lease_ms=9), peers={"fleet-2": "h:2"})))
        newest = await asyncio.wait_for(seen.get(), 5)
        assert newest == replace(CONFIG, spec=trusting, peers={"fleet-2": "h:2"})
        replace_file(path, to_json(replace(CONFIG, peers={"fleet-2": "h:3"})))
        assert (await asyncio.wait_for(seen.get(), 5)) == replace(CONFIG, peers={"fleet-2": "h:3"})
        following.cancel()

    asyncio.run(main())


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read: No such file"):
        read_config(tmp_path / "none")
