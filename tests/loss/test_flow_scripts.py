"""The pages' diffs that make trainers of flows trainers on preferences, applied to stand-ins, which then train."""

import math

import pytest
import torch

from tests.helpers.loss import as_tensor
from tests.helpers.published import FLOW_TRAINERS
from tests.helpers.scripts import (
    ACCUMULATION,
    PAIRS,
    STEPS,
    Pairs,
    apply,
    arguments,
    diffs,
    in_float32,
    models,
    published,
    train,
)

SD3, PLAIN = "diffusers_sd3", "plain_flow"
STRENGTHS = {SD3: (100.0, "flow_grpo"), PLAIN: (2000.0, "longcat")}
"""By stand-in: the beta in its diff, and whose it is."""


def changed(name):
    return apply(diffs()[name], published(name))


class Stats:
    """What a script logs of them."""

    accuracy = torch.zeros(())


def expression_of(name):
    """In place of `fdpo_loss`: what the trainer computes from whose convention a diff takes its beta."""
    beta_dpo, convention = STRENGTHS[name]

    def loss(pred, ref, target, **_):
        whole = target if isinstance(target, torch.Tensor) else as_tensor(target).float()
        return FLOW_TRAINERS[convention](pred, ref, whole, beta_dpo, dtype=torch.float32), Stats

    return loss


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_diff_names_the_strength(name):
    beta_dpo, convention = STRENGTHS[name]
    assert 'divergence="reverse_kl", beta=1.0,\n' in diffs()[name]
    assert f'ratio_scale=scales.ratio_scale({beta_dpo}, "{convention}")' in diffs()[name]


# --- diffusers' script, under accelerate ------------------------------------------------------------------------


def trained(folder, source, replaced=None, **options):
    options = {"prediction_type": "flow_match", "learning_rate": 1e-2} | options
    return train(SD3, source, arguments(folder, **options), **replaced or {})


def shown(outcome, key="loss"):
    return [line[key] for line in outcome.shown]


@pytest.mark.parametrize("precondition_outputs", [0, 1])
def test_the_stand_in_fine_tunes_as_it_stands(precondition_outputs, tmp_path):
    outcome = trained(tmp_path, published(SD3), precondition_outputs=precondition_outputs)
    assert len(outcome.shown) == ACCUMULATION * STEPS
    assert all(0 < loss < 10 for loss in shown(outcome))


def test_it_trains_as_flow_grpo_does(tmp_path):
    after = trained(tmp_path, changed(SD3))
    before = trained(tmp_path, changed(SD3), {"fdpo_loss": expression_of(SD3)})
    assert max(abs(loss - math.log(2)) for loss in shown(after)) > 0.1
    assert shown(after) == pytest.approx(shown(before), rel=1e-4)
    assert after.norms == pytest.approx(before.norms, rel=1e-3)
    torch.testing.assert_close(after.weights, before.weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_it_starts_at_log_2_and_trains_its_lora_alone(mixed_precision, tmp_path):
    options = {"mixed_precision": mixed_precision, "spread": 0.0}
    outcome = trained(tmp_path, changed(SD3), **options)
    losses = shown(outcome)
    assert losses[:ACCUMULATION] == [torch.tensor(2.0, dtype=torch.float32).log().item()] * ACCUMULATION
    assert shown(outcome, "implicit_acc")[:ACCUMULATION] == [0.5] * ACCUMULATION
    assert all(0 < loss < 2 for loss in losses)
    assert len(set(losses[ACCUMULATION:])) == len(losses) - ACCUMULATION
    dtype = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
    _, before, _ = models(SD3, dtype, 0.0)
    moved = {key for key, weight in before.state_dict().items() if not weight.equal(outcome.weights[key])}
    assert moved == {key for key, weight in before.named_parameters() if weight.requires_grad}


def test_both_samples_of_a_pair_get_one_noise(tmp_path):
    targets = []

    def recorded(pred, ref, target, **options):
        targets.append(target)
        return expression_of(SD3)(pred, ref, target)

    trained(tmp_path, changed(SD3), {"fdpo_loss": recorded})
    latents = torch.stack([Pairs(96, 64)[row]["latents"] for row in range(PAIRS)])
    noise_w, noise_l = (targets[0] + torch.cat(latents.chunk(2, dim=1))).chunk(2)
    torch.testing.assert_close(noise_w, noise_l, rtol=1e-5, atol=1e-5)
    assert 0.8 < noise_w.std() < 1.2


def test_its_preconditioning_is_left_out(tmp_path):
    """It would multiply the squares of a pair by its share of noise, squared."""
    ways = [trained(tmp_path, changed(SD3), precondition_outputs=way) for way in (0, 1)]
    assert shown(ways[0]) == shown(ways[1])


# --- plain torch ------------------------------------------------------------------------------------------------


class Denoiser(torch.nn.Conv2d):
    def forward(self, noisy, sigma, context):
        return super().forward(noisy + 0.1 * (sigma.view(-1, 1, 1, 1) + context.view(-1, 1, 1, 1)))


@in_float32
def trained_plainly(source, steps=40, **replaced):
    """The losses, and the weights before and after; the preferred images are brighter by one."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 4, 8, 8, generator=generator)
    latents[:4] += 1.0
    torch.manual_seed(0)
    model, losses = Denoiser(4, 4, 3, padding=1), []
    before = model.weight.detach().clone()
    scope = {}
    exec(compile(source, PLAIN, "exec"), scope)  # noqa: S102
    scope |= replaced
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scope["main"](model, optimizer, [(latents, torch.randn(4).repeat(2), torch.arange(4))] * steps, 3.0, losses.append)
    return losses, before, model.weight.detach()


def test_the_plain_stand_in_fine_tunes_as_it_stands():
    losses, before, after = trained_plainly(published(PLAIN))
    assert all(0 < loss < 10 for loss in losses)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert not before.equal(after)


def test_it_starts_at_log_2_and_learns_the_preference():
    losses, before, after = trained_plainly(changed(PLAIN))
    assert losses[0] == torch.tensor(2.0, dtype=torch.float32).log().item()
    assert sum(losses[-10:]) / 10 < 0.5
    assert not before.equal(after)


def test_it_trains_as_longcat_does():
    """Whose target is a tensor."""
    after, _, weights = trained_plainly(changed(PLAIN), steps=10)
    before, _, want = trained_plainly(changed(PLAIN), steps=10, fdpo_loss=expression_of(PLAIN))
    assert max(abs(loss - math.log(2)) for loss in after) > 0.1
    assert after == pytest.approx(before, rel=1e-3)
    torch.testing.assert_close(weights, want, rtol=1e-3, atol=1e-4)
