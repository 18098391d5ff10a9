"""A stand-in of a trainer of one's own, in plain torch: it fine-tunes a rectified flow to every image it is given.

It is run as text: as it stands, and after the diff of the loss's README.
"""

import torch


def main(model, optimizer, batches, shift, show):
    u = torch.arange(1, 1001) / 1000
    sigmas = shift * u / (1 + (shift - 1) * u)
    for latents, context, _ in batches:
        noise = torch.randn_like(latents)
        index = (1000 * torch.randn(len(latents)).sigmoid()).long()
        sigma = sigmas[index].view(-1, 1, 1, 1)
        noisy = (1 - sigma) * latents + sigma * noise
        pred = model(noisy, sigmas[index], context)
        loss = (pred - (noise - latents)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        show(loss.item())
