"""Pulumi: Yunhe's own resources over the control plane's plans (`resources.py`, served by `provider.py`), the program
of the stacks (`program.py`), and what a cell needs on a real cloud (`cells/`).

`pulumi` is imported nowhere else. May import `controlplane`; nobody imports it.
"""
