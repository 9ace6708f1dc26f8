"""Draw a dataset: ground truth over its images, or the batches that training sees.

The same as ``offseg view``; ``--help`` tells more.
"""

from offseg_d2.commands.view_dataset import main

if __name__ == "__main__":
    main()
