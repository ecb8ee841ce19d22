"""Balance: which partitions should be led elsewhere, so that no broker carries much more than the others (`policy.py`),
and which brokers are so slow that nothing should be led there (`slowness.py`). Pure decisions over rates, latencies and
ownership; `broker/balancing.py` runs them on the cell's controller and asks the owners to move. No control plane is
needed. Open `policy.py` first. Imported by `dataplane.broker`.
"""
