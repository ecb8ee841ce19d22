"""The Kubernetes operator: custom resources in, the same plans and steps as every other door.

The only importer of kopf. Not here: what the resources look like (`controlplane/api/crds.py`), and how they are stored
(`controlplane/store/kubernetes.py`). Nothing imports this package but the CLI, lazily.
"""
