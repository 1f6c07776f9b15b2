"""A written package."""

import pytest
from view_records import make


@pytest.fixture
def package(tmp_path):
    """A layout's files with soft labels, and what they hold."""

    def build(layout, **settings):
        contents, records = make(**settings)
        folder = tmp_path / "package"
        folder.mkdir()
        layout.write(folder, contents, iter(records))
        return folder, contents

    return build
