"""`python -m dataplane.broker --config FILE`: what an agent starts. `process.py` has all of it."""

import sys

# kio builds property-test strategies for every schema it loads when hypothesis can be imported, as it can where this
# project is developed: more than a second of start-up a broker, for nothing.
sys.modules.setdefault("hypothesis", None)  # type: ignore[arg-type]

from dataplane.broker.process import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
