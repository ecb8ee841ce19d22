"""What both sides of the database agree on: tables, files, batches that an edge signed. Pure values with a JSON form.

Open `tables.py`, then `files.py`. It imports pyarrow and the contract's codec, nothing else of the database.
"""
