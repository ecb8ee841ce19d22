"""The manifest and the import: what a bucket full of edges' files may do to a database, and what not."""
