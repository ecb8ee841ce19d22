"""Google Cloud: its object store (Cloud Storage, through google-cloud-storage) and the documented facts of its regions.
Open `objects.py` first; `capabilities.py` holds the facts that the WAL choice is made from. The SDK is imported only
when a store is opened, and nowhere else. Reached through `providers.base.registry`; holds no decision about brokers.
"""
