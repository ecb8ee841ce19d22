"""The processes: `python -m dataplane.tsdb.process --config FILE`, what an agent starts for either side. They put
database, protocols and ring together, and hand them clock, randomness and folders.
"""
