"The checks that run code, against right, wrong and rambling programs in the sandbox."

from replies import CODE, dressed, every_third, failing, listed, passing, stranger


def test_right_programs_pass():
    assert failing((i, i.reply) for i in CODE) == []


def test_right_programs_pass_in_a_fence():
    assert failing((i, dressed(i)) for i in every_third(CODE)) == []


def test_wrong_programs_fail():
    assert passing((i, stranger(i)) for i in CODE) == []


def test_endless_repetition_fails():
    "Code that repeats itself is judged by what it does: a function may be defined ten times."
    assert passing((i, f"{i.reply}\n" * 10) for i in every_third(CODE) if i.check["kind"] == "stdout") == []


def test_all_programs_listed_fail():
    assert passing((i, listed(i)) for i in CODE) == []
