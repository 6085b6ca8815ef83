"""Tables of results: as many cells everywhere, and figures that say their spread where there is one."""

from curate.markdown import Column, figure, table


def test_a_table_has_a_line_a_row() -> None:
    assert table(["a", "b"], [["1", "2"], ["3", "4"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]
    assert table(["a"], []) == ["| a |", "|---|"]


def test_a_figure_says_its_spread_where_there_is_one() -> None:
    assert figure([]) == "-" and figure([2.0]) == "2.00"
    assert figure([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert figure([1000, 3000], ",.0f") == "2,000 ± 1,414"


def test_a_column_has_a_unit_and_leaves_out_what_is_not_known() -> None:
    column = Column("size, k", "size", 1e3, ".1f")
    assert column.cell([1000, None, 3000]) == "2.0 ± 1.4" and column.cell([None]) == "-"
    assert column.cell([1000, 3000], spread=False) == column._replace(spread=False).cell([1000, 3000]) == "2.0"
