"""Draw what the offsets of a trained model do to an image.

The same as ``offseg offsets``; ``--help`` tells more.
"""

from offseg_d2.commands.visualize_offsets import main

if __name__ == "__main__":
    main()
