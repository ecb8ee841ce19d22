"""Balance: which partitions should be led elsewhere, so that no broker carries much more than the others. Pure
decisions over rates and ownership; `broker/balancing.py` runs them on the cell's controller and asks the owners to
move. No control plane is needed. Open `policy.py` first. Imported by `dataplane.broker`.
"""
