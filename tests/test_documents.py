"""Tables between their markers in documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdk import documents

TEXT = "a\n<!-- begin floors -->\nold\n<!-- end floors -->\nb\n"


def test_tables_are_rewritten_between_their_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "a\n<!-- begin floors -->\nnew\n<!-- end floors -->\nb\n"
    assert documents.rewritten(TEXT, {"floors": "new"}) == expected
    with pytest.raises(ValueError, match=r"no markers .* Put them where the table goes\."):
        documents.rewritten(TEXT, {"other": "new"})
    page = tmp_path / "page.md"
    page.write_text(TEXT)
    documents.publish({"floors": "new"}, page)
    assert page.read_text() == expected and capsys.readouterr().out == ""
    documents.publish({"floors": "new", "others": "more"}, None)
    assert capsys.readouterr().out == "new\n\nmore\n"
