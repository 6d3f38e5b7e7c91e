"""`raygen <command>`: the same functions as the jobs, from a shell.

Exit codes: 0 done; 1 a bug (with its traceback); 2 a wrong config, pool, output or checkpoint; 3 a promise that
cannot be kept (too many bad normals, a run that is incomplete or damaged); 130 stopped by Ctrl-C.
"""

import argparse
import sys
from collections.abc import Sequence

from raygen.errors import PromiseError, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (UserError, PromiseError) as error:
        print(f"raygen: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("raygen: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raygen", description="Learn industrial defects from a few photographs and put them on many."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    generate = commands.add_parser("generate", help="put defects on every normal of a pool")
    generate.add_argument("recipe", nargs="?", help="a TOML file, such as jobs/generate.toml")
    generate.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a key of the recipe, say --set compute.num_actors=4; may be repeated",
    )
    generate.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    generate.set_defaults(run=_generate)

    verify = commands.add_parser("verify", help="check that a run folder holds what its manifest promises")
    verify.add_argument("output", help="the run folder")
    verify.set_defaults(run=_verify)

    demo = commands.add_parser("demo", help="make surfaces, put defects on them, show the sheet")
    demo.add_argument("folder", nargs="?", default="demo", help="where to put everything (default: demo)")
    demo.set_defaults(run=_demo)
    return parser


def _generate(args: argparse.Namespace) -> None:
    from raygen.config import GenerateConfig, load_config
    from raygen.generate.job import dry_run, generate

    config = load_config(GenerateConfig, args.recipe, args.overrides)
    (dry_run if args.dry_run else generate)(config)


def _verify(args: argparse.Namespace) -> None:
    from raygen.generate.verify import verify_run

    manifest = verify_run(args.output)
    print(
        f"{args.output}: {manifest.num_samples:,} samples of {manifest.num_normals:,} normals in "
        f"{len(manifest.shards):,} shards, {sum(manifest.rejects.values()):,} normals rejected: all as promised"
    )


def _demo(args: argparse.Namespace) -> None:
    from raygen.demo import demo

    demo(args.folder)


if __name__ == "__main__":
    sys.exit(main())
