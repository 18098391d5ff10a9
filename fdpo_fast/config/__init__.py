"""The run configuration: its keys, the rules across sections, and how a file is read."""
