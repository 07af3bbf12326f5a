import itertools

import pytest

from mengya.corpus.playground.world import build_world
from mengya.errors import UserError

WORLD = build_world(7)
OPPOSITE_ROLES = {
    "丈夫": {"妻子"},
    "妻子": {"丈夫"},
    "爸爸": {"儿子", "女儿"},
    "妈妈": {"儿子", "女儿"},
    "儿子": {"爸爸", "妈妈"},
    "女儿": {"爸爸", "妈妈"},
    "哥哥": {"弟弟", "妹妹"},
    "姐姐": {"弟弟", "妹妹"},
    "弟弟": {"哥哥", "姐姐"},
    "妹妹": {"哥哥", "姐姐"},
}


def test_no_name_is_part_of_another():
    names = [p.name for p in WORLD.people] + [p.pet_name for p in WORLD.people]
    assert all(left not in right for left, right in itertools.permutations(names, 2))


def test_no_value_is_part_of_another_value_of_its_attribute():
    quoted = ("opposite.word", "measure.word")  # matched with their quotation marks
    for attribute, values in WORLD.values.items():
        if attribute not in quoted:
            assert all(left not in right for left, right in itertools.permutations(values, 2)), attribute


def test_kinship_is_mutual_and_no_role_is_ambiguous():
    for person in WORLD.people:
        roles = [role for role, _ in person.kin]
        assert len(roles) == len(set(roles))
        for role, name in person.kin:
            back = {r for r, n in WORLD.person[name].kin if n == person.name}
            assert len(back) == 1
            assert back <= OPPOSITE_ROLES[role]
            assert WORLD.person[name].is_female == (role in ("妻子", "妈妈", "女儿", "姐姐", "妹妹"))


def test_a_family_lives_together_and_is_held_out_together():
    for person in WORLD.people:
        for _, name in person.kin:
            assert WORLD.person[name].home == person.home
            assert WORLD.person[name].held_out == person.held_out
    assert 0.1 <= len(WORLD.held_out) / len(WORLD.people) <= 0.2


def test_strangers_are_nobody_and_the_two_halves_never_mix():
    names = {person.name for person in WORLD.people}
    assert not names & {*WORLD.strangers, *WORLD.other_strangers}
    assert not set(WORLD.strangers) & set(WORLD.other_strangers)


@pytest.mark.parametrize("num_people", [20, 33, 60])
def test_a_world_has_as_many_people_as_asked_for(num_people):
    assert len(build_world(1, num_people).people) == num_people


@pytest.mark.parametrize("num_people", [0, 19, 61])
def test_a_size_that_names_cannot_fill_is_the_users_mistake(num_people):
    with pytest.raises(UserError, match="num_people"):
        build_world(0, num_people)
