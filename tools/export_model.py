"""Write a trained model as a file for other runtimes, and check it against PyTorch.

The same as ``offseg export``; ``--help`` tells more.
"""

from offseg_d2.commands.export_model import main

if __name__ == "__main__":
    main()
