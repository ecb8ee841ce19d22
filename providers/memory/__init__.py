"""Object stores and block volumes inside one process, for the seeded simulation: what the clouds promise and how they
fail, under a clock and randomness that are handed in. Not a place to keep data. Open `faults.py` first: the world that
processes share and how a request fares in it. Tests may import this; the data plane and control plane never do.
"""
