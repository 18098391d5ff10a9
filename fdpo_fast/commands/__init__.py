"""The commands: their options, and what can be checked before anything heavy is imported.

Every module has `add`, which makes its parsers under those of `fdpo`, and names the function that runs with the
options as its keyword arguments, and in words what is `left` where a signal ends it. Nothing but the standard library
is imported before an option is known to be right, and no work before the configuration is.
"""
