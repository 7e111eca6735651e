"""Attribution rules as such: what they match and set, and what is said of a mistake in the settings file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spendmeter.attribution import Rules, load, read
from spendmeter.attribution.file import lines
from spendmeter.attribution.model import Pattern
from spendmeter.config import load as settings_of
from spendmeter.errors import ConfigError


def rules(tmp_path: Path, text: str) -> Rules:
    """The rules of a spendmeter.toml that holds *text*."""
    path = tmp_path / "spendmeter.toml"
    path.write_text(text)
    found = load(settings_of(str(path), env={}))
    assert found is not None
    return found


def rule(tmp_path: Path, match: str, sets: str) -> Rules:
    return rules(tmp_path, f"[[attribution]]\nmatch = {match}\nset = {sets}\n")


def test_a_branch_gives_the_task_and_a_folder_the_agent(tmp_path: Path) -> None:
    """The rule of the design: a glob for the folder, a regular expression with a capture for the branch; both must hold."""
    made = rule(tmp_path, '{cwd = "*/shop*", branch = "feat/(?P<key>[A-Z]+-[0-9]+)"}', '{agent = "developer", task = "{key}"}')
    given_ = made.given({"cwd": ("/home/dev/shop",), "branch": ("feat/ABC-123-x",)})
    assert (given_.agent, given_.task, given_.by) == ("developer", "ABC-123", {"agent": 1, "task": 1})
    for cwd, branch in (("/home/dev/shop", "main"), ("/home/dev/other", "feat/ABC-123-x"), ("/home/dev/shop", "x/feat/ABC-123-x")):
        assert made.given({"cwd": (cwd,), "branch": (branch,)}).agent is None
    assert made.given({"cwd": ("/home/dev/shop",)}).agent is None  # what is not known matches nothing


def test_the_pages_rules_do_what_the_page_says(tmp_path: Path) -> None:
    """The example of the how-to: the reviewer's part of a session on a feature branch, and the session itself."""
    page = Path(__file__).parents[1] / "docs" / "how-to" / "attribution.md"
    made = rules(tmp_path, page.read_text().split("```toml\n")[1].split("```")[0])
    subject = {"cwd": ("/home/me/shop",), "branch": ("feat/ABC-123-login",), "cli": ("claude",)}
    whole, part = made.given(subject), made.given({**subject, "subagent": ("code-reviewer",)})
    assert (whole.agent, whole.task, whole.attrs) == ("developer", "ABC-123", {"project": "shop"})
    assert (part.agent, part.task) == ("reviewer", "ABC-123")


def test_the_first_rule_that_sets_a_key_wins_for_that_key(tmp_path: Path) -> None:
    """One rule gives the agent, a later one the task; a key that is set already is not set again."""
    made = rules(
        tmp_path,
        """
        [[attribution]]
        match = {cwd = "*/shop"}
        set = {agent = "first", team = "a"}
        [[attribution]]
        match = {branch = "*"}
        set = {agent = "second", task = "{branch}", team = "b", "cost centre" = 12}
        """,
    )
    found = made.given({"cwd": ("/shop",), "branch": ("main",)})
    assert (found.agent, found.task, found.attrs) == ("first", "main", {"team": "a", "cost centre": "12"})
    assert found.by == {"agent": 1, "team": 1, "task": 2, "cost centre": 2}


@pytest.mark.parametrize(
    ("pattern", "kind", "yes", "no"),
    [
        ("*/shop*", "glob", "/home/dev/shop-2", "/home/dev/web"),
        ("feat/ABC-1.2", "glob", "feat/ABC-1.2", "feat/ABC-1x2"),
        ("[ab]?", "glob", "a1", "c1"),
        ("main", "glob", "main", "mainline"),
        ("feat/.*", "regex", "feat/x", "xfeat/x"),
        ("main$|master$", "regex", "master", "mainline"),
        ("[A-Z]+-[0-9]+", "regex", "ABC-1", "abc-1"),
        (r"v\d", "regex", "v1", "vd"),
    ],
)
def test_a_pattern_is_a_glob_unless_its_signs_say_otherwise(pattern: str, kind: str, yes: str, no: str) -> None:
    """Any of ( ) | \\ ^ $ + or .* makes a regular expression, which the value must begin with; a glob takes all of it. Case counts."""
    made = Pattern.guessed(pattern)
    assert made.kind == kind
    assert made.match(yes) is not None
    assert made.match(no) is None


