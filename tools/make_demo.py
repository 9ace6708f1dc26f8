"""Train a small OffSeg on scenes drawn by the project, evaluate it, draw what it sees.

The same as ``offseg make-demo``; ``--help`` tells more.
"""

from offseg_d2.commands.make_demo import main

if __name__ == "__main__":
    main()
