"""What a cloud can do, and nothing about brokers.

Open `base/` first: the contracts (`ObjectStore`, `BlockDevice`, `BlockVolumes`), the facts about a cloud
(`Capabilities`), the errors
and the clock. Each cloud's folder implements them over that cloud's own SDK, which is imported nowhere else and only
when a store is opened. `memory/` implements them in-process with fault injection, for simulation; `lab/` serves the
clouds'
wire protocols on loopback. Anyone may import this package; it imports neither `dataplane` nor `controlplane`.
"""
