"""What tests of files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataplane.tsdb.sst import writer


@pytest.fixture(scope="module")
def statistics_in_small_files() -> Iterator[None]:
    """Files of a few rows have statistics of all columns, as those of many rows have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "STATISTICS_ROWS", 0)
        yield
