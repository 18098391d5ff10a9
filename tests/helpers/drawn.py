"""What pipelines draw."""

import torch


def draw(folder, lora=None):
    """An image of the pipeline at `folder`, as latents; always from the same noise and caption."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    if lora:
        pipeline.load_lora_weights(lora, weight_name="pytorch_lora_weights.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    # a tiny VAE with random weights brings all images close together: look at the latents
    return pipeline(
        "a cat", height=64, width=64, generator=generator, num_inference_steps=3, output_type="latent"
    ).images
