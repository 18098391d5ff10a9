"""What training runs from, on disk: latents, text embeddings and reference errors, filled once and then opened."""
