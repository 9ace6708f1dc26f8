"""Submit a training or an evaluation to a SLURM cluster; it goes on by itself after preemption.

::

    offseg submit --config-file configs/ade20k/offseg_t_offset_160k.yaml \\
        --nodes 2 --gpus-per-node 8 --partition PART --time 24:00:00 [KEY VALUE ...]
    offseg submit ... --dry-run              print the batch script only
    offseg submit ... --wait                 follow the log until the end
    offseg submit ... --cluster local        processes of this machine, no SLURM
    offseg submit ... --eval-only MODEL.WEIGHTS FILE

Configuration, logs, git revision and environment are kept in OUTPUT_DIR/jobs/TIME. See
docs/SLURM.md.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from offseg_d2.utils.cli import report_user_errors

SCRIPT = Path(__file__).resolve().with_name("train_net.py")
# Fields of distributed.slurm.Resources, which explains them and has their defaults.
RESOURCES = {
    "--nodes": int,
    "--gpus-per-node": int,
    "--processes-per-node": int,
    "--time": str,
    "--signal-seconds": int,
    "--partition": str,
    "--constraint": str,
    "--account": str,
    "--comment": str,
    "--cpus-per-task": int,
    "--name": str,
}


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    for flag, kind in RESOURCES.items():
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS)
    parser.add_argument("--array-seeds", type=int, default=0, metavar="N", help="N runs, N seeds")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, no more")
    parser.add_argument("--wait", action="store_true", help="follow the log of the first job")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--script", default=str(SCRIPT), help="another script with main(arguments)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser


def run(args: argparse.Namespace) -> None:
    from offseg_d2.config import ConfigError, load_config
    from offseg_d2.distributed.slurm import Resources, follow, submission_script, submit
    from offseg_d2.distributed.slurm_job import TrainingJob, make_job_folder, source_revision

    cfg = load_config(args.config_file, args.opts)
    if args.eval_only and not (cfg.MODEL.WEIGHTS or args.resume):
        raise ConfigError("`MODEL.WEIGHTS` must name the file to evaluate, but is ''.")
    if args.array_seeds < 0:
        raise ConfigError(f"`--array-seeds` must be at least 0, but is {args.array_seeds}.")
    names = [flag.removeprefix("--").replace("-", "_") for flag in RESOURCES]
    resources = Resources(**{name: getattr(args, name) for name in names if name in args})
    if args.dry_run:
        print(submission_script(Path(cfg.OUTPUT_DIR).absolute() / "jobs" / "TIME", resources))
        return
    folder = make_job_folder(cfg.OUTPUT_DIR, cfg, sys.argv)
    arguments = ["--config-file", str(folder / "config.yaml")]
    flags = {"--resume": args.resume, "--eval-only": args.eval_only}
    arguments += [flag for flag, given in flags.items() if given]
    first = max(cfg.SEED, 0)
    changes = [
        ["SEED", str(seed), "OUTPUT_DIR", os.path.join(cfg.OUTPUT_DIR, f"seed_{seed}")]
        for seed in range(first, first + args.array_seeds)
    ] or [[]]
    revision = source_revision()
    todo = [TrainingJob(args.script, (*arguments, *change), revision) for change in changes]
    jobs = submit(folder, resources, todo, cluster=args.cluster)
    print(f"Submitted {', '.join(job.job_id for job in jobs)}; logs in {folder}", flush=True)
    if args.wait:
        print(f"Result: {follow(jobs[0], lambda text: print(text, end='', flush=True))}")


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    try:
        report_user_errors(run, args)
    except RuntimeError as error:
        from submitit.core.utils import UncompletedJobError

        if not isinstance(error, UncompletedJobError):
            raise
        sys.exit(f"error: {error}")
