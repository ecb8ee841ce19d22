"""Commands and their options. Each imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.kafka_login import LoginOption, read_login
from controlplane.cli.output import Format
from controlplane.server.files import StateDir
from providers.base.errors import YunheError
from providers.lab.processes import is_out_of_space

DEFAULT_STATE_DIR = Path(".yunhe")
EXIT_ERROR = 1
EXIT_CHANGES = 2
"""`yunhe plan` found something to do. 0: nothing; 1: error."""

StateDirOption = Annotated[
    Path, typer.Option("--state-dir", envvar="YUNHE_STATE_DIR", help="Where the lab and the control plane live.")
]
FormatOption = Annotated[Format, typer.Option("-o", "--output", help="Form of what is printed.")]
SpecArgument = Annotated[list[Path], typer.Argument(metavar="SPEC", help="YAML files; - reads standard input.")]
PricesOption = Annotated[
    Path | None,
    typer.Option("--prices", envvar="YUNHE_PRICES", help="YAML file of your own prices, laid over the catalogue's."),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait until all is ready.")]

app = typer.Typer(
    name="yunhe",
    help="One control plane for Kafka-compatible brokers and time-series databases on four clouds at once.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
explain_app = typer.Typer(help="Say why.", rich_markup_mode=None)
app.add_typer(explain_app, name="explain")
wal_app = typer.Typer(help="The write-ahead logs of a cluster's brokers.", rich_markup_mode=None)
app.add_typer(wal_app, name="wal")
database_app = typer.Typer(help="Databases and their edges.", rich_markup_mode=None)
app.add_typer(database_app, name="database")


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", envvar="YUNHE_DEBUG", help="Show tracebacks.")] = False,
) -> None:
    # Read by main() from the environment, so that it holds for errors before the command has begun too.
    if debug:
        os.environ["YUNHE_DEBUG"] = "1"


@app.command()
def up(
    spec: SpecArgument,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    timeout: TimeoutOption = 120.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Start the lab, apply SPEC, wait until all is Ready."""
    from controlplane.cli.up import up as run

    run(_state_dir(state_dir), spec, timeout_s=timeout, form=form)


@app.command()
def down(
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    purge: Annotated[bool, typer.Option("--purge", help="Remove all data as well.")] = False,
) -> None:
    """Stop everything that `up` started. Data stays, unless --purge."""
    from controlplane.cli.down import down as run

    run(_state_dir(state_dir), purge=purge)


