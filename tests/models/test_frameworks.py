"""docs/models.md, section by section: frameworks are installed, models exported, served and asked, as the text says."""

from pathlib import Path

import pytest
from models.document import SECTIONS
from models.reader import Reader

pytestmark = [pytest.mark.models, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_leads_to_an_answer(title: str, tmp_path: Path) -> None:
    with Reader(SECTIONS[title], tmp_path) as reader:
        reader.follow()
