"""Pulumi programs and component resources that create what a cell needs on a real cloud, and Kubernetes manifests.

Empty so far: the border is drawn before the first program, so that `pulumi` is imported nowhere else. May import
`controlplane`; nobody imports it.
"""
