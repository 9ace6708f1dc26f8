"""Analyse models: parameters, multiply-accumulates, time, memory, and where they go.

The same as ``offseg analyze``; ``--help`` tells more.
"""

from offseg_d2.commands.analyze_model import main

if __name__ == "__main__":
    main()
