"""The program ``offseg``, which is also ``python -m offseg_d2``."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from offseg_d2.version import __version__

# command -> its module in offseg_d2.commands, what it does
COMMANDS = {
    "train": ("train_net", "train or evaluate a model"),
    "demo": ("demo", "draw what a model sees in images, videos and cameras"),
    "web": ("web", "show trained models in the browser"),
    "check": ("check_dataset", "check the files of datasets"),
    "view": ("view_dataset", "draw a dataset, or the batches that training sees"),
    "analyze": ("analyze_model", "count parameters and operations, measure time and memory"),
    "export": ("export_model", "write a model for other runtimes"),
    "convert": ("convert_checkpoint", "convert a checkpoint of another project"),
    "offsets": ("visualize_offsets", "draw what the offsets do to an image"),
    "plot-runs": ("plot_runs", "draw the curves of several trainings"),
    "plot-tradeoff": ("plot_tradeoff", "draw mIoU against operations or latency"),
    "submit": ("submit_slurm", "submit a training to a SLURM cluster"),
    "make-demo": ("make_demo", "train a small model on drawn scenes, in minutes"),
    "draw-idea": ("draw_idea", "draw the picture of the idea"),
    "setup-env": ("setup_env", "make an environment, or add Detectron2 to this one"),
    "doctor": ("doctor", "versions, CUDA, dataset folders, and what to do about problems"),
}
# The names of the scripts in tools/ are accepted as well.
ALIASES = {module.replace("_", "-"): name for name, (module, _) in COMMANDS.items()}


def usage() -> str:
    """The text of ``offseg --help``."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    head = ("usage: offseg COMMAND ...", "", "Offset learning for semantic segmentation.", "")
    return "\n".join([*head, *lines, "", "offseg COMMAND --help tells more of one."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; its ``main`` sets the exit status.

    Args:
        arguments: of the command line; by default those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"offseg_d2 {__version__}")
        return
    name = words[0].replace("_", "-")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see offseg --help."
        print(f"error: offseg has no command {words[0]!r}{hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"offseg {name}", *words[1:]]  # how argparse names the program
    importlib.import_module(f"offseg_d2.commands.{COMMANDS[name][0]}").main()


if __name__ == "__main__":
    main()
