import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleepc.errors import SleepcError
from sleepc.ir.dims import Polynomial, evaluate, format_dim, multiply, names_of, parse_dim

monomials = st.lists(st.sampled_from(["B", "T", "W_1"]), max_size=2).map(lambda m: tuple(sorted(m)))
polynomials = st.dictionaries(monomials, st.integers(-999, 999).filter(bool), max_size=5)


@given(polynomials)
def test_parsing_takes_back_what_formatting_wrote(value: Polynomial) -> None:
    assert parse_dim(str(format_dim(value))) == value


@given(polynomials, polynomials, st.integers(0, 9), st.integers(0, 9))
def test_products_have_the_value_of_products(a: Polynomial, b: Polynomial, rows: int, tokens: int) -> None:
    sizes = {"B": rows, "T": tokens, "W_1": 3}
    assert evaluate(multiply(a, b), sizes) == evaluate(a, sizes) * evaluate(b, sizes)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("260+T", "T+260"),
        ("T*B*2", "2*B*T"),
        ("T+T", "2*T"),
        ("T-T", 0),
        ("2*3", 6),
        ("T-3", "T-3"),
    ],
)
def test_one_text_for_equal_sizes(text: str, canonical: int | str) -> None:
    assert format_dim(parse_dim(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *["", "+", "T+", "T T", "2T", "(T)", "T**2", "T/2", "T ", "+T", "T++T", "é", "9" * 20, "٣"],
        *["*".join("T" * 9), "+".join(f"x{i}" for i in range(33)), "*".join(["9" * 18] * 2)],
        "T" * 301,
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SleepcError):
        parse_dim(text)


def test_names() -> None:
    assert names_of("B*T+260") == {"B", "T"}
    assert names_of(5) == set()