def test_a_pattern_may_say_what_it_is_and_a_list_is_any_of_it(tmp_path: Path) -> None:
    """{glob = ...} takes c++ as it is, {regex = ...} needs no sign."""
    made = rule(tmp_path, '{cwd = [{glob = "*/c++"}, {regex = "/src/..$"}]}', '{agent = "a"}')
    assert [made.given({"cwd": (x,)}).agent for x in ("/home/c++", "/src/ab", "/src/abc")] == ["a", "a", None]


def test_attributes_are_matched_by_their_key(tmp_path: Path) -> None:
    """attr.KEY, written flat or nested; a key with a dot in quotes."""
    for match in ('{attr.team = "search"}', '{"attr.team" = "search"}', '{attr = {team = "search"}}'):
        assert rule(tmp_path, match, '{agent = "{attr.team}"}').given({"attr.team": ("search",)}).agent == "search"
    assert rule(tmp_path, '{attr."service.name" = "x"}', '{agent = "a"}').given({"attr.service.name": ("x",)}).agent == "a"


def test_a_key_whose_capture_took_no_part_is_left_to_the_next_rule(tmp_path: Path) -> None:
    """An optional group sets nothing where it is empty."""
    made = rules(
        tmp_path,
        """
        [[attribution]]
        match = {branch = "fix(/(?P<key>.+))?"}
        set = {agent = "fixer", task = "{key}"}
        [[attribution]]
        match = {branch = "*"}
        set = {task = "other"}
        """,
    )
    assert [made.given({"branch": (x,)}).task for x in ("fix/A-1", "fix")] == ["A-1", "other"]


def test_the_last_name_of_a_value_fills_a_template(tmp_path: Path) -> None:
    """A repository goes by its URL and by its short name; whichever matches, the short one is told."""
    made = rule(tmp_path, '{repo = "*acme*"}', '{task = "{repo}"}')
    assert made.given({"repo": ("https://example.org/acme/shop.git", "shop")}).task == "shop"


def test_rules_are_read_back_from_what_they_say(tmp_path: Path) -> None:
    """The body that the ledger keeps holds everything; its name changes with it, and with nothing else."""
    text = (
        '[[attribution]]\nmatch = {cwd = ["*/a", {regex = "b.."}], attr.team = "x"}\nset = {agent = "ä", task = "{attr.team}", k = "v"}\n'
    )
    made = rules(tmp_path, text)
    assert read(made.body) == made
    assert rules(tmp_path, f"# moved\n\n{text}").name == made.name != rules(tmp_path, text.replace("ä", "a")).name
    assert (made.splits, rule(tmp_path, '{model = "*"}', '{agent = "a"}').splits) == (False, True)


def test_no_rules_and_no_word_of_rules_differ(tmp_path: Path) -> None:
    """attribution = [] says that there are none; a file without the key says nothing."""
    assert rules(tmp_path, "attribution = []\n").rules == ()
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert load(settings_of(str(path), env={})) is None


def test_lines_are_those_of_the_headers(tmp_path: Path) -> None:
    """Where rules are written otherwise, no line is told."""
    text = '\n[[attribution]]\nmatch = {cwd = "a"}\nset = {agent = "a"}\n\n  [[ attribution ]]\nmatch = {cwd = "b"}\nset = {agent = "b"}\n'
    rules(tmp_path, text)
    assert lines(settings_of(str(tmp_path / "spendmeter.toml"), env={})) == [2, 6]
    rules(tmp_path, 'attribution = [{match = {cwd = "a"}, set = {agent = "a"}}]')
    assert lines(settings_of(str(tmp_path / "spendmeter.toml"), env={})) == [None]