@app.command()
def status(
    cloud: Annotated[str | None, typer.Argument(help="Only this cloud.")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """What runs, in which state, and why. Works without the control plane, too."""
    from controlplane.cli.status import status as run

    run(_state_dir(state_dir), cloud=cloud, form=form)


@app.command()
def plan(
    spec: SpecArgument,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    prune: Annotated[bool, typer.Option("--prune", help="Remove objects that SPEC does not name.")] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """What applying SPEC would do. Exit code 0: nothing, 2: changes, 1: error."""
    from controlplane.cli.plans import plan as run

    if run(_state_dir(state_dir), spec, prune=prune, form=form):
        raise typer.Exit(EXIT_CHANGES)


@app.command()
def apply(
    spec: Annotated[list[Path] | None, typer.Argument(metavar="SPEC", help="YAML files.")] = None,
    hash_: Annotated[str | None, typer.Option("--plan", help="Apply exactly the plan with this hash.")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    prune: Annotated[bool, typer.Option("--prune", help="Remove objects that SPEC does not name.")] = False,
    timeout: TimeoutOption = 120.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Bring SPEC about, or exactly the plan that was shown."""
    from controlplane.cli.plans import apply as run

    run(_state_dir(state_dir), spec or [], hash_=hash_, prune=prune, timeout_s=timeout, form=form)


@app.command()
def diff(spec: SpecArgument, state_dir: StateDirOption = DEFAULT_STATE_DIR, form: FormatOption = Format.TEXT) -> None:
    """How SPEC differs from what was last applied, field by field."""
    from controlplane.cli.plans import diff as run

    run(_state_dir(state_dir), spec, form=form)


@app.command()
def get(
    kind: Annotated[str, typer.Argument(help="Cloud, BrokerCluster, Topic or Database.")],
    name: Annotated[str | None, typer.Argument(help="Only this object.")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Objects with their status."""
    from controlplane.cli.plans import get as run

    run(_state_dir(state_dir), kind, name, form=form)


@explain_app.command("wal")
def explain_wal(
    cloud: Annotated[str, typer.Argument(help="Name of a Cloud, or a provider.")],
    spec: Annotated[list[Path] | None, typer.Option("--spec", "-f", help="YAML file that has the Cloud.")] = None,
    price: Annotated[bool, typer.Option("--price", help="Only the money of each mode, by part.")] = False,
    latency: Annotated[bool, typer.Option("--latency", help="Only the latency and RTO of each mode.")] = False,
    prices: PricesOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Which WAL mode a cloud gets, why, and what was rejected."""
    from controlplane.cli.explain import wal as run

    run(_state_dir(state_dir), cloud, spec or [], price=price, latency=latency, prices=prices, form=form)


@app.command()
def probe(
    cloud: Annotated[str, typer.Argument(help="Name of a Cloud with `target: real`.")],
    spec: Annotated[list[Path], typer.Option("--spec", "-f", help="YAML file that has the Cloud.")],
    volumes: Annotated[
        bool, typer.Option("--volumes/--no-volumes", help="Also make a small volume and attach it in two zones.")
    ] = True,
    form: FormatOption = Format.TEXT,
) -> None:
    """Find out in the account itself what the cloud's documents leave open; ends with what to write into the Cloud."""
    from controlplane.cli.probe import probe as run

    run(cloud, spec, volumes=volumes, form=form)


@app.command()
def cost(
    spec: SpecArgument,
    prices: PricesOption = None,
    engine: Annotated[str, typer.Option(help="Whose requests are counted: embedded or automq.")] = "embedded",
    ingest: Annotated[float | None, typer.Option(min=0.001, help="MiB/s written, after compression.")] = None,
    fan_out: Annotated[float | None, typer.Option(min=0, help="How often each byte is read.")] = None,
    days: Annotated[float | None, typer.Option(min=0.01, help="Days that records are kept.")] = None,
    zone_local: Annotated[bool, typer.Option("--zone-local", help="Clients use brokers of their own zone.")] = False,
    egress_share: Annotated[
        float | None, typer.Option(min=0, max=100, help="Share of what is written that leaves the cloud; 1: a mirror.")
    ] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """What each cloud of SPEC costs a month in each WAL mode, beside three-replica Kafka."""
    from controlplane.cli.cost import assumptions
    from controlplane.cli.cost import cost as run

    assumed = assumptions(
        engine=engine,
        prices=prices,
        ingest=ingest,
        fan_out=fan_out,
        days=days,
        zone_local=zone_local,
        egress_share=egress_share,
    )
    run(spec, assumed, prices=prices, form=form)


@app.command()
def render(spec: SpecArgument, form: FormatOption = Format.TEXT) -> None:
    """SPEC's engines as Kubernetes manifests; no cluster is asked."""
    from controlplane.cli.render import render as run

    run(spec, form=form)


@app.command()
def schema(
    kind: Annotated[
        str | None, typer.Argument(help="Cloud, BrokerCluster, Topic or Database; all when left out.")
    ] = None,
) -> None:
    """JSON Schema of the specs."""
    from controlplane.cli.plans import schema as run

    run(kind)


@app.command()
def crds(form: FormatOption = Format.TEXT) -> None:
    """The kinds as Kubernetes' CustomResourceDefinitions: yunhe crds | kubectl apply --server-side -f -"""
    from controlplane.cli.kubernetes import crds as run

    run(form)


@app.command()
def manifests(
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Where the operator runs.")] = "yunhe-system",
    image: Annotated[str | None, typer.Option("--image", help="Of the operator.")] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=5, help="Of the operator; one leads.")] = 2,
    engine_namespace: Annotated[
        list[str] | None, typer.Option("--engine-namespace", help="Another one, that engines are made in; repeatable.")
    ] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """The operator for Kubernetes as plain YAML; charts/yunhe is the same for Helm."""
    from controlplane.cli.kubernetes import manifests as run

    run(namespace=namespace, image=image, replicas=replicas, form=form, engine_namespaces=engine_namespace or ())


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def operator(context: typer.Context) -> None:
    """Carry out the custom resources of a Kubernetes namespace, until SIGTERM: docs/operator.md, --help."""
    from controlplane.operator.__main__ import main as run

    raise typer.Exit(run(context.args))


@app.command()
def move(
    partition: Annotated[str, typer.Argument(metavar="TOPIC-PARTITION", help="For example orders-3.")],
    to: Annotated[str, typer.Option("--to", help="Broker: its name or node id.")],
    cloud: Annotated[str | None, typer.Option("--cloud", help="Cloud, where more than one is up.")] = None,
    command_config: LoginOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    timeout: TimeoutOption = 30.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Move a partition to another broker, through Kafka's own protocol; needs no control plane."""
    from controlplane.cli.move import move as run

    login = read_login(command_config)
    run(_state_dir(state_dir), partition, to=to, cloud=cloud, login=login, timeout_s=timeout, form=form)


@wal_app.command("switch")
def wal_switch(
    cluster: Annotated[str, typer.Argument(help="Name of the BrokerCluster.")],
    to: Annotated[str, typer.Option("--to", help="regional-block, block+express, object or zonal-block.")],
    cloud: Annotated[str | None, typer.Option("--cloud", help="The cloud that it has to be in.")] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Only show what would be done, and its price.")] = False,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    timeout: TimeoutOption = 180.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Change a running cluster's WAL mode, broker by broker and with no failed produce. Given again, it goes on."""
    from controlplane.cli.wal import switch as run

    run(_state_dir(state_dir), cluster, to=to, cloud=cloud, only_plan=only_plan, timeout_s=timeout, form=form)


@database_app.command("list")
def database_list(state_dir: StateDirOption = DEFAULT_STATE_DIR, form: FormatOption = Format.TEXT) -> None:
    """All databases: who owns each, and where it is reached."""
    from controlplane.cli.database import list_databases as run

    run(_state_dir(state_dir), form=form)


@database_app.command("show")
def database_show(
    name: Annotated[str, typer.Argument(help="Name of a Database.")],
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """One database with its nodes, or its edges and whether they are trusted."""
    from controlplane.cli.database import show as run

    run(_state_dir(state_dir), name, form=form)


@database_app.command("trust")
def database_trust(
    edge: Annotated[str, typer.Argument(help="Name of an edge that shows another key than before.")],
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Take over the key that an edge shows now, as after its flash was replaced."""
    from controlplane.cli.database import trust as run

    run(_state_dir(state_dir), edge, form=form)


@database_app.command("render")
def database_render(
    name: Annotated[str, typer.Argument(help="Name of a Database with engine greptimedb.")],
    spec: Annotated[list[Path], typer.Option("--spec", "-f", help="YAML file that has it, and its Cloud.")],
    bucket: Annotated[str, typer.Option("--bucket", help="Bucket or container in its Cloud.")],
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Of the object store, if not the cloud's.")] = None,
    kafka: Annotated[list[str] | None, typer.Option("--kafka", help="host:port of brokers that hold its WAL.")] = None,
    etcd: Annotated[list[str] | None, typer.Option("--etcd", help="host:port of etcd, for several nodes.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder to write the files into; else they are shown.")
    ] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """GreptimeDB's own configuration and statements for a Database; nothing is run."""
    from controlplane.cli.database_render import render as run

    run(name, spec, bucket=bucket, endpoint=endpoint, kafka=kafka or [], etcd=etcd or [], to=to, form=form)


_FORWARDED = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=_FORWARDED)
def drill(context: typer.Context) -> None:
    """Inject a fault, and prove that what must hold holds: drill list, drill run NAME."""
    from controlplane.drill.cli import app as drills

    _exit_as(drills(args=context.args, prog_name="yunhe drill", standalone_mode=False))


@app.command(context_settings=_FORWARDED)
def lab(context: typer.Context) -> None:
    """Emulated clouds alone, for any SDK: lab up, down, status, env, fault, meter."""
    from controlplane.cli.lab_commands import app as emulated

    _exit_as(emulated(args=context.args or ["--help"], prog_name="yunhe lab", standalone_mode=False))


@app.command(context_settings=_FORWARDED)
def bench(context: typer.Context) -> None:
    """Benchmarks, each paired with a peer or a limit of this machine."""
    from controlplane.bench.cli import app as benchmarks

    _exit_as(benchmarks(args=context.args, prog_name="yunhe bench", standalone_mode=False))


@app.command(context_settings=_FORWARDED)
def stack(context: typer.Context) -> None:
    """Deploy with Pulumi: stack preview, up, refresh, destroy, import."""
    from importlib.metadata import entry_points

    # By name, since the control plane knows nothing of stacks.
    found = next(iter(entry_points(group="yunhe.commands", name="stack")), None)
    if found is None:
        raise YunheError("stacks are not installed here", hint="pip install 'yunhe[pulumi]'")
    _exit_as(found.load()(args=context.args or ["--help"], prog_name="yunhe stack", standalone_mode=False))


def _exit_as(code: object) -> None:
    """An inner app outside standalone mode returns its exit code instead of raising it."""
    if isinstance(code, int) and code:
        raise typer.Exit(code)


def _state_dir(path: Path) -> StateDir:
    return StateDir(path.expanduser().absolute())


def main(args: list[str] | None = None) -> None:
    """Entry point of the console script. Every error is one sentence and a hint, exit code 1; a traceback only with
    --debug.
    """
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: list[str]) -> int:
    """Run one command; the exit code."""
    try:
        code = app(args=args or ["--help"], prog_name="yunhe", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as ended:
        return ended.exit_code
    except (typer.Abort, KeyboardInterrupt):
        output.error("interrupted", "what was begun goes on; see yunhe status")
        return 130
    except BrokenPipeError:
        output.quiet_pipe()
        return EXIT_ERROR
    except YunheError as error:
        _traceback()
        output.error(error.message, error.hint)
    except typer.TyperException as error:
        # Wrong usage. Typer's own code for it is 2, which here means that a plan has changes.
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "yunhe"
        output.error(error.format_message().rstrip("."), f"{command} --help")
    except OSError as error:
        _traceback()
        if is_out_of_space(error):
            output.error("the disk is full", "make room; nothing is lost that was acked")
        else:
            output.error(f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:
        _traceback()
        output.error(
            f"a bug in yunhe: {type(error).__name__}: {error}", "run it again with --debug, and report what it shows"
        )
    return EXIT_ERROR


def _traceback() -> None:
    if os.environ.get("YUNHE_DEBUG"):
        import traceback

        traceback.print_exc()


if __name__ == "__main__":
    main()
