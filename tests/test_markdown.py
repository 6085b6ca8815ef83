"""Tables of results: as many cells everywhere, and figures that say their spread where there is one."""

from curate.markdown import figure, table


def test_a_table_has_a_line_a_row() -> None:
    assert table(["a", "b"], [["1", "2"], ["3", "4"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]
    assert table(["a"], []) == ["| a |", "|---|"]


def test_a_figure_says_its_spread_where_there_is_one() -> None:
    assert figure([]) == "-" and figure([2.0]) == "2.00"
    assert figure([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert figure([1000, 3000], ",.0f") == "2,000 ± 1,414"
