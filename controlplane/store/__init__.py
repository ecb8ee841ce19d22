"""What the control plane remembers: desired objects, what was last applied, status, plans by hash, the journal of
operations, and the number of the newest assignment.

Not here: what any of it means; the store keeps JSON values under keys. Open `base.py` for the protocol, `sqlite.py` for
the one replica's store (etcd and the Kubernetes API come behind the same protocol). Imported by `controlplane.server`,
`apply` and `reconcile`; the CLI opens it read-only when the server is down.
"""
