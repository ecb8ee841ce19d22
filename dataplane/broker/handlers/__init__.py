"""What each Kafka API does, by concern: `records.py` (produce, fetch, offsets), `metadata.py`, `groups.py`, `admin.py`.

A handler takes kio's request entity and returns a dict with the fields of the response, for all versions. Errors inside
a response are the protocol's codes; an exception that leaves a handler is a bug
and becomes UNKNOWN_SERVER_ERROR by closing the connection. Imported by `dispatch.py` alone.
"""
