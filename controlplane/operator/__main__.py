"""`python -m controlplane.operator`: the operator, until SIGTERM. `yunhe operator` is the same."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from providers.base.errors import Invalid, YunheError
from providers.base.logs import say_error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m controlplane.operator", description=__doc__)
    parser.add_argument("--namespace", default="yunhe-system", help="whose custom resources it carries out")
    parser.add_argument("--kubeconfig", type=Path, help="left out: as the pod that it runs in")
    parser.add_argument(
        "--state-dir", type=Path, default=Path(os.environ.get("YUNHE_STATE_DIR", ".yunhe")), help="for target: lab"
    )
    parser.add_argument("--host", default="0.0.0.0", help="address that health and webhook are served on")
    parser.add_argument("--health-port", type=int, default=8080)
    parser.add_argument("--webhook-port", type=int, default=9443)
    parser.add_argument(
        "--webhook", choices=("true", "false"), default="true", help="judge changes before they are kept"
    )
    parser.add_argument("--approve", action="store_true", help="plans wait for the annotation yunhe.io/approve")
    parser.add_argument("--lease-seconds", type=float, default=15.0, help="silence after which another replica leads")
    args = parser.parse_args(arguments)

    # Here, so that --help needs no extra.
    try:
        from controlplane.operator.lease import LeaseSettings
        from controlplane.operator.run import Options, operate
    except ModuleNotFoundError as error:
        missing = Invalid(f"the operator needs the package {error.name}", hint="pip install 'yunhe[operator]'")
        say_error(missing)
        return 1

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("azure", "botocore", "urllib3", "google", "oss2", "kubernetes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        options = Options(
            namespace=args.namespace,
            state_dir=args.state_dir.absolute(),
            kubeconfig=args.kubeconfig,
            host=args.host,
            health_port=args.health_port,
            webhook_port=args.webhook_port,
            webhook=args.webhook == "true",
            approve=args.approve,
            lease=LeaseSettings.lasting(1000.0 * args.lease_seconds),
        )
        return asyncio.run(operate(options))
    except YunheError as error:
        say_error(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
