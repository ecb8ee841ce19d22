"""A broker's loss, handled by the data plane alone: detect, decide who takes over, fence, recover, hand out.

Open `detect.py` (pure: who is lost, who stands for controller), `takeover.py` (pure: who recovers, what is committed,
who owns what then), `run.py` (does it). The control plane is not
asked. Imported by `dataplane.broker`.
"""
