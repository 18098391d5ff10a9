"""Sets of pairs as others make them: what lies around in folders, what exporters write, and what breaks on the way.

Each is built by a function, and what is right about it stands beside; tests hold it, a benchmark tabulates it.
"""

from tests.helpers import others_pairs_content, others_pairs_places, others_pairs_records
from tests.helpers.others_pairs_case import Case

CASES: tuple[Case, ...] = (*others_pairs_places.CASES, *others_pairs_content.CASES, *others_pairs_records.CASES)
