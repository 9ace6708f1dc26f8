"""Draw mIoU against multiply-accumulates or latency, for the models of some files.

The same as ``offseg plot-tradeoff``; ``--help`` tells more.
"""

from offseg_d2.commands.plot_tradeoff import main

if __name__ == "__main__":
    main()
