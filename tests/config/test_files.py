"""The files in configs/: each loads, is explained, and differs from its model only where its name says."""

import json

import pytest

from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.config.table import renewed
from fdpo_fast.scales import convert
from fdpo_fast.train import main
from tests.helpers import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_and_is_explained(path, capsys):
    main(["--config", str(path), "--dry-run"])
    assert Config.model_validate_json(capsys.readouterr().out).train.output_dir == f"runs/{path.stem}"
    assert f"`{path.name}`" in (ROOT / "configs/README.md").read_text()


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if not path.stem.startswith("digits")], ids=lambda path: path.stem
)
def test_strength_at_the_reference_is_a_published_one(path):
    """Diffusion-DPO's of UNets; of SD3.5 what trainers of flows have, all weights and LoRA."""
    loss = load(path).loss
    slope = {"reverse_kl": 1, "forward_kl": 1, "alpha": 1, "jensen_shannon": 0.5}[loss.divergence]
    beta_dpo = convert(loss.beta * loss.ratio_scale * slope, "fdpo_fast", "diffusion_dpo")
    of_flows = {
        **{"sd35m_js": 4000, "sd35m_lora_js": 100},
        **{"flux_lora_js": 2000, "flux_js_8gpu": 4000, "zimage_lora_js": 2000},
    }
    assert beta_dpo == of_flows.get(path.stem, 2000 if path.stem.startswith("sd15") else 5000)


@pytest.mark.parametrize("name", ["sdxl_rkl", "sdxl_fkl", "sdxl_alpha"])
def test_divergences_share_all_caches(name):
    ours, theirs = (load(ROOT / f"configs/{stem}.json") for stem in (name, "sdxl_js"))
    changed = {line.split(":")[0] for line in ours.differences(theirs)}
    assert changed <= {"loss.divergence", "loss.alpha", "loss.beta", "train.output_dir"}


def test_ranks_divide_the_step():
    assert load(ROOT / "configs/sdxl_js_8gpu.json").accumulation(8) == 64


def test_no_key_is_repeated():
    def strict(pairs):
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys))
        return dict(pairs)

    for path in CONFIGS:
        json.loads(path.read_text(), object_pairs_hook=strict)


def leaves(value, path=()):
    """The values in an object by their path; a list is one."""
    if isinstance(value, dict):
        return {found: leaf for key, part in value.items() for found, leaf in leaves(part, (*path, key)).items()}
    return {path: value}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_variant_says_only_what_differs(path):
    raw = json.loads(path.read_text())
    if "extends" not in raw:
        return
    base = leaves(json.loads(load(path.parent / raw.pop("extends")).dumps()))
    assert not [key for key, value in leaves(raw).items() if value is not None and base.get(key) == value]


def test_the_tables_of_keys_are_the_schemas():
    page = (ROOT / "configs/README.md").read_text()
    assert renewed(page) == page, "run `python -m fdpo_fast.config.table configs/README.md`"
    sweep, rounds = (json.loads(load(ROOT / f"configs/digits_{name}.json").dumps()) for name in ("sweep", "rounds"))
    for key in leaves(sweep | {"rounds": rounds["rounds"]}):
        assert f"| `{'.'.join(key)}` |" in page, key


def test_every_key_is_described():
    page = (ROOT / "configs/README.md").read_text()
    rows = [line for line in page.partition("## All keys")[2].splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert not [row for row in rows if not row.split(" | ")[-1].strip(" |")]
