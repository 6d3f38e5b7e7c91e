"""`raygen <command>`: the same functions as the jobs, from a shell.

Exit codes: 0 done, or nothing to do; 1 a bug (with its traceback); 2 a wrong config, pool, output or checkpoint;
3 a promise that cannot be kept (too many bad normals, a gate's shortfall, an incomplete or damaged run, an audit
that fails); 4 another refresh works on the table, or took it over; 5 storage did not answer: the same command goes
on later; 130 stopped by Ctrl-C, 143 by `ray job stop` or another SIGTERM.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from raygen.errors import LeaseError, PromiseError, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        with _stopped_by_sigterm():
            args.run(args)
    except (UserError, PromiseError, LeaseError) as error:
        print(f"raygen: {error}", file=sys.stderr)
        return error.exit_code
    except _Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


_STOPPED = "raygen: stopped; the same command goes on from here"


class _Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, but for the exit code."""


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Lets a command end by SIGTERM as by Ctrl-C. It says so at once: who sends it may not wait for the end."""

    def stop(_: int, __: FrameType | None) -> None:
        os.write(2, f"{_STOPPED}\n".encode())  # a print may be under way, and would not take another
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


_EXAMPLES = {
    "train": "dtgan-128.toml",
    "generate": "generate.toml",
    "evaluate": "evaluate.toml",
    "refresh": "refresh.toml",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raygen", description="Learn industrial defects from a few photographs and put them on many."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    for name, run, what in (
        ("train", _train, "learn defects from a defect set"),
        ("generate", _generate, "put defects on every normal of a pool"),
        ("evaluate", _evaluate, "say how good a run's samples are, and whether they help a classifier"),
        ("refresh", _refresh, "generate for what changed in a pool, audit it, publish it to a table"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("recipe", nargs="?", help=f"a TOML file, such as jobs/{_EXAMPLES[name]}")
        command.add_argument(
            "--set",
            dest="overrides",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="set a key of the recipe, say --set seed=1; may be repeated",
        )
        command.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
        command.set_defaults(run=run)
        if name == "refresh":
            command.add_argument(
                "--policy",
                choices=("regenerate", "new-only"),
                help="what to do with samples of another checkpoint or recipe",
            )

    inspect = commands.add_parser(
        "inspect", help="show what raygen sees of a defect set or a pool, the suspicious first"
    )
    inspect.add_argument("place", help="a defect set or a pool: a folder, an s3:// prefix, a manifest")
    inspect.add_argument("--output", default="inspection", help="the folder to write (default: inspection)")
    inspect.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    inspect.set_defaults(run=_inspect)

    back = commands.add_parser("rollback", help="publish the content of an older version of a table again")
    back.add_argument("table", help="the table's folder")
    back.add_argument("--to", type=int, metavar="VERSION", help="default: the one before what it shows now")
    back.set_defaults(run=_rollback)

    vacuum = commands.add_parser("vacuum", help="delete the files of a table that no kept version uses")
    vacuum.add_argument("table", help="the table's folder")
    vacuum.add_argument("--keep", type=int, default=7, help="so many versions (default: 7)")
    vacuum.add_argument(
        "--hours",
        type=float,
        default=168,
        help="and those that were the latest in so many hours (default: 168)",
    )
    vacuum.add_argument("--dry-run", action="store_true", help="say how many, and stop")
    vacuum.set_defaults(run=_vacuum)

    verify = commands.add_parser("verify", help="check that a run folder holds what its manifest promises")
    verify.add_argument("output", help="the run folder")
    verify.set_defaults(run=_verify)

    reproduce = commands.add_parser(
        "reproduce", help="make a sample again from its row, and compare the bytes"
    )
    reproduce.add_argument("output", help="the run folder")
    reproduce.add_argument("sample_id", help="a sample of it")
    reproduce.add_argument("--save", metavar="FOLDER", help="where to put the image and the mask")
    reproduce.set_defaults(run=_reproduce)

    export = commands.add_parser("export", help="copy a checkpoint for handing on: half precision, no state")
    export.add_argument("checkpoint", help="a checkpoint, or a training's folder for its best one")
    export.add_argument("output", help="the folder to write")
    export.add_argument("--defects", metavar="URI", help="where the defect set is now, if it has moved")
    export.set_defaults(run=_export)

    defects = commands.add_parser(
        "defects", help="write a run's defects as a defect set, for `train` to learn from"
    )
    defects.add_argument("run_folder", metavar="run", help="the run folder")
    defects.add_argument("output", help="the folder to write")
    defects.set_defaults(run=_defects)

    surfaces = commands.add_parser("surfaces", help="render a procedural defect set to try `train` on")
    surfaces.add_argument("output", help="a folder or an s3:// prefix")
    surfaces.add_argument("--normals", type=int, default=200, help="of each product (default: 200)")
    surfaces.add_argument("--defects", type=int, default=100, help="of each product and type (default: 100)")
    surfaces.add_argument("--size", type=int, default=64, help="of an image in pixels (default: 64)")
    surfaces.add_argument("--seed", type=int, default=0)
    surfaces.set_defaults(run=_surfaces)

    demo = commands.add_parser("demo", help="make surfaces, put defects on them, show the sheet")
    demo.add_argument("folder", nargs="?", default="demo", help="where to put everything (default: demo)")
    demo.set_defaults(run=_demo)
    return parser


def _train(args: argparse.Namespace) -> None:
    from raygen.train.config import load_train_config
    from raygen.train.job import dry_run, train

    config = load_train_config(args.recipe, args.overrides)
    (dry_run if args.dry_run else train)(config)


def _generate(args: argparse.Namespace) -> None:
    from raygen.config import load_config
    from raygen.generate.config import GenerateConfig
    from raygen.generate.job import dry_run, generate

    config = load_config(GenerateConfig, args.recipe, args.overrides)
    (dry_run if args.dry_run else generate)(config)


def _evaluate(args: argparse.Namespace) -> None:
    from raygen.config import load_config
    from raygen.evaluate.config import EvaluateConfig
    from raygen.evaluate.job import dry_run, evaluate

    config = load_config(EvaluateConfig, args.recipe, args.overrides)
    (dry_run if args.dry_run else evaluate)(config)


def _refresh(args: argparse.Namespace) -> None:
    from raygen.config import load_config
    from raygen.publish.config import RefreshConfig
    from raygen.publish.refresh import dry_run, refresh

    overrides = [*args.overrides, f"policy={args.policy}"] if args.policy else args.overrides
    config = load_config(RefreshConfig, args.recipe, overrides)
    (dry_run if args.dry_run else refresh)(config)


def _inspect(args: argparse.Namespace) -> None:
    from raygen.config import load_config
    from raygen.inspection.config import InspectConfig
    from raygen.inspection.job import inspect

    places = [f"defects={args.place}", f"output={args.output}"]
    inspect(load_config(InspectConfig, None, [*args.overrides, *places]))


def _rollback(args: argparse.Namespace) -> None:
    from raygen.publish.versions import rollback

    rollback(args.table, args.to)


def _vacuum(args: argparse.Namespace) -> None:
    from raygen.publish.versions import vacuum

    vacuum(args.table, args.keep, args.hours, args.dry_run)


def _verify(args: argparse.Namespace) -> None:
    from raygen.generate.verify import verify_run

    manifest = verify_run(args.output)
    print(
        f"{args.output}: {manifest.num_samples:,} samples of {manifest.num_normals:,} normals in "
        f"{len(manifest.shards):,} shards, {sum(manifest.rejects.values()):,} normals rejected: all as promised"
    )


def _reproduce(args: argparse.Namespace) -> None:
    from raygen.generate.reproduce import reproduce

    reproduce(args.output, args.sample_id, args.save)


def _export(args: argparse.Namespace) -> None:
    from raygen.checkpoint import export_checkpoint

    checkpoint = export_checkpoint(args.checkpoint, args.output, args.defects)
    print(f"{args.output}: {checkpoint.config.images_seen:,} images seen, digest {checkpoint.digest[:16]}…")


def _defects(args: argparse.Namespace) -> None:
    from raygen.generate.defect_set import write_defect_set

    write_defect_set(args.run_folder, args.output)


def _surfaces(args: argparse.Namespace) -> None:
    from raygen import images, storage, surfaces

    try:
        for name, pixels in surfaces.defect_set(args.normals, args.defects, args.seed, args.size):
            # A mask has no axis of channels.
            storage.put(
                storage.join(args.output, name), images.encode_png(pixels.reshape(args.size, args.size, 1))
            )
    except ValueError as error:
        raise UserError(f"surfaces: {error}") from None


def _demo(args: argparse.Namespace) -> None:
    from raygen.demo import demo

    demo(args.folder)


if __name__ == "__main__":
    sys.exit(main())
