"""The strict configuration: every mistake fails at once, in one sentence that names the key."""

import json

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.train import main


@pytest.fixture
def raw():
    return {
        "model": {"family": "sd", "base": "some/model"},
        "data": {"source": "pairs"},
        "loss": {"beta": 1.0, "ratio_scale": 2500.0},
        "optimizer": {"lr": 1e-5},
        "train": {"output_dir": "out", "max_steps": 10, "pairs_per_step": 8, "pairs_per_micro_batch": 2},
    }


def test_defaults(raw, write_config):
    loaded = load(write_config(raw))
    assert (loaded.reference.mode, loaded.reference.visits) == ("cached", 4)
    assert loaded.accumulation(2) == 2
    raw["model"]["train"] = "lora"
    assert load(write_config(raw)).reference.mode == "adapter"


def test_resolved_config_reads_back(raw, write_config, tmp_path):
    loaded = load(write_config(raw), ["loss.divergence=alpha", "loss.alpha=0.3"])
    path = tmp_path / "resolved.json"
    path.write_text(loaded.dumps())
    assert load(path) == loaded


def test_overrides_are_json(raw, write_config):
    overrides = ["optimizer.lr=2e-6", 'log.prompts=["a cat"]', "train.output_dir=elsewhere", "loss.divergence=jeffreys"]
    loaded = load(write_config(raw), overrides)
    assert loaded.optimizer.lr == 2e-6
    assert loaded.log.prompts == ["a cat"]
    assert loaded.train.output_dir == "elsewhere"
    assert loaded.loss.link().name == "jeffreys"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("loss.betta=1.0", "unknown key 'loss.betta', did you mean 'loss.beta'"),
        ("trian.seed=1", "unknown key 'trian', did you mean 'train'"),
        (
            'evaluate.scorers=[{"name": "clip", "modle": 1}]',
            "'evaluate.scorers.0.modle', did you mean 'evaluate.scorers.0.model'",
        ),
        ("compare.sead=1", "'compare.sead', did you mean 'compare.seeds'"),
        ("data.digits.pears=3", "unknown key 'data.digits.pears', did you mean 'data.digits.pairs'"),
        ("train.max_steps=ten", "'train.max_steps'"),
        ("train.max_steps=1.5", "'train.max_steps'"),
        ('optimizer.lr="1e-5"', "'optimizer.lr'"),
        ("model.gradient_checkpointing=1", "'model.gradient_checkpointing'"),
        ("model.train=half", "'model.train'"),
        ("loss.beta=0", "'loss.beta'"),
        ("loss.ratio_scale=-3", "'loss.ratio_scale'"),
        ("loss.divergence=pearson_chi2", "not admissible"),
        ("loss.divergence=kl", "unknown divergence 'kl'"),
        ("loss.alpha=0.5", "alpha would be ignored"),
        ("loss.type=kto", "normaliser"),
        ("loss.type=mse", "unknown loss_type"),
        ("reference.mode=adapter", "needs model.train 'lora'"),
        ("reference.visits=null", "needs reference.visits"),
        ("train.pairs_per_step=9", "not a multiple"),
        ("deepspeed.train_batch_size=8", "train.pairs_per_step"),
        ("deepspeed.gradient_clipping=1.0", "optimizer.max_grad_norm"),
        ("deepspeed.bf16=true", "deepspeed.bf16 must be an object"),
        ("deepspeed.zero_optimization=2", "deepspeed.zero_optimization must be an object"),
        ("optimizer.lr=NaN", "'optimizer.lr'"),
        ("loss.beta=Infinity", "'loss.beta'"),
        ("model.lora=8", "'model.lora'"),
        ("log.samples_every=5", "log.prompts is empty"),
        ("nonsense", "section.key=value"),
    ],
)
def test_mistakes(raw, write_config, override, says):
    with pytest.raises(UserError) as caught:
        load(write_config(raw), [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_extends(raw, write_config, tmp_path):
    """A variant is its base but for what it says; null takes a key away; a base is found beside its own variant."""
    base = write_config({**raw, "log": {"every": 3, "samples_every": 5, "prompts": ["a cat", "a dog"]}})
    folder = tmp_path / "variants"
    folder.mkdir()
    (folder / "weak.json").write_text(json.dumps({"extends": f"../{base.name}", "loss": {"beta": 0.5}}))
    last = folder / "last.json"
    changes = {"log": {"samples_every": None, "prompts": ["a horse"]}, "deepspeed": {"bf16": {"enabled": False}}}
    last.write_text(json.dumps({"extends": "weak.json", **changes}))
    loaded = load(last, ["loss.alpha=0.3", "loss.divergence=alpha"])
    expected = {**raw, "log": {"every": 3, "prompts": ["a horse"]}, "deepspeed": changes["deepspeed"]}
    expected["loss"] = {"beta": 0.5, "ratio_scale": 2500.0, "alpha": 0.3, "divergence": "alpha"}
    assert loaded == load(write_config(expected))
    assert "extends" not in json.loads(loaded.dumps())


@pytest.mark.parametrize(
    ("extends", "says"),
    [
        (7, "'extends' must be the path of a file, got 7"),
        (None, "'extends' must be the path of a file, got null"),
        ("", "'extends' must be the path of a file"),
        ("none.json", r"cannot read the config .*none.json, which .*config.json extends: No such file"),
        ("broken.json", r"broken.json, which .*config.json extends is not valid JSON"),
        ("list.json", "list.json, which .*config.json extends holds a list, not an object"),
        ("config.json", "extends itself"),
        ("~nobody-of-this-name/x.json", "'extends' .* is no path"),
        ("a\0b.json", "'extends' .* is no path"),
        ("circle.json", "config.json extends itself: .*config.json extends .*circle.json extends .*config.json$"),
    ],
)
def test_mistakes_in_extends(write_config, tmp_path, extends, says):
    for name, text in {"broken": "{", "list": "[]", "circle": '{"extends": "config.json"}'}.items():
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load(write_config({"extends": extends}))
    assert "\n" not in str(caught.value)


def test_alpha_out_of_range(raw, write_config):
    with pytest.raises(UserError, match="strictly between 0 and 1"):
        load(write_config(raw), ["loss.divergence=alpha", "loss.alpha=1.5"])


def test_smoothing_where_it_has_no_meaning(raw, write_config):
    with pytest.raises(UserError, match="label_smoothing has no meaning for loss_type 'hinge'"):
        load(write_config(raw), ["loss.type=hinge", "loss.label_smoothing=0.1"])


def test_missing_key_and_section(raw, write_config):
    del raw["loss"], raw["train"]["max_steps"]
    with pytest.raises(UserError, match=r"'loss' is missing.*'train.max_steps' is missing"):
        load(write_config(raw))


@pytest.mark.parametrize(("text", "says"), [("{", "not valid JSON"), ("[]", "not an object"), (None, "cannot read")])
def test_unreadable_files(tmp_path, text, says):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says):
        load(path)


def test_deepspeed_section_is_passed_on(raw, write_config):
    raw["deepspeed"] = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}, "wall_clock_breakdown": True}
    passed = load(write_config(raw)).for_deepspeed(world_size=2)
    assert passed["zero_optimization"]["reduce_bucket_size"] == 1000
    assert passed["wall_clock_breakdown"]
    assert passed["train_micro_batch_size_per_gpu"] * passed["gradient_accumulation_steps"] * 2 == 8
    assert passed["bf16"] == {"enabled": True}


def test_dry_run_prints_the_resolved_config(raw, write_config, capsys):
    main(["--config", str(write_config(raw)), "--set", "train.seed=7", "--dry-run"])
    assert json.loads(capsys.readouterr().out)["train"]["seed"] == 7


def test_ranks_that_do_not_divide(raw, write_config):
    with pytest.raises(UserError, match="times 3 ranks"):
        load(write_config(raw)).accumulation(3)


def test_mistake_ends_the_trainer_with_a_sentence(raw, write_config):
    with pytest.raises(SystemExit, match=r"fdpo train: .*unknown key 'loss.betta'"):
        main(["--config", str(write_config(raw)), "--set", "loss.betta=1"])


def test_a_changed_copy_is_checked_as_a_file_is(raw):
    config = Config.model_validate(raw)
    changed = config.replace({"loss.beta": 2.0, "train": config.train.replace({"seed": 7})})
    assert (changed.loss.beta, changed.train.seed, changed.model) == (2.0, 7, config.model)
    for changes in ({"loss.beta": -1.0}, {"loss.bta": 1.0}, {"los.beta": 1.0}, {"loss.beta.x": 1.0}):
        with pytest.raises(ValueError, match=r"beta|bta|los"):
            config.replace(changes)
