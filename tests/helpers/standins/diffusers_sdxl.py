"""A stand-in of diffusers' train_diffusion_dpo_sdxl.py: its step under its names, with latents and embeddings at hand.

It is run as text: as it stands, and after the README's diff.
"""

import torch
import torch.nn.functional as F


def main(args, accelerator, unet, optimizer, lr_scheduler, train_dataloader, noise_scheduler, progress_bar):
    weight_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    params_to_optimize = [p for p in unet.parameters() if p.requires_grad]
    global_step = args.first_step

    unet.train()
    for _epoch in range(1):
        for _step, batch in enumerate(train_dataloader):
            with accelerator.accumulate(unet):
                latents = torch.cat(batch["latents"].chunk(2, dim=1)).to(weight_dtype)
                noise = torch.randn_like(latents[: len(latents) // 2]).repeat(2, 1, 1, 1)
                timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents) // 2,)).repeat(2)
                noisy_model_input = noise_scheduler.add_noise(latents, noise, timesteps)
                size = args.resolution
                add_time_ids = torch.tensor([[size, size, 0, 0, size, size]], dtype=weight_dtype)
                add_time_ids = add_time_ids.repeat(len(latents), 1)
                prompt_embeds = batch["prompt_embeds"].to(weight_dtype).repeat(2, 1, 1)
                pooled_prompt_embeds = batch["pooled_prompt_embeds"].to(weight_dtype).repeat(2, 1)

                model_pred = unet(
                    noisy_model_input,
                    timesteps,
                    prompt_embeds,
                    added_cond_kwargs={"time_ids": add_time_ids, "text_embeds": pooled_prompt_embeds},
                ).sample

                if noise_scheduler.config.prediction_type == "epsilon":
                    target = noise
                else:
                    target = noise_scheduler.get_velocity(latents, noise, timesteps)

                # The policy's errors.
                model_losses = F.mse_loss(model_pred.float(), target.float(), reduction="none")
                model_losses = model_losses.flatten(1).mean(dim=1)
                model_losses_w, model_losses_l = model_losses.chunk(2)
                raw_model_loss = (model_losses_w.mean() + model_losses_l.mean()) / 2
                model_diff = model_losses_w - model_losses_l

                # The reference is the same network without its adapters.
                accelerator.unwrap_model(unet).disable_adapters()
                with torch.no_grad():
                    ref_preds = unet(
                        noisy_model_input,
                        timesteps,
                        prompt_embeds,
                        added_cond_kwargs={"time_ids": add_time_ids, "text_embeds": pooled_prompt_embeds},
                    ).sample
                    ref_loss = F.mse_loss(ref_preds.float(), target.float(), reduction="none").flatten(1).mean(dim=1)
                    ref_losses_w, ref_losses_l = ref_loss.chunk(2)
                    ref_diff = ref_losses_w - ref_losses_l
                    raw_ref_loss = ref_loss.mean()
                accelerator.unwrap_model(unet).enable_adapters()

                scale_term = -args.beta_dpo / 2
                inside_term = scale_term * (model_diff - ref_diff)
                loss = -1 * F.logsigmoid(inside_term).mean()

                implicit_acc = (inside_term > 0).float().mean()
                implicit_acc += 0.5 * (inside_term == 0).float().mean()

                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(params_to_optimize, args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()

            if accelerator.sync_gradients:
                progress_bar.update(1)
                global_step += 1
                if global_step % args.checkpointing_steps == 0:
                    accelerator.save_state(f"{args.output_dir}/checkpoint-{global_step}")

            logs = {
                "loss": loss.detach().item(),
                "raw_model_loss": raw_model_loss.detach().item(),
                "ref_loss": raw_ref_loss.detach().item(),
                "implicit_acc": implicit_acc.detach().item(),
                "lr": lr_scheduler.get_last_lr()[0],
            }
            progress_bar.set_postfix(**logs)
            accelerator.log(logs, step=global_step)
            if global_step >= args.max_train_steps:
                break
