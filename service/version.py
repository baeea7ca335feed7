"""The version of the service; it stands nowhere else."""

VERSION = "0.1.0"
