"""The run says in one short line what makes a stage stale."""

from mengya.run import _differences, _short


def test_the_leaf_that_differs_is_named_even_inside_a_list():
    old = {"documents": [{"path": "a", "limit": None}, {"path": "b", "limit": 3}]}
    new = {"documents": [{"path": "a", "limit": None}, {"path": "b", "limit": 5}]}
    assert list(_differences(old, new, "corpus")) == [("corpus.documents.1.limit", 3, 5)]
    shorter = {"documents": old["documents"][:1]}
    assert [key for key, _, _ in _differences(old, shorter, "corpus")] == ["corpus.documents"]


def test_a_long_value_is_cut():
    assert _short(list(range(100))).startswith("[0, 1, 2")
    assert len(_short(list(range(100)))) <= 60
