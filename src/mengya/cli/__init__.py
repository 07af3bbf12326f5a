"""The command line: one command a stage and a few for looking; a stage's own code is imported when it is called."""

from mengya.cli.main import app, main

__all__ = ["app", "main"]
