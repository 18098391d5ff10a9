"""The embedded bases: what each is made of, that it is made once and always the same, and what goes with it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fdpo_fast.cli import main
from fdpo_fast.config.digits import DigitsRecipe
from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.digits import dataset, pipeline
from fdpo_fast.digits.maker import model_of
from fdpo_fast.models import FAMILIES, check
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.models.process import is_flow
from tests.helpers import RECIPE

BASES = list(EMBEDDED)


@pytest.fixture(scope="module", params=BASES)
def base(request):
    return request.param


@pytest.fixture(scope="module")
def folder(base, cache_dir):
    return dataset.embedded(base, DigitsRecipe(**RECIPE), cache_dir)


@pytest.fixture
def of_the_flow(raw_config):
    raw_config["model"] |= {"base": "digits-flow", "family": "sd3", "text_tokens": 1}
    raw_config["data"]["source"] = "digits-flow"
    return raw_config


def weights(folder):
    return {path.relative_to(folder): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def test_the_table_is_of_families_and_keys_that_are_there():
    assert {made.family for made in EMBEDDED.values()} <= FAMILIES.keys()
    assert {made.steps for made in EMBEDDED.values()} <= DigitsRecipe.model_fields.keys()


def test_a_base_loads_in_diffusers_and_draws_what_its_seed_says(base, folder):
    sampler = dataset.Sampler(dataset.family_of(base, folder), DigitsRecipe(**RECIPE))
    tokenizer = sampler.pipeline.tokenizer
    tokens = [tokenizer(caption).input_ids for caption in dataset.CAPTIONS]
    assert len({tuple(row) for row in tokens}) == 10
    assert all(len(row) == 5 for row in tokens)  # start, three words, end
    assert tokenizer.decode(tokens[7], skip_special_tokens=True) == "a handwritten seven"
    images, again = (sampler.draw(torch.tensor([7, 7]), seed=0) for _ in range(2))
    assert images.shape == (2, 3, 32, 32)
    assert torch.equal(images, again)


def test_its_architecture_is_known_before_it_is_made(base, folder):
    before = read_architecture(model_of(base))
    after = read_architecture(model_of(base).replace({"base": str(folder / "pipeline")}))
    assert base in before.source
    for found in (before, after):
        assert found.text_parameters == before.text_parameters > 0
    shapes = [
        {name: value.shape for name, value in found.denoiser(torch.float32).state_dict().items()}
        for found in (before, after)
    ]
    assert shapes[0] == shapes[1]


def test_the_flow_is_a_small_sd3_without_t5(cache_dir):
    folder = dataset.embedded("digits-flow", DigitsRecipe(**RECIPE), cache_dir)
    family = dataset.family_of("digits-flow", folder)
    assert is_flow(family.schedule)
    assert family.prediction == "flow"
    text = family.text_encoder(torch.device("cpu"))([*dataset.CAPTIONS, ""])
    assert {key: value.shape for key, value in text.items()} == {
        "prompt_embeds": (11, 16 + 1, 64),
        "pooled_prompt_embeds": (11, 64),
    }
    assert not text["prompt_embeds"][:, 16:].any()
    assert len(text["pooled_prompt_embeds"].unique(dim=0)) == 11
    assert sum(weight.numel() for weight in family.denoiser(torch.float32).parameters()) < 2e6


def test_a_base_is_made_the_same_again(base, folder, tmp_path):
    again = dataset.embedded(base, DigitsRecipe(**RECIPE), tmp_path)
    ours, theirs = weights(folder), weights(again)
    assert ours.keys() == theirs.keys()
    for path, tensors in ours.items():
        assert all(torch.equal(tensor, theirs[path][name]) for name, tensor in tensors.items()), path


def test_a_kill_before_the_last_rename_costs_no_training(base, folder, tmp_path, monkeypatch):
    def killed(path):
        if path.name == "pipeline":
            raise KeyboardInterrupt
        return replacing(path)

    replacing = pipeline.replacing
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "replacing", killed)
        with pytest.raises(KeyboardInterrupt):
            dataset.embedded(base, DigitsRecipe(**RECIPE), tmp_path)
    made = tmp_path / folder.name
    assert not (made / "pipeline").exists()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: pytest.fail("trained again"))
    dataset.embedded(base, DigitsRecipe(**RECIPE), tmp_path)
    assert weights(made).keys() == weights(folder).keys()


def test_a_folder_is_named_by_what_its_base_depends_on():
    recipe = DigitsRecipe()
    for base, made in EMBEDDED.items():
        name = dataset.name_of(base, recipe)
        assert name.startswith(f"{base}-")
        changed = {
            key
            for key in ("unet_steps", "flow_steps", "seed")
            if dataset.name_of(base, recipe.replace({key: 7})) != name
        }
        assert changed == {made.steps, "seed"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"family": "sd", "base": "digits-flow"}, 'goes with model.family "sd3", not "sd": set model.family'),
        ({"family": "sdxl", "base": "digits"}, 'goes with model.family "sd", not "sdxl": set model.family'),
        ({"family": "sd3", "base": "digits-flow"}, "goes with model.text_tokens 1, not null: set model.text_tokens"),
        ({"family": "sd", "base": "digits", "text_tokens": 77}, "goes with model.text_tokens null, not 77"),
    ],
)
def test_what_does_not_go_with_a_base_is_said_in_a_sentence(words, said):
    with pytest.raises(UserError, match=said) as refused:
        check(Model(**words))
    assert str(refused.value).startswith(f"model.base '{words['base']}' goes with")


@pytest.mark.parametrize("name", ["train", "plan", "cache", "calibrate"])
def test_a_wrong_family_is_refused_before_a_base_is_made(name, of_the_flow, command, tmp_path):
    of_the_flow["model"] |= {"family": "sd", "text_tokens": None}
    of_the_flow["data"]["cache_dir"] = str(tmp_path / "empty")
    with pytest.raises(SystemExit, match=r'goes with model\.family "sd3"'):
        command(of_the_flow, name)
    assert not (tmp_path / "empty").exists()


def test_a_run_on_the_flow_from_the_first_margin_to_the_demo(of_the_flow, launch, command, read_metrics, tmp_path):
    of_the_flow["log"] |= {"samples_every": 6, "prompts": ["a handwritten two"], "sampling_steps": 2, "guidance": 1.5}
    launch(of_the_flow)
    records = read_metrics(of_the_flow)
    assert records[0]["margin"] == 0
    assert records[-1]["margin"] != 0
    assert "digits-flow" in command(of_the_flow, "plan")
    table = command(of_the_flow, "demo", "--images", "2")
    assert "**all**" in table
    assert json.loads((tmp_path / "run/report.json").read_text()).keys() >= {"base", "policy", "win_rate"}
    main(["verify", str(tmp_path / "run")])
