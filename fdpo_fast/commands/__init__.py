"""The command line's commands: their options, and what can be checked before anything heavy is imported."""
