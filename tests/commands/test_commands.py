"""What `fdpo` makes of an error: a slip of ours keeps its traceback."""

import pytest

from fdpo_fast.cli import main


def test_a_slip_of_ours_is_no_mistake_of_the_users(monkeypatch, raw_config, write_config):
    from fdpo_fast.memory import plan

    def slip(*arguments, **options):
        zip((1,), (), strict=True).__next__()

    monkeypatch.setattr(plan, "show", slip)
    with pytest.raises(ValueError, match="zip"):
        main(["plan", "--config", str(write_config(raw_config))])
