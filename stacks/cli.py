"""`yunhe stack`: the Automation API for those without the habit. The same program as `pulumi up` in `stacks/`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from providers.base.errors import Invalid, Unavailable

PROJECT = "yunhe"
DEFAULT_BACKEND = Path(".yunhe-stacks")

app = typer.Typer(
    help="Deploy with Pulumi: preview, up, refresh, destroy, import.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StackOption = Annotated[str, typer.Option("--stack", help="Name of the stack.")]
SpecOption = Annotated[list[Path] | None, typer.Option("--spec", "-f", help="YAML files; left out, the four clouds.")]
StateDirOption = Annotated[
    Path, typer.Option("--state-dir", envvar="YUNHE_STATE_DIR", help="Where the lab and the control plane live.")
]
LossOption = Annotated[bool, typer.Option("--accept-data-loss", help="Objects that hold data may be removed.")]


@app.command()
def preview(
    stack: StackOption = "lab",
    spec: SpecOption = None,
    state_dir: StateDirOption = Path(".yunhe"),
    accept_data_loss: LossOption = False,
) -> None:
    """Show the plan, and change nothing."""
    _call("preview", _stack(stack, spec, state_dir, accept_data_loss))


@app.command()
def up(
    stack: StackOption = "lab",
    spec: SpecOption = None,
    state_dir: StateDirOption = Path(".yunhe"),
    accept_data_loss: LossOption = False,
) -> None:
    """Show the plan and bring it about."""
    _call("up", _stack(stack, spec, state_dir, accept_data_loss))


@app.command()
def refresh(stack: StackOption = "lab", state_dir: StateDirOption = Path(".yunhe")) -> None:
    """Take over into the stack's state what is applied by now."""
    _call("refresh", _stack(stack, None, state_dir, None))


@app.command()
def destroy(stack: StackOption = "lab", state_dir: StateDirOption = Path(".yunhe")) -> None:
    """Remove all that the stack made. Refused while it holds data, unless its last `up` accepted the loss."""
    _call("destroy", _stack(stack, None, state_dir, None))


@app.command("import")
def import_(
    objects: Annotated[list[str], typer.Argument(metavar="KIND/NAME", help="For example Topic/orders.")],
    stack: StackOption = "lab",
    state_dir: StateDirOption = Path(".yunhe"),
) -> None:
    """Take objects that are applied already into the stack, changing nothing."""
    from pulumi.automation._stack import ImportResource

    one = ImportResource(type="yunhe:index:Spec", name="spec", id=",".join(objects))
    _call("import_resources", _stack(stack, None, state_dir, None), resources=[one], protect=False, generate_code=False)


def _stack(name: str, spec: list[Path] | None, state_dir: Path, accept_data_loss: bool | None) -> Any:
    """The stack, made if it is not there. A setting that is not given stays as it is."""
    try:
        from pulumi import automation
    except ImportError as error:
        raise Unavailable("Pulumi's Python package is not installed", hint="pip install 'yunhe[pulumi]'") from error
    from stacks.program import program

    backend = os.environ.get("PULUMI_BACKEND_URL")
    if backend is None:
        DEFAULT_BACKEND.mkdir(exist_ok=True, mode=0o700)
        backend = f"file://{DEFAULT_BACKEND.absolute()}"
    environment = {
        # The plugin lies beside this interpreter.
        "PATH": os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)]),
        "PULUMI_BACKEND_URL": backend,
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    if not os.environ.keys() & {"PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"}:
        environment["PULUMI_CONFIG_PASSPHRASE"] = ""
    try:
        made = automation.create_or_select_stack(
            name, PROJECT, program, opts=automation.LocalWorkspaceOptions(env_vars=environment)
        )
    except FileNotFoundError as error:
        raise Unavailable("the program pulumi is not on PATH", hint="https://www.pulumi.com/docs/install") from error
    except automation.errors.CommandError as error:
        raise Invalid(_last(str(error))) from error
    settings = {"yunhe:stateDir": str(state_dir.expanduser().absolute())}
    if spec:
        settings["yunhe:spec"] = json.dumps([str(path.absolute()) for path in spec])
    if accept_data_loss is not None:
        settings["yunhe:acceptDataLoss"] = str(accept_data_loss).lower()
    made.set_all_config({name: automation.ConfigValue(value) for name, value in settings.items()})
    return made


def _call(what: str, stack: Any, **options: Any) -> None:
    """One operation of the stack, its output as it comes.

    Raises:
        Unavailable: it failed; the engine has said why.
    """
    from pulumi.automation.errors import CommandError

    try:
        getattr(stack, what)(on_output=lambda text: print(text, flush=True), **options)
    except CommandError as error:
        raise Unavailable(f"{what} did not end well: {_last(str(error))}", hint="run it again to go on") from error


def _last(text: str) -> str:
    """The engine's own sentence in the long text of its failure."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return lines[-1] if lines else text.strip().splitlines()[-1]


def main() -> None:
    """`python -m stacks.cli`."""
    from controlplane.cli import output
    from providers.base.errors import YunheError

    try:
        app(prog_name="yunhe stack")
    except YunheError as error:
        output.error(error.message, error.hint)
        sys.exit(1)


if __name__ == "__main__":
    main()
