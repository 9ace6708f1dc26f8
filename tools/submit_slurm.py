"""Submit a training or an evaluation to a SLURM cluster; it goes on by itself after preemption.

::

    python tools/submit_slurm.py --config-file configs/ade20k/offseg_t_offset_160k.yaml \\
        --nodes 2 --gpus-per-node 8 --partition PART --time 24:00:00 [KEY VALUE ...]
    python tools/submit_slurm.py ... --dry-run              print the batch script only
    python tools/submit_slurm.py ... --wait                 follow the log until the end
    python tools/submit_slurm.py ... --cluster local        processes of this machine, no SLURM
    python tools/submit_slurm.py ... --eval-only MODEL.WEIGHTS FILE

Configuration, logs, git revision and environment are kept in OUTPUT_DIR/jobs/TIME. See
docs/SLURM.md.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from submitit.core.utils import UncompletedJobError

from offseg_d2.config import ConfigError, load_config
from offseg_d2.distributed.slurm import Resources, follow, submission_script, submit
from offseg_d2.distributed.slurm_job import TrainingJob, make_job_folder, source_revision
from offseg_d2.utils.cli import report_user_errors

SCRIPT = Path(__file__).resolve().with_name("train_net.py")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    for field in dataclasses.fields(Resources):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default)
    parser.add_argument("--array-seeds", type=int, default=0, metavar="N", help="N runs, N seeds")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, no more")
    parser.add_argument("--wait", action="store_true", help="follow the log of the first job")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--script", default=str(SCRIPT), help="another script with main(arguments)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    if args.eval_only and not (cfg.MODEL.WEIGHTS or args.resume):
        raise ConfigError("`MODEL.WEIGHTS` must name the file to evaluate, but is ''.")
    if args.array_seeds < 0:
        raise ConfigError(f"`--array-seeds` must be at least 0, but is {args.array_seeds}.")
    names = [field.name for field in dataclasses.fields(Resources)]
    resources = Resources(**{name: getattr(args, name) for name in names})
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


if __name__ == "__main__":
    try:
        report_user_errors(run, parse_arguments())
    except UncompletedJobError as error:
        sys.exit(f"error: {error}")
