"""The shared-memory ring by which applications on the same machine hand rows to an edge database: its layout, a reader
and a writer. The Rust SDK in `sdk/` writes the same layout, which `docs/ring.md` describes byte for byte.

Begin with `layout.py`; `server.py` is what an edge process starts, `client.py` what a Python application uses.
"""
