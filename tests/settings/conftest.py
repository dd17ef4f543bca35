"""Configuration files in a temporary folder."""

import json

import pytest

from steve.settings.loading import load
from steve.util import UserError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Writes files (JSON values, or text as it is) and loads one of them.

    The loader's root is the temporary folder; a.json is the file that is loaded.
    """

    class Tree:
        root = tmp_path

        def write(self, **files: object) -> None:
            for name, content in files.items():
                if not isinstance(content, str | bytes):
                    content = json.dumps(content)
                if isinstance(content, str):
                    content = content.encode()
                path = tmp_path / f"{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

        def load(self, *overrides: str, **options: object):
            return load("a.json", overrides=overrides, root=tmp_path, **options)

        def refusal(self, *overrides: str, **options: object) -> str:
            with pytest.raises(UserError) as caught:
                self.load(*overrides, **options)
            message = str(caught.value)
            assert message.splitlines() == [message]
            return message

    monkeypatch.chdir(tmp_path)
    return Tree()
