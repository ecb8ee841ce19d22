"""SSTs: rows of one table, sorted by series and time, as one Parquet file with page checksums that DuckDB, DataFusion
and pandas read.

Imported by both sides of the database and by the query engine; it imports `dataplane.tsdb.schema`.
"""
