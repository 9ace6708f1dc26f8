"""Draw docs/idea.png (or another file): what offset learning does to toy features in the plane.

The same as ``offseg draw-idea``; ``--help`` tells more.
"""

from offseg_d2.commands.draw_idea import main

if __name__ == "__main__":
    main()
