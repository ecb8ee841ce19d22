"""SSTs: a table's rows as a Parquet file that any reader of Parquet understands, and that proves itself unharmed."""
