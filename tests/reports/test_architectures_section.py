"""Cross-architecture accuracy as people read it."""

from recorded import assessment, score

from ncfmkit.assessment import Architectures
from ncfmkit.reports.architectures_section import section


def test_what_is_said() -> None:
    found = assessment().architectures
    assert found is not None
    assert section(found).sentences == [
        "Students of 2 networks reach from 33.0% (vgg11) to 66.0% (convnet-3 width 8) on the set; that of the "
        "students' recipe, convnet-3 width 8, reaches 66.0%."
    ]
    (table,) = section(found).tables
    assert [cell.replace("\u00a0", " ") for cell in table.rows[1]] == [
        *("vgg11", "33.0 ± 0.4", "23.0 ± 0.4", "15.0 ± 0.4", "40.0 ± 0.4", "82"),
    ]


def test_mosaics_that_train_as_well_are_named() -> None:
    rows = [score(kind, 0.5, network="vit") for kind in ("distilled", "mosaic", "random", "whole")]
    said = section(Architectures(rows=tuple(rows))).sentences[1]
    assert said == "Mosaics of real images train vit at least as well as the set does."
