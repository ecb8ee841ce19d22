"""What crosses the border to the control plane: assignments in, reports out. Versioned, and owned here; the control
plane renders into it.

Open `assignment.py`. Plain frozen dataclasses with a JSON form (`codec.py`); importing this costs nothing. Everybody
may import it; it imports only `providers.base`.
"""
