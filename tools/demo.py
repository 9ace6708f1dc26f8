"""Draw what a model sees: colour overlays of images, videos and cameras.

The same as ``offseg demo``; ``--help`` tells more.
"""

from offseg_d2.commands.demo import main

if __name__ == "__main__":
    main()
