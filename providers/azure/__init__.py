"""Azure: its object store (Blob Storage), managed disks, machines and DNS through Microsoft's SDKs, and the documented
facts of its regions. Open `objects.py` first, then `arm.py`, which disks, machines and DNS stand on; `capabilities.py`
holds the facts that the WAL choice is made from. The SDK is imported only when something is opened, and nowhere else.
Reached through `providers.base.registry`; holds no decision about brokers.
"""
