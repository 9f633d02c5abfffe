"""Text files of separated values, as programs and people write them."""

import gzip

import pytest

from zoo.datasets.delimited import read_delimited
from zoo.errors import DataError


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ('"Length, cm";"Width, cm";y\n1;2;3\n', ["Length, cm", "Width, cm", "y"], [["1", "2", "3"]]),
        ('"Long\nname";x\n1;2\n', ["Long\nname", "x"], [["1", "2"]]),
        ("length, cm;width, cm\n1,5;2,5\n2,5;3,5\n", ["length, cm", "width, cm"], [["1,5", "2,5"], ["2,5", "3,5"]]),
        ("a|b|c\n1|x, y|2\n", ["a", "b", "c"], [["1", "x, y", "2"]]),
        ("a\tb\n1,5\t2\n", ["a", "b"], [["1,5", "2"]]),
        ("a b\n1 2\n3  4\n", ["a", "b"], [["1", "2"], ["3", "4"]]),
        ("a\n2,5\n3,5\n", ["a"], [["2,5"], ["3,5"]]),
        ("a\n2 5\nx\n", ["a"], [["2 5"], ["x"]]),
        ("sep=;\na;b\n1;2\n", ["a", "b"], [["1", "2"]]),
        ("genre,y\nA;B,1\nC;D,2\n", ["genre", "y"], [["A;B", "1"], ["C;D", "2"]]),
        ("text,y\n\"He said \"\"hi\"\", twice\",1\n", ["text", "y"], [['He said "hi", twice', "1"]]),
        ('a,y\n"x" ,1\n', ["a", "y"], [["x ", "1"]]),
        ("a,y,\n1,2,\n3,4,\n", ["a", "y"], [["1", "2"], ["3", "4"]]),
        ("a,y\n1,2,\n3,4,\n", ["a", "y"], [["1", "2"], ["3", "4"]]),
        ("# by a program\n# on a day\n\na,y\n1,2\n", ["a", "y"], [["1", "2"]]),
        ("# made by x, on y\na,y\n1,2\n", ["a", "y"], [["1", "2"]]),
        ("#a,y\n1,2\n", ["a", "y"], [["1", "2"]]),
        ("a,y\r\n1,2\r\n3,4\r\n", ["a", "y"], [["1", "2"], ["3", "4"]]),
        ("a,y\r1,2\r3,4\r", ["a", "y"], [["1", "2"], ["3", "4"]]),
        ("\n\na,y\n\n1,2\n\n3,4\n,\n,\n", ["a", "y"], [["1", "2"], ["3", "4"]]),
        ("id,y\n007,TRUE\n1.50,1e5\n", ["id", "y"], [["007", "TRUE"], ["1.50", "1e5"]]),
        ("a,y\nx\u2028y,2\n", ["a", "y"], [["x\u2028y", "2"]]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_is_read(text, names, rows, encoding, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(encoding))
    found = read_delimited(path)
    assert list(found.frame.columns) == names
    assert found.frame.to_numpy().tolist() == rows


def test_lines_of_the_file_are_kept(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b'# note\na,y\n"x\ny",1\n\nz,2\n'))
    assert read_delimited(path).lines.tolist() == [3, 6]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a,b,y\n1,2,3\n4,5\n", "line 3 has 2 fields, and the columns are 3"),
        ("a,y\n1,2\n3,4,5\n", "line 3 has 3 fields, and the columns are 2"),
        ("a,y\n1,2,3\n3,4,5\n", "rows with more fields than its 2 column names"),
        ('a,y\n1,"2\n3,4\n', "unexpected end of data"),
        ("1,2\n3,4\n", "begins with numbers"),
        ("a,a\n3,4\n", "more than once: a"),
        ("a\0,y\n3,4\n", "zero bytes"),
    ],
)
def test_what_is_no_table(text, match, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=match) as info:
        read_delimited(path)
    assert "\n" not in str(info.value)
