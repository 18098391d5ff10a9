"""What a denoiser predicts, and how much of a policy's effect on that an export keeps."""

import copy

import torch
from diffusers import UNet2DConditionModel


@torch.no_grad()
def output(unet):
    """The prediction of a UNet, in float32, always for the same input."""
    unet = copy.deepcopy(unet).float().eval()
    draw = torch.Generator().manual_seed(0)
    config = unet.config
    inputs = {"encoder_hidden_states": torch.randn(4, 77, config.cross_attention_dim, generator=draw)}
    if width := config.projection_class_embeddings_input_dim:
        pooled = torch.randn(4, width - 6 * config.addition_time_embed_dim, generator=draw)
        inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.full((4, 6), 64.0)}
    return unet(torch.randn(4, 4, 16, 16, generator=draw), torch.tensor([5, 300, 600, 990]), **inputs).sample


def unet_of(folder):
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)


def share(exported, policy, start):
    """The share of a policy's effect on the output that an export keeps."""
    exported, policy, start = map(output, (exported, policy, start))
    return 1 - ((exported - policy).norm() / (policy - start).norm()).item()
