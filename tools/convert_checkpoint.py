"""Convert a checkpoint of another project to offseg_d2's names.

The same as ``offseg convert``; ``--help`` tells more.
"""

from offseg_d2.commands.convert_checkpoint import main

if __name__ == "__main__":
    main()
