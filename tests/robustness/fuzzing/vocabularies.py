"""Strategies for vocabularies: what people and programs write where class names are expected."""

from typing import Any

from hypothesis import strategies as st


WORDS = [
    *("cat", "sofa", "tree, oak", "cat,", ",", " ", "", "\t\n", "a" * 500, "\N{ZERO WIDTH SPACE}", "\ufeff", "\0"),
    *("Straße", "猫", "סוף", "قطة", "👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", "\u202ecat", "𝕔𝕒𝕥", "ﷺ", "\ud800", "Z̤͔a̴l͎g̡o̕"),
    *("&amp;", "&lt;b&gt;", "&#0;", "<script>", "{}", "{0}", "%s", "<|endoftext|>", "<|startoftext|>", "</w>", "\\n"),
]


def mostly(usual: st.SearchStrategy, *others: st.SearchStrategy) -> st.SearchStrategy:
    """The usual in three of four inputs."""
    return st.integers(0, 3).flatmap(lambda number: usual if number < 3 else st.one_of(*others))


words = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=30),
    st.text(st.characters(categories=["Cc", "Cf", "Co", "Zs", "Mn"]), max_size=8),
    st.text(st.characters(min_codepoint=0x590, max_codepoint=0x6FF), max_size=20),
    st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF), max_size=20),
    st.builds(lambda text, count: text * count, st.text(min_size=1, max_size=4), st.integers(1, 300)),
)
odd_labels = words | st.none() | st.integers() | st.binary(max_size=4) | st.lists(st.text(max_size=3), max_size=2)


def vocabularies(max_size: int = 12) -> st.SearchStrategy[Any]:
    """Lists of labels, most of them of different text; also strings, other collections and none."""
    short = words.filter(lambda word: len(word) < 40 and word.split(",")[0].strip())
    return mostly(
        st.lists(short, min_size=1, max_size=max_size, unique=True),
        st.lists(words, max_size=max_size, unique=True),
        st.lists(odd_labels, max_size=max_size),
        words,
        st.lists(words, max_size=3).map(tuple),
        st.dictionaries(words, st.none(), max_size=3),
        st.none() | st.integers() | st.floats() | st.binary(max_size=5),
    )


def templates() -> st.SearchStrategy[Any]:
    """Prompt templates: of the right form, nearly so, and not at all."""
    fitting = st.builds("{}{{}}{}".format, st.text(max_size=20), st.text(max_size=20))
    near = st.text(st.sampled_from("{} a"), max_size=8)
    return mostly(
        st.just(["A photo of a {} in the scene"]),
        st.lists(fitting, min_size=1, max_size=3),
        st.lists(fitting | near, max_size=3),
        fitting | near,
        st.none() | st.integers() | st.lists(st.integers() | st.none(), max_size=2),
    )
