"""A stand-in of diffusers' train_diffusion_dpo.py: its step under its names, with latents and embeddings at hand.

It is run as text: as it stands, and after the diff of the loss's README. Its `args.beta` is no option of the script's
parser, so that ipo ends there in an error; here a test may set it.
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
                encoder_hidden_states = batch["prompt_embeds"].to(weight_dtype).repeat(2, 1, 1)

                model_pred = unet(
                    noisy_model_input,
                    timesteps,
                    encoder_hidden_states,
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
                        encoder_hidden_states,
                    ).sample.detach()
                    ref_loss = F.mse_loss(ref_preds.float(), target.float(), reduction="none").flatten(1).mean(dim=1)
                    ref_losses_w, ref_losses_l = ref_loss.chunk(2)
                    ref_diff = ref_losses_w - ref_losses_l
                    raw_ref_loss = ref_loss.mean()
                accelerator.unwrap_model(unet).enable_adapters()

                logits = ref_diff - model_diff
                if args.loss_type == "sigmoid":
                    loss = -1 * F.logsigmoid(args.beta_dpo * logits).mean()
                elif args.loss_type == "hinge":
                    loss = torch.relu(1 - args.beta_dpo * logits).mean()
                elif args.loss_type == "ipo":
                    losses = (logits - 1 / (2 * args.beta)) ** 2
                    loss = losses.mean()
                else:
                    raise ValueError(f"Unknown loss type {args.loss_type}")

                implicit_acc = (logits > 0).float().mean()
                implicit_acc += 0.5 * (logits == 0).float().mean()

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
