"""What a cell needs of a cloud, as Pulumi components over the official SDKs: bucket, WAL volumes, identity, network.

Read `decision.py` first: what is created follows from the WAL choice of `yunhe plan`. `cell.py` is the component; each
cloud has a module of its own, and only that one imports the cloud's SDK. Nothing outside `stacks` imports this.
"""

from stacks.cells.cell import CellArgs, CloudCell

__all__ = ["CellArgs", "CloudCell"]
