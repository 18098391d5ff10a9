"""Pairs to fill caches from, and the folders that come of them."""

from tests.helpers.pictures import noisy_jpeg

ROWS = [(f"picture {i}", noisy_jpeg(2 * i), noisy_jpeg(2 * i + 1), 1.0) for i in range(16)]


def folders(tmp_path, kind):
    """The folders of a kind of cache, the oldest name first."""
    return [path for path in sorted((tmp_path / "cache").glob(f"{kind}-*")) if path.is_dir()]
