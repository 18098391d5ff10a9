"""A stand-in of Diffusion-DPO's train.py: its step under its names, with latents and embeddings at hand.

It is run as text: as it stands, and after the diff of the loss's README.
"""

import torch
import torch.nn.functional as F


def main(args, accelerator, unet, ref_unet, optimizer, lr_scheduler, train_dataloader, noise_scheduler, progress_bar):
    weight_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    ref_unet.to(accelerator.device, dtype=weight_dtype)
    global_step = args.first_step

    for _epoch in range(1):
        unet.train()
        train_loss = 0.0
        implicit_acc_accumulated = 0.0
        for _step, batch in enumerate(train_dataloader):
            with accelerator.accumulate(unet):
                latents = torch.cat(batch["latents"].chunk(2, dim=1)).to(weight_dtype)
                noise = torch.randn_like(latents)
                timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),))
                timesteps = timesteps.chunk(2)[0].repeat(2)
                noise = noise.chunk(2)[0].repeat(2, 1, 1, 1)
                noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
                encoder_hidden_states = batch["prompt_embeds"].to(weight_dtype).repeat(2, 1, 1)
                target = noise

                model_batch_args = (noisy_latents, timesteps, encoder_hidden_states)
                added_cond_kwargs = None
                model_pred = unet(*model_batch_args, added_cond_kwargs=added_cond_kwargs).sample
                if args.train_method == "sft":
                    loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
                elif args.train_method == "dpo":
                    # fmt: off
                    model_losses = (model_pred - target).pow(2).mean(dim=[1,2,3])
                    # fmt: on
                    model_losses_w, model_losses_l = model_losses.chunk(2)
                    raw_model_loss = (model_losses_w.mean() + model_losses_l.mean()) / 2
                    model_diff = model_losses_w - model_losses_l

                    with torch.no_grad():
                        ref_pred = ref_unet(*model_batch_args, added_cond_kwargs=added_cond_kwargs).sample.detach()
                        ref_losses = (ref_pred - target).square().flatten(1).mean(dim=1)
                        ref_losses_w, ref_losses_l = ref_losses.chunk(2)
                        ref_diff = ref_losses_w - ref_losses_l
                        raw_ref_loss = ref_losses.mean()

                    scale_term = -args.beta_dpo / 2
                    inside_term = scale_term * (model_diff - ref_diff)
                    implicit_acc = (inside_term > 0).sum().float() / inside_term.size(0)
                    loss = -1 * F.logsigmoid(inside_term).mean()

                avg_loss = accelerator.gather(loss.repeat(args.train_batch_size)).mean()
                train_loss += avg_loss.item() / args.gradient_accumulation_steps
                if args.train_method == "dpo":
                    avg_model_mse = accelerator.gather(raw_model_loss.repeat(args.train_batch_size)).mean().item()
                    avg_ref_mse = accelerator.gather(raw_ref_loss.repeat(args.train_batch_size)).mean().item()
                    avg_acc = accelerator.gather(implicit_acc).mean().item()
                    implicit_acc_accumulated += avg_acc / args.gradient_accumulation_steps

                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()

            if accelerator.sync_gradients:
                progress_bar.update(1)
                global_step += 1
                accelerator.log({"train_loss": train_loss}, step=global_step)
                if args.train_method == "dpo":
                    accelerator.log({"model_mse_unaccumulated": avg_model_mse}, step=global_step)
                    accelerator.log({"ref_mse_unaccumulated": avg_ref_mse}, step=global_step)
                    accelerator.log({"implicit_acc_accumulated": implicit_acc_accumulated}, step=global_step)
                train_loss = 0.0
                implicit_acc_accumulated = 0.0
                if global_step % args.checkpointing_steps == 0:
                    accelerator.save_state(f"{args.output_dir}/checkpoint-{global_step}")

            logs = {"step_loss": loss.detach().item(), "lr": lr_scheduler.get_last_lr()[0]}
            if args.train_method == "dpo":
                logs["implicit_acc"] = avg_acc
            progress_bar.set_postfix(**logs)
            if global_step >= args.max_train_steps:
                break
