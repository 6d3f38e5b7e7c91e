"""Which photos of MVTec AD the DT-GAN paper takes as scratches and spots: its Table 17."""

from collections.abc import Mapping

TABLE_17 = "dt-gan-table-17"
"""As `types` of a recipe it asks for this table."""

MVTEC_TYPES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "carpet": {
        "color": {"scratches": "011 012 014 016 017", "spots": "000 003 004 007 015 018"},
        "thread": {"scratches": "000-018"},
        "hole": {"spots": "000-016"},
    },
    "leather": {
        "color": {
            "scratches": "001 003 005 007 009 011 013 015 018",
            "spots": "000 002 006 008 010 012 014",
        },
        "cut": {"scratches": "000-018"},
        "fold": {"scratches": "000-006 009-016"},
        # The table has 009 in both columns, and counts it in both sums (48 and 39). The paper's classes exclude
        # one another (Section 4), and a photo has one type here: the first.
        "glue": {"scratches": "003 009 010 016 017", "spots": "000-002 005-009 011-015 018"},
        "poke": {"spots": "000-017"},
    },
    "tile": {"crack": {"scratches": "000-016"}},
    "wood": {
        "color": {"scratches": "003 005"},
        # The table also prints 000-016 under spots here; its own sum of spots, 12, is without them.
        "scratch": {"scratches": "001-006 008-010 013-016 018-020"},
        "hole": {"spots": "000-004 006-009"},
        "combined": {"scratches": "008", "spots": "001 002 009"},
    },
}
"""DT-GAN's Table 17: category of MVTec AD -> its defect folder -> defect type -> ids of the photos taken."""


def type_by_table(category: str, folder: str, photo_id: str) -> str:
    """The defect type of a photo; "" for one that the paper leaves out. Categories that it does not have keep the
    names of their folders."""
    table = MVTEC_TYPES.get(category.lower())
    if table is None:
        return folder
    for defect_type, ids in table.get(folder, {}).items():
        for run in ids.split():
            first, _, last = run.partition("-")
            if first <= photo_id <= (last or first):
                return defect_type
    return ""
