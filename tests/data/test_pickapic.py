"""The Pick-a-Pic reader on good, tied and broken rows."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fdpo_fast.data.decode import decode
from fdpo_fast.data.pairs import Pair, Rejected, Rules
from fdpo_fast.data.readers.pickapic import SCHEMA, PickAPic
from tests.helpers.pictures import BLUE, RED, write


def is_red(side):
    return decode(side.read(), 1).getpixel((0, 0))[0] > 200


def test_label_names_the_preferred_image(tmp_path):
    source = PickAPic(str(write(tmp_path / "a.parquet", [("x", RED, BLUE, 1.0), ("y", RED, BLUE, 0.0)])))
    first, second = source.read(0, 2)
    assert is_red(first.preferred)
    assert not is_red(first.dispreferred)
    assert is_red(second.dispreferred)
    assert (first.id, second.id, second.caption) == (0, 2, "y")
    assert (first.preferred.name, second.preferred.name) == ("jpg_0", "jpg_1")


def test_ties_are_dropped_or_kept_both_ways(tmp_path):
    path = write(tmp_path / "a.parquet", [("x", RED, BLUE, 0.5)])
    assert [type(item) for item in PickAPic(str(path)).read(0, 1)] == [Rejected]
    one, other = PickAPic(str(path), Rules(ties="half")).read(0, 1)
    assert is_red(one.preferred)
    assert is_red(other.dispreferred)
    assert (one.weight, other.weight) == (0.5, 0.5)
    assert one.id != other.id


def test_rows_without_a_pair_are_reported_with_their_place(tmp_path):
    rows = [
        ("good", RED, BLUE, 1.0),
        ("missing", None, BLUE, 1.0),
        ("no label", RED, BLUE, float("nan")),
        (None, RED, BLUE, 1.0),
        ("größe ✓", RED, BLUE, 1.0),
        ("", RED, BLUE, 1.0),
    ]
    items = list(PickAPic(str(write(tmp_path / "a.parquet", rows))).read(0, len(rows)))
    assert [item.caption for item in items if isinstance(item, Pair)] == ["good", "größe ✓", ""]
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert [item.place for item in rejected] == [f"a.parquet row {i}" for i in range(1, 4)]
    assert [item.row for item in rejected] == [1, 2, 3]
    assert [item.reason for item in rejected] == [
        "an image is missing: jpg_0 holds None, no bytes",
        "no valid label: found nan and nan",
        "no caption: found None",
    ]
    assert [[picture.read() for picture in item.pictures] for item in rejected] == [[BLUE], [RED, BLUE], [RED, BLUE]]


def test_labels_that_are_a_tie_or_shares_of_votes(tmp_path):
    rows = [("votes", RED, BLUE, 0.7), ("both", RED, BLUE, 1.0)]
    table = pq.read_table(write(tmp_path / "a.parquet", rows))
    judged = table.set_column(table.schema.get_field_index("label_1"), "label_1", pa.array([0.3, 1.0]))
    pq.write_table(judged, tmp_path / "a.parquet")
    votes, tie = PickAPic(str(tmp_path / "a.parquet")).read(0, 2)
    assert is_red(votes.preferred)
    assert (votes.weight, tie) == (1.0, Rejected("a.parquet row 1", "a tie"))
    votes, *both = PickAPic(str(tmp_path / "a.parquet"), Rules("half", "weight")).read(0, 2)
    assert [votes.weight, *(half.weight for half in both)] == pytest.approx([0.4, 0.5, 0.5])


def test_files_and_row_groups_are_one_sequence(tmp_path):
    for name in "ab":
        table = pq.read_table(write(tmp_path / f"{name}.parquet", [(f"{name}{i}", RED, BLUE, 1.0) for i in range(10)]))
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
    for source in (str(tmp_path), str(tmp_path / "*.parquet")):
        reader = PickAPic(source)
        assert len(reader) == 20
        assert [pair.caption for pair in reader.read(8, 13)] == ["a8", "a9", "b0", "b1", "b2"]
        assert [pair.id for pair in reader.read(8, 13)] == [16, 18, 20, 22, 24]


def test_identity_changes_with_content(tmp_path):
    identities = []
    for caption in ("x", "y"):
        reader = PickAPic(str(write(tmp_path / "a.parquet", [(caption, RED, BLUE, 1.0)])))
        identities.append(reader.identity())
    assert identities[0] != identities[1]


def test_schema_is_pick_a_pics(tmp_path):
    schema = pq.read_schema(write(tmp_path / "a.parquet", [("x", RED, BLUE, 1.0)]))
    assert schema.equals(SCHEMA)
    assert schema.field("jpg_0").type == pa.binary()
    assert schema.field("label_0").type == pa.float64()


def test_bad_sources(tmp_path):
    with pytest.raises(ValueError, match="is not here: give a file"):
        PickAPic(str(tmp_path / "nowhere"))
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"bad.parquet is not a readable parquet file"):
        PickAPic(str(tmp_path / "bad.parquet"))
    pq.write_table(pa.table({"caption": ["x"], "jpg_0": [RED]}), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="lacks the Pick-a-Pic columns jpg_1, label_0, label_1"):
        PickAPic(str(tmp_path / "bad.parquet"))
