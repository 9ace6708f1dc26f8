"""Check the files of datasets: every image and label map is read, every fault is reported.

The same as ``offseg check``; ``--help`` tells more.
"""

from offseg_d2.commands.check_dataset import main

if __name__ == "__main__":
    main()
