"""The command line: parse, call, print. What a command does can all be called from Python."""

from prune2deploy.cli.app import app, main

__all__ = ["app", "main"]
