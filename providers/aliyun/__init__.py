"""Aliyun: its object store (OSS), block volumes and instances (ECS), DNS (Alidns), and the facts of its regions.

Open `objects.py` and `volumes.py` first: `oss_*.py` are parts of the one, `control.py` and `volume_kinds.py` of the
other. `capabilities.py` holds the documented facts that the WAL choice is made from. The SDKs are imported only when
something is opened or first called, and nowhere else. Reached through `providers.base.registry`; holds no decision
about brokers.
"""
