"""AdamW8bit on parameters that are split over ranks, as fully_shard and tensor parallelism do."""

import pytest
import torch

from tests.helpers import shard_checkpoints, shards
from tests.helpers.ranks import together


@pytest.fixture
def on_ranks(tmp_path):
    """Call a function of `tests.helpers.shards` on a number of ranks, which all must come to their end."""

    def call(count, run, *arguments):
        done = together(count, run, arguments, tmp_path / f"said{count}", patience=120)
        assert done.returncode == 0, done.stderr

    return call


@pytest.mark.parametrize(
    ("ranks", "dtype", "backend", "weights"),
    [
        (2, torch.float32, "cpp", "plain"),
        (2, torch.bfloat16, "cpp", "plain"),
        (3, torch.bfloat16, "cpp", "plain"),
        (2, torch.bfloat16, "eager", "plain"),
        (3, torch.bfloat16, "cpp", "bf16+8"),
        (2, torch.bfloat16, "eager", "bf16+8"),
    ],
)
def test_parts_of_whole_blocks_are_stepped_as_the_whole(on_ranks, ranks, dtype, backend, weights):
    on_ranks(ranks, shards.steps_as_whole, dtype, backend, weights)


def test_a_model_under_fully_shard_trains_as_on_one_rank(on_ranks):
    on_ranks(2, shards.trains)


@pytest.mark.parametrize(
    ("dtype", "weights"), [(torch.float32, "plain"), (torch.bfloat16, "plain"), (torch.bfloat16, "bf16+8")]
)
def test_uneven_and_empty_parts(on_ranks, dtype, weights):
    on_ranks(3, shards.uneven, dtype, weights)


@pytest.mark.parametrize(
    ("ranks", "shapes", "dtype", "weights"),
    [
        (2, shards.EVEN, torch.bfloat16, "plain"),
        (3, shards.UNEVEN, torch.float32, "plain"),
        (3, shards.UNEVEN, torch.bfloat16, "bf16+8"),
    ],
)
def test_a_run_resumes_from_a_distributed_checkpoint(on_ranks, tmp_path, ranks, shapes, dtype, weights):
    on_ranks(ranks, shard_checkpoints.resumes, str(tmp_path / "saved"), shapes, dtype, weights)


@pytest.mark.parametrize("of_before", [False, True])
def test_a_distributed_checkpoint_without_low_bytes_loads(on_ranks, tmp_path, of_before):
    on_ranks(2, shard_checkpoints.begins_low_bytes, str(tmp_path / "saved"), of_before)


def test_low_bytes_of_a_distributed_checkpoint_that_nobody_asks_for(on_ranks, tmp_path):
    on_ranks(2, shard_checkpoints.takes_no_low_bytes, str(tmp_path / "saved"))


def test_a_rank_resumes_from_its_own_state_dict(on_ranks):
    on_ranks(3, shard_checkpoints.own_state_dict)


def test_loaded_states_of_a_rank_are_copies(on_ranks):
    on_ranks(2, shard_checkpoints.takes_copies)


def test_a_checkpoint_of_another_number_of_ranks_is_refused(on_ranks, tmp_path):
    folder = str(tmp_path / "saved")
    on_ranks(2, shard_checkpoints.saves, folder, [(7, 9)])
    on_ranks(3, shard_checkpoints.refuses_other_ranks, folder, [(7, 9)], "were split as '0:2', it is split as '0:3'")
    on_ranks(2, shard_checkpoints.saves, folder + "8", [(4, 2000)])
    on_ranks(3, shard_checkpoints.refuses_other_ranks, folder + "8", [(4, 2000)], "ize mismatch|were split as")


def test_what_lies_otherwise_over_the_ranks_is_refused(on_ranks):
    on_ranks(2, shards.refuses)


@pytest.mark.parametrize(("backend", "weights"), [("cpp", "plain"), ("eager", "plain"), ("cpp", "bf16+8")])
def test_columns_and_repeated_parameters(on_ranks, backend, weights):
    on_ranks(2, shards.columns, backend, weights)


def test_fully_shard_around_tensor_parallelism(on_ranks, tmp_path):
    on_ranks(4, shard_checkpoints.both_ways, str(tmp_path / "saved"))


def test_gathered_states_go_back_to_as_many_ranks(on_ranks):
    on_ranks(2, shard_checkpoints.gathered)
