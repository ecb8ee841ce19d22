"""Plugins that serve the official Pulumi SDKs over the lab: a program for AWS, Azure, GCP or Aliyun is rehearsed,
unchanged and without an account. They never speak to a real cloud.

Just the resource types of `stacks.cells` are served (`aws.py`, `azure.py`, `gcp.py`, `aliyun.py`); any other is refused
by name. Read `kinds.py` first; `server.py` is the wire. `backings.py`: buckets, volumes and DNS zones are real ones of
the lab. `shelf.py` keeps what the lab has no API for. Nothing outside `stacks` imports this.
"""
