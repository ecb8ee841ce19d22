"""The Kubernetes operator: the one package that imports kopf. It decides nothing itself: plans and manifests come from
`controlplane.plan`, and what it does to a Kubernetes cluster is in `engines.py`.
"""
