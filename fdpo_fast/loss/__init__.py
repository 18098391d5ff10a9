"""The preference loss: its options, divergences, public function and eager form."""
