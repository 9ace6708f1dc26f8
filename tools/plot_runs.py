"""Draw loss and mIoU curves of several training runs together.

The same as ``offseg plot-runs``; ``--help`` tells more.
"""

from offseg_d2.commands.plot_runs import main

if __name__ == "__main__":
    main()
