"""One lab for the session."""

from tests.running_lab import lab

__all__ = ["lab"]
