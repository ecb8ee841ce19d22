"""SELECT over SSTs and memtables, of either side: which files may hold rows that are asked for, what wins where rows
meet, and DuckDB over the rest.

It imports `sst` and `schema`.
"""
