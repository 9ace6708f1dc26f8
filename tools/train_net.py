"""Train or evaluate a model.

The same as ``offseg train``; ``--help`` tells more.
"""

from offseg_d2.commands.train_net import main

if __name__ == "__main__":
    main()
