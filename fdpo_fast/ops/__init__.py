"""Bindings to the compiled code; every operator has an eager torch form beside it."""
