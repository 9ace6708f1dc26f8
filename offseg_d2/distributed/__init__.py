"""The processes of a run: one, several, several machines, SLURM."""
