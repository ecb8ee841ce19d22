"""AWS: its object stores (S3 and S3 Express, through botocore) and the documented facts of its regions. Open
`objects.py` first; `capabilities.py` holds the facts that the WAL choice is made from. The SDK is imported only when a
store is opened, here and nowhere else. Reached through `providers.base.registry`, and by `providers.private` for
S3-compatible stores; holds no decision about brokers.
"""
