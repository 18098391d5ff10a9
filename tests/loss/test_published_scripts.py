"""The pages' diffs, applied to stand-ins of the scripts that they change: these run, and train as they did before."""

from functools import cache

import pytest
import torch

from fdpo_fast.scales import CONVENTIONS
from tests.helpers.scripts import ACCUMULATION, SCRIPTS, STANDINS, STEPS, apply, arguments, diffs, published, train

LOSS = {"diffusers_sdxl": "loss", "diffusers_sd15": "loss", "diffusion_dpo": "step_loss"}
"""What a script calls the loss of a micro-batch where it logs it."""

script = pytest.mark.parametrize("name", SCRIPTS)


def changed(name, divergence="reverse_kl"):
    diff = diffs()[name]
    assert f'"{name}"' in diff  # its own strength
    source = apply(diff, published(name))
    assert 'divergence="reverse_kl"' in source
    return source.replace('divergence="reverse_kl"', f'divergence="{divergence}"')


def losses(name, outcome):
    return [line[LOSS[name]] for line in outcome.shown]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train, each once: a stand-in as it stands, or under a divergence by its diff; from the start or from a step."""
    folder = cache(lambda *what: tmp_path_factory.mktemp("run"))

    @cache
    def trained(name, divergence, mixed_precision="no", first_step=0):
        whole = folder(name, divergence, mixed_precision)
        args = arguments(whole, mixed_precision=mixed_precision, first_step=first_step)
        return train(name, changed(name, divergence) if divergence else published(name), args)

    return trained


def compare(got, want, tolerance):
    """Every line, the gradients' norms, and the trained weights, a few of which Adam steps by little but noise."""
    assert got.norms == pytest.approx(want.norms, rel=10 * tolerance)
    for ours, theirs in zip(got.shown + got.logged, want.shown + want.logged, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    torch.testing.assert_close(got.weights, want.weights, rtol=tolerance, atol=10 * tolerance)


def test_every_script_has_its_diff():
    assert SCRIPTS.keys() <= diffs().keys() == {path.stem for path in STANDINS.glob("*.py")}


@script
def test_the_same_training_as_before(name, run):
    before = run(name, None)
    assert len(set(losses(name, before))) == ACCUMULATION * STEPS
    compare(run(name, "reverse_kl"), before, tolerance=5e-5)


@script
def test_the_same_training_as_before_in_bf16(name, run, tmp_path):
    """The first step agrees; behind it activations and weights in bf16 may be rounded the other way."""
    source = published(name)
    if name == "diffusion_dpo":  # the script subtracts bf16 from bf16 on the side of the reference, and there alone
        assert "(ref_pred - target)" in source
        source = source.replace("(ref_pred - target)", "(ref_pred.float() - target.float())")
    before = train(name, source, arguments(tmp_path, mixed_precision="bf16"))
    after = run(name, "reverse_kl", "bf16")
    for ours, theirs in zip(after.shown[:ACCUMULATION], before.shown, strict=False):
        assert ours == pytest.approx(theirs, rel=5e-5)
    assert after.norms[0] == pytest.approx(before.norms[0], rel=0.02)
    assert all(0 < loss < 2 for loss in losses(name, after))


@script
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_checkpoint_is_gone_on_from(name, mixed_precision, run):
    whole = run(name, "reverse_kl", mixed_precision)
    rest = run(name, "reverse_kl", mixed_precision, first_step=2)
    assert rest.shown == whole.shown[2 * ACCUMULATION :]
    assert all(rest.weights[key].equal(weight) for key, weight in whole.weights.items())


@script
@pytest.mark.parametrize("mixed_precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_another_divergence(name, mixed_precision, run):
    """A run trains under it, with a loss of its own; what else is shown of the first micro-batch is as before."""
    before, after = (run(name, link, mixed_precision) for link in ("reverse_kl", "jensen_shannon"))
    old, new = losses(name, before), losses(name, after)
    assert len(new) == ACCUMULATION * STEPS
    assert all(0 < loss < 2 for loss in new)
    assert new[:ACCUMULATION] != pytest.approx(old[:ACCUMULATION], rel=0.05)
    assert after.shown[0] | {LOSS[name]: old[0]} == before.shown[0]


@pytest.mark.parametrize("loss_type", ["hinge", "ipo"])
def test_loss_types_of_sd15(loss_type, tmp_path):
    args = arguments(tmp_path, loss_type=loss_type, beta=100)
    before = train("diffusers_sd15", published("diffusers_sd15"), args)
    del args.beta  # which its parser does not know
    compare(train("diffusers_sd15", changed("diffusers_sd15"), args), before, tolerance=5e-5)


@pytest.mark.parametrize("name", [pytest.param("diffusers_sdxl", marks=pytest.mark.slow), "diffusers_sd15"])
def test_velocities(name, tmp_path):
    """The targets of the two halves differ."""
    args = arguments(tmp_path, prediction_type="v_prediction")
    compare(train(name, changed(name), args), train(name, published(name), args), tolerance=5e-5)


def test_supervised_fine_tuning_is_left_alone(tmp_path):
    args = arguments(tmp_path, train_method="sft")
    before = train("diffusion_dpo", published("diffusion_dpo"), args)
    compare(train("diffusion_dpo", changed("diffusion_dpo"), args), before, tolerance=0)


# --- what these tests would find --------------------------------------------------------------------------------


def test_lines_that_are_not_there_are_refused():
    source = published("diffusers_sdxl")
    with pytest.raises(ValueError, match="found 0 times"):
        apply("-                ...\n+                loss = 0\n", source)
    with pytest.raises(ValueError, match="found 2 times"):
        apply(
            "-                    noisy_model_input,\n", source.replace("prompt_embeds,\n", "noisy_model_input,\n", 1)
        )
    with pytest.raises(ValueError, match="neither kept nor removed"):
        apply("loss = 0\n", source)


@script
def test_a_name_that_is_lost_ends_in_an_error(name, tmp_path):
    """What the diffs did once: they named the reference's prediction otherwise, or took away what is logged."""
    wrong = changed(name).replace("fdpo_loss(model_pred, ref_pred", "fdpo_loss(model_pred, reference_pred")
    with pytest.raises(NameError, match="reference_pred"):
        train(name, wrong, arguments(tmp_path))
    lines = changed(name).splitlines(keepends=True)
    without = "".join(line for line in lines if not line.lstrip().startswith("raw_model_loss = "))
    with pytest.raises(NameError, match="raw_model_loss"):
        train(name, without, arguments(tmp_path))


@script
def test_another_strength_is_another_loss(name, run, tmp_path):
    convention = "diffusers_sd15" if CONVENTIONS[name].factor != 1 else "diffusion_dpo"
    wrong = train(name, changed(name).replace(f'"{name}"', f'"{convention}"'), arguments(tmp_path))
    with pytest.raises(AssertionError):
        compare(wrong, run(name, None), tolerance=0.05)
