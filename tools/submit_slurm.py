"""Submit a training or an evaluation to a SLURM cluster; it goes on by itself after preemption.

The same as ``offseg submit``; ``--help`` tells more.
"""

from offseg_d2.commands.submit_slurm import main

if __name__ == "__main__":
    main()