RULE = '[[attribution]]\nmatch = {cwd = "*"}\nset = {agent = "a"}\n'
MISTAKES = [
    ("attribution = 3", ": attribution is not a list of rules; write [[attribution]] above each rule"),
    (
        "attribution = [3]",
        ': attribution rule 1: the rule "3" is not a table; write match = {cwd = "*/shop*"} and set = {agent = "developer"}',
    ),
    ("[[attribution]]", ':1: attribution rule 1: match is missing or empty; write match = {cwd = "*/shop*"}'),
    (f'{RULE}[[attribution]]\nmatch = {{cwd = "x"}}', ':4: attribution rule 2: set is missing or empty; write set = {agent = "developer"}'),
    (
        f'{RULE}\n[[attribution]]\nmatch = {{cwd = "x"}}\nsets = {{agent = "x"}}',
        ':5: attribution rule 2: unknown key "sets"; known are match, set; did you mean "set"?',
    ),
    (
        '[[attribution]]\nmatch = {brnach = "x"}\nset = {agent = "x"}',
        ':1: attribution rule 1: unknown key "match.brnach"; known are cwd, branch, repo, cli, model, session, subagent and attr.KEY;'
        ' did you mean "match.branch"?',
    ),
    (
        '[[attribution]]\nmatch = {env.TEAM = "x"}\nset = {agent = "x"}',
        ":1: attribution rule 1: match.env: the environment of a run is not known;"
        " match a tag, or one of OTEL_RESOURCE_ATTRIBUTES, as attr.KEY",
    ),
    (
        '[[attribution]]\nmatch = {attr = "x"}\nset = {agent = "x"}',
        ':1: attribution rule 1: match.attr "x" is not a table; write match = {attr.team = "search"}',
    ),
    (
        '[[attribution]]\nmatch = {cwd = "*/c++"}\nset = {agent = "x"}',
        ':1: attribution rule 1: match.cwd "*/c++" is not a regular expression (nothing to repeat);'
        ' it was taken for one because of its signs, {glob = "*/c++"} takes them as they are',
    ),
    (
        '[[attribution]]\nmatch = {cwd = {regex = "("}}\nset = {agent = "x"}',
        ':1: attribution rule 1: match.cwd "(" is not a regular expression (missing ), unterminated subpattern); correct it',
    ),
    (
        '[[attribution]]\nmatch = {cwd = {glob = "a", regex = "b"}}\nset = {agent = "x"}',
        ':1: attribution rule 1: match.cwd has 2 patterns in one table; write {glob = "..."} or {regex = "..."}',
    ),
    (
        '[[attribution]]\nmatch = {cwd = {regx = "b"}}\nset = {agent = "x"}',
        ':1: attribution rule 1: unknown key "match.cwd.regx"; known are glob, regex; did you mean "match.cwd.regex"?',
    ),
    (
        '[[attribution]]\nmatch = {cwd = []}\nset = {agent = "x"}',
        ":1: attribution rule 1: match.cwd is an empty list, which nothing matches; give one pattern at least, or remove it",
    ),
    (
        '[[attribution]]\nmatch = {cwd = true}\nset = {agent = "x"}',
        ':1: attribution rule 1: match.cwd "True" is not a text; write it in quotes',
    ),
    (
        '[[attribution]]\nmatch = {cwd = "a"}\nset = {agent = [1]}',
        ":1: attribution rule 1: set.agent (list) is not a text; write it in quotes",
    ),
    (
        '[[attribution]]\nmatch = {cwd = "a"}\nset = {agnet = "x"}',
        ':1: attribution rule 1: set.agnet would be an attribute; did you mean "agent"?',
    ),
    (
        '[[attribution]]\nmatch = {branch = "(?P<key>.+)"}\nset = {task = "{kay}"}',
        ':1: attribution rule 1: set.task "{kay}": "{kay}" is no capture and no matched field of this rule (branch, key);'
        ' did you mean "{key}"?',
    ),
    (
        '[[attribution]]\nmatch = {model = "x*", subagent = "*"}\nset = {plan = "x"}',
        ":1: attribution rule 1: set.plan: a rule on model and subagent gives a part of a run's usage an agent or a task;"
        " put plan into a rule without it",
    ),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_named_by_its_place_with_a_remedy(tmp_path: Path, text: str, told: str) -> None:
    """File, line, rule, what was seen, what was expected; one line."""
    with pytest.raises(ConfigError) as caught:
        rules(tmp_path, text)
    assert str(caught.value) == f"{tmp_path}/spendmeter.toml{told}"


VALUE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@given(text=VALUE, value=VALUE)
def test_a_pattern_with_no_sign_matches_itself_alone(text: str, value: str) -> None:
    """Without * ? [ and the signs of a regular expression a pattern is a plain name."""
    if set(text) & set("*?[()|\\^$+"):
        return
    assert Pattern.guessed(text).match(text) is not None
    assert (Pattern.guessed(text).match(value) is not None) == (text == value)
