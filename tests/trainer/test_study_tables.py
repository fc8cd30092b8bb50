"""The tables of a study as LaTeX, Markdown and CSV."""

import csv
import io
import json
import re
import shutil
import subprocess

import pytest

from trainer.study import tables


def number(row, column, by_seed, **other):
    value, none = sum(by_seed) / len(by_seed), {"above": None, "videos": 4}
    ends = {
        "low": value - 5,
        "high": value + 5,
        "seeds": [*range(len(by_seed))],
        "by seed": by_seed,
        "maybe best": True,
    }
    return {"row": row, "column": column, "value": value, **ends, **none, **other}


@pytest.fixture
def content():
    place = {"tested_on": "a_set", "target": "50 %", "pretrained_on": "a_set"}
    columns = [{**place, "measure": "linear & co"}, {**place, "measure": "k-NN"}]
    above = {"above": {"value": 4.0, "low": 1.0, "high": 7.0}}
    stages = {"stages": [{"1": "conv3", "2": "conv3"}, {"1": "conv4", "2": "conv3"}], "by class": {"x": [0.0, 50.0]}}
    numbers = [number("one_", 0, [52.0, 56.0], **above, **stages), number("two", 0, [51.0, 51.0])]
    numbers += [number("three", 0, [10.0, 12.0], **{"maybe best": False}), number("two", 1, [20.0, 24.0])]
    pair = {"column": 0, "value": 3.0, "low": -1.0, "high": 7.0, "p": 0.2, "adjusted": 0.4}
    sure = pair | {"row": "one_", "than": "three", "value": 43.0, "low": 30.0, "adjusted": 0.004}
    rows = dict.fromkeys(["one_", "two", "three"])
    return {
        "columns": columns,
        "rows": rows,
        "numbers": numbers,
        "differences": [pair | {"row": "one_", "than": "two"}, sure],
    }


def test_latex_has_spread_best_and_label(content):
    text = tables.latex(content, "My study!")
    assert r"\caption{a\_set 50 \%, per cent: mean and standard deviation over 2 seeds; the best in bold, " in text
    assert r"\label{tab:my-study-a-set-50}" in text and text.count(r"\begin{table}") == 1
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert body == [
        r"one\_ & \textbf{54.0} {\scriptsize $\pm$ 2.8} $\blacktriangle$ &  \\",
        r"two & \underline{51.0} {\scriptsize $\pm$ 0.0} & \textbf{22.0} {\scriptsize $\pm$ 2.8} \\",
        r"three & 11.0 {\scriptsize $\pm$ 1.4} &  \\",
    ]
    assert r" & linear \& co & k-NN \\" in text


def with_names(content, name):
    """The content with a row, a data set and a measure of this name."""
    text = json.dumps(content).replace('"two"', '"T"').replace('"k-NN"', '"T"').replace('"a_set"', '"T"')
    return json.loads(text.replace('"T"', json.dumps(name)))


@pytest.mark.parametrize("name", [r"50 % & more_#1", r"C:\x{y}~^$", "}{", "lines\n\n< 2 > | ü", "[*]", r"\end{table}"])
def test_latex_of_any_name_is_sound(content, name, tmp_path):
    """Nothing but the commands of the table itself is a command, all braces are balanced, and LaTeX takes it."""
    text = tables.latex(with_names(content, name), name)
    plain = re.sub(r"\\[\\&%$#_{}]", "", text)
    depth = [part.count("{") - part.count("}") for part in plain.splitlines()]
    assert sum(depth) == 0 and all(line == 0 for line in depth)
    known = "usepackage begin end caption label toprule midrule bottomrule textbf underline scriptsize pm blacktriangle"
    known += " blacktriangledown textbackslash textasciitilde textasciicircum textless textgreater textbar"
    assert {*re.findall(r"\\([a-zA-Z]+)", plain)} <= {*known.split()}
    assert not re.search(r"[#^~_]", plain.replace("\\label", "")) and plain.count("%") == 1  # of the first line
    rows = [line for line, raw in zip(plain.splitlines(), text.splitlines(), strict=True) if raw.endswith("\\\\")]
    assert len(rows) == 4 and all(row.count("&") == 2 and not row.startswith(("[", "*")) for row in rows)
    if compiler := shutil.which("pdflatex"):
        file = tmp_path / "table.tex"
        packages = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs,amssymb}\begin{document}"
        file.write_text(packages + "\n" + text + r"\end{document}")
        subprocess.run([compiler, "-interaction=batchmode", "-halt-on-error", file.name], cwd=tmp_path, check=True)


def test_drops_that_all_agree_have_no_interval(content):
    drop = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "agree" not in tables.markdown(content | {"orderings": []})
    content["numbers"][0]["drop"] = drop | {"low": -1.0}
    assert tables.cell(content["numbers"][0]) == "54.0 [49.0, 59.0] (lost 0.0 [-1.0, 0.0]) ▲"
    content["numbers"][0]["drop"] = drop
    text = tables.markdown(content | {"orderings": []})
    assert "54.0 [49.0, 59.0] (lost 0.0 [all videos agree]) ▲" in text and "no interval can be given" in text


def test_lists_hold_every_number(content):
    found = {name: [*csv.DictReader(io.StringIO(text))] for name, text in tables.lists(content).items()}
    assert [*map(len, found.values())] == [4, 2, 1]
    first, *_ = found["numbers.csv"]
    assert first["tested_on"] == "a_set" and float(first["std"]) == pytest.approx(8**0.5)
    assert (first["seed 0"], first["stage 1"], first["above low"]) == ("52.0", "conv4, conv3", "1.0")
    assert [pair["stars"] for pair in found["differences.csv"]] == ["", "**"]
    assert found["classes.csv"][0]["class"] == "x" and found["classes.csv"][0]["value"] == "25.0"


def test_stars_need_interval_and_corrected_p():
    ends = {"low": 0.1, "high": 2.0}
    assert [tables.stars(ends | {"adjusted": p}) for p in (0.0501, 0.05, 0.01, 0.001)] == ["", "*", "**", "**"]
    assert tables.stars({"low": 0.0, "high": 2.0, "adjusted": 0.0001}) == ""
