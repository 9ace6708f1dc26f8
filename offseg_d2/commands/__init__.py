"""The commands of the program ``offseg``; each has a script of its name in ``tools/``.

A command imports torch and Detectron2 only once its arguments are read, so that ``--help`` and
mistakes are answered at once.
"""
