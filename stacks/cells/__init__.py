"""What a cell needs of a cloud, as Pulumi components over the official SDKs: bucket, WAL volumes, identity, network,
and, when asked for, machines as nodes of Kubernetes.

Read `decision.py` first: what is created follows from the WAL choice of `yunhe plan`; `nodes.py` decides on machines.
`cell.py` is the component; each cloud has a module of its own, and one for its nodes, and only those import the
cloud's SDK. Nothing outside `stacks` imports this.
"""

from stacks.cells.cell import CellArgs, CloudCell
from stacks.cells.nodes import ExistingCluster, KubernetesArgs

__all__ = ["CellArgs", "CloudCell", "ExistingCluster", "KubernetesArgs"]
