"""Queries: one SELECT over one moment of a database's tables, by DuckDB, pruned by time, series and statistics; the
same for both sides. It imports files and schema, and knows neither side.
"""
