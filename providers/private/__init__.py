"""A private cloud: an S3-compatible object store at an endpoint of one's own, served by the S3 implementation in
`providers/aws/objects.py`, and what may be assumed of such a site. Open `objects.py` first. Reached through
`providers.base.registry`; holds no decision about brokers.
"""
