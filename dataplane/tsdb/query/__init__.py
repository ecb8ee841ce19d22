"""Queries: one SELECT over one moment of a database's tables, by DuckDB, pruned by time and series; the same for both
sides. It imports files and schema, and knows neither side. Open `engine.py`, then `scan.py` and `merge.py`.
"""
