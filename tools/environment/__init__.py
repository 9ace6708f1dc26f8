"""The parts of ``tools/setup_env.py``. Standard library only: nothing is installed yet."""
