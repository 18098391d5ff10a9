"""A stand-in of diffusers' train_dreambooth_lora_sd3.py: its step under its names, with latents and embeddings at hand.

It fine-tunes to every image it is given; preferred ones come first in a batch. It is run as text: as it stands, and
after the diff of the loss's README.
"""

import copy

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3


def main(args, accelerator, transformer, optimizer, lr_scheduler, train_dataloader, noise_scheduler, progress_bar):
    weight_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    transformer_lora_parameters = [p for p in transformer.parameters() if p.requires_grad]
    noise_scheduler_copy = copy.deepcopy(noise_scheduler)
    global_step = args.first_step

    def get_sigmas(timesteps, n_dim=4, dtype=torch.float32):
        places = [(noise_scheduler_copy.timesteps == t).nonzero().item() for t in timesteps]
        return noise_scheduler_copy.sigmas[places].to(dtype).view(-1, *[1] * (n_dim - 1))

    for _epoch in range(1):
        transformer.train()
        for _step, batch in enumerate(train_dataloader):
            with accelerator.accumulate([transformer]):
                model_input = torch.cat(batch["latents"].chunk(2, dim=1)).to(weight_dtype)
                prompt_embeds = batch["prompt_embeds"].to(weight_dtype).repeat(2, 1, 1)
                pooled_prompt_embeds = batch["pooled_prompt_embeds"].to(weight_dtype).repeat(2, 1)

                # Sample noise that we'll add to the latents
                noise = torch.randn_like(model_input)
                bsz = model_input.shape[0]

                u = compute_density_for_timestep_sampling(
                    weighting_scheme=args.weighting_scheme, batch_size=bsz, logit_mean=0.0, logit_std=1.0
                )
                indices = (u * noise_scheduler_copy.config.num_train_timesteps).long()
                timesteps = noise_scheduler_copy.timesteps[indices].to(device=model_input.device)

                sigmas = get_sigmas(timesteps, n_dim=model_input.ndim, dtype=model_input.dtype)
                noisy_model_input = (1.0 - sigmas) * model_input + sigmas * noise

                model_pred = transformer(
                    hidden_states=noisy_model_input,
                    timestep=timesteps,
                    encoder_hidden_states=prompt_embeds,
                    pooled_projections=pooled_prompt_embeds,
                    return_dict=False,
                )[0]

                # Follow: Section 5 of https://arxiv.org/abs/2206.00364.
                # Preconditioning of the model outputs.
                if args.precondition_outputs:
                    model_pred = model_pred * (-sigmas) + noisy_model_input

                weighting = compute_loss_weighting_for_sd3(weighting_scheme=args.weighting_scheme, sigmas=sigmas)

                # flow matching loss
                if args.precondition_outputs:
                    target = model_input
                else:
                    target = noise - model_input

                # Compute regular loss.
                loss = torch.mean(
                    (weighting.float() * (model_pred.float() - target.float()) ** 2).reshape(target.shape[0], -1),
                    1,
                )
                loss = loss.mean()

                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(transformer_lora_parameters, args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()

            if accelerator.sync_gradients:
                progress_bar.update(1)
                global_step += 1
                if global_step % args.checkpointing_steps == 0:
                    accelerator.save_state(f"{args.output_dir}/checkpoint-{global_step}")

            logs = {"loss": loss.detach().item(), "lr": lr_scheduler.get_last_lr()[0]}
            progress_bar.set_postfix(**logs)
            accelerator.log(logs, step=global_step)
            if global_step >= args.max_train_steps:
                break
