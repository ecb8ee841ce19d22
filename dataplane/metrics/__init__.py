"""What a process counts, as Prometheus reads it: pages of families, and where they are served."""
