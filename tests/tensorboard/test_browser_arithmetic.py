"""What the front end computes, against numpy and against the back end, in the browser that runs it."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from chromium import Page, browser, executable
from tab import served

from lightning_calib.tensorboard.folding import fold

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with served(tmp_path_factory.mktemp("logs")) as address, browser(tmp_path_factory.mktemp("profile")) as page:
        page.open(f"{address}data/plugin_entry.html?name=lightning_calib")
        page.until("!!document.querySelector('pre')")
        yield page


def ask(page: Page, file: str, code: str, **given: Any) -> Any:
    """Value of an expression in which `m` is a module of the front end and the names given are there."""
    lists = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in given.items()}
    body = f"const {{{', '.join(lists)}}} = {json.dumps(lists)}; return {code};"
    return page.run(f"import('./{file}').then((m) => {{ {body} }})")


def wild(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Norms over 20 decades, with zeros, and with -1 where nothing was logged."""
    random = np.random.default_rng(seed)
    value = (10.0 ** random.uniform(-10, 10, shape)).astype(np.float32)
    value[random.random(shape) < 0.1] = 0.0
    value[random.random(shape) < 0.2] = -1.0
    return value


def test_a_spike_stays_the_largest_wherever_it_is_and_however_wide_the_picture(page: Page) -> None:
    lost = ask(
        page,
        "paint.js",
        """widths.flatMap((width) => steps.map((_, at) => {
            const codes = Float32Array.from(steps, (_, i) => (i === at ? 1 : -3));
            const pixels = m.columns(steps, steps[0], steps.at(-1), width);
            const pooled = m.pool(codes, pixels, false, new Float32Array(width));
            return Math.max(...pooled) === 1 ? null : [width, at];
        })).filter(Boolean)""",
        widths=[7, 40, 97, 500],
        steps=np.cumsum(np.random.default_rng(0).integers(1, 9, 200)),
    )
    assert lost == []


def test_what_is_special_hides_what_is_less_so(page: Page) -> None:
    rule = """["NaN", "1e-3", "0", "-1"].map((_, k, all) => {
        const codes = Float32Array.from(all.slice(k), (text) => c.code(Number(text)));
        return Array.from(m.pool(codes, {low: [0], high: [codes.length]}, false, new Float32Array(1)))[0];
    })"""
    code = f"import('./codes.js').then((c) => {{ const found = {rule}; return [c.NAN, -3, c.ZERO, c.ABSENT]"
    code += ".map((value, k) => Math.abs(value - found[k]) <= 1e-6 * Math.abs(value)); })"
    assert page.run(f"import('./paint.js').then((m) => {code})") == [True] * 4


@pytest.mark.parametrize("how", ["l2", "max"])
def test_a_module_folds_as_in_the_back_end(page: Page, how: str) -> None:
    values = wild((6, 50), 1)
    values[:, 7] = -1.0
    ours = ask(
        page,
        "statistics.js",
        "Array.from(m.fold({steps, fold: how, data: Float32Array.from(values.flat())}, [0, 1, 2, 3, 4, 5]))",
        values=values,
        steps=list(range(50)),
        how=how,
    )
    theirs = fold(values.T, how)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # float32
    assert ours[7] == -1


def test_nan_and_inf_survive_folding(page: Page) -> None:
    code = "Array.from(m.fold({steps: [0, 1], fold: how, data: Float32Array.of(1, 1, NaN, Infinity)}, [0, 1]), String)"
    for how in ("l2", "max"):
        assert ask(page, "statistics.js", code, how=how) == ["NaN", "Infinity"]


def test_quantiles_are_those_of_numpy(page: Page) -> None:
    codes = np.random.default_rng(2).normal(size=(4, 500)).astype(np.float32)
    found = ask(page, "codes.js", "m.quantiles(codes, 100, 400, [0.01, 0.5, 0.995])", codes=codes)
    wanted = np.quantile(codes[:, 100:400], [0.01, 0.5, 0.995], method="inverted_cdf")
    np.testing.assert_allclose(found, wanted, atol=2 * np.ptp(codes) / 4096)


def test_a_quotient_without_a_denominator_is_not_there(page: Page) -> None:
    code = "Array.from(m.quotient(Float32Array.of(1, 0, 2, -1, 3), Float32Array.of(2, 0, 0, 1, -1)))"
    assert ask(page, "statistics.js", code) == [0.5, 0, -1, -1, -1]


def test_every_tensor_is_a_leaf_once_and_folds_into_its_owner(page: Page) -> None:
    rows = ["w", "a.b.weight", "a.b.bias", "a.c.0.weight", "a.weird.name.with.dots", "d.e.f.weight"]
    owners = ["", "a.b", "a.b", "a.c.0", "a", "d.e.f"]
    code = """[...m.nodes(m.build(rows, owners))].map((node) => [node.path, node.leaf, node.rows.length, node.depth])"""
    assert ask(page, "tree.js", code, rows=rows, owners=owners) == [
        ["w", True, 1, 0],
        ["a", False, 4, 0],
        ["a.b", False, 2, 1],
        ["a.b.weight", True, 1, 2],
        ["a.b.bias", True, 1, 2],
        ["a.c.0.weight", True, 1, 1],
        ["a.weird.name.with.dots", True, 1, 1],
        ["d.e.f.weight", True, 1, 0],
    ]
    found = ask(page, "tree.js", "m.find(m.build(rows, owners), 'd.e').path", rows=rows, owners=owners)
    assert found == "d.e.f.weight"  # a module of one tensor is that tensor


def test_ticks_are_round_and_inside(page: Page) -> None:
    assert ask(page, "axis.js", "m.ticks(0, 599, 6)") == [0, 100, 200, 300, 400, 500]
    assert ask(page, "axis.js", "m.logTicks(-3.2, 2.1, 6)") == [-3, -2, -1, 0, 1, 2]
    narrow = ask(page, "axis.js", "m.logTicks(Math.log10(0.011), Math.log10(0.033), 3).map((t) => 10 ** t)")
    assert len(narrow) >= 2
    assert all(0.011 <= tick <= 0.033 for tick in narrow)


@pytest.mark.parametrize("hash_", ["%E0%A4%A", "&&&=&==", "p.lightning_calib.zoom=9-1", "p.lightning_calib.step=x"])
def test_a_broken_link_is_no_error(page: Page, hash_: str) -> None:
    page.run(f"history.replaceState(null, '', '#lightning_calib&{hash_}&p.lightning_calib.stat=after')")
    assert ask(page, "link.js", "m.readLink()") == {"stat": "after"}


def test_smoothing_is_the_mean_with_weights_that_fall(page: Page) -> None:
    values = [1.0, 4.0, -1.0, 2.0, 8.0]  # -1: nothing was measured
    ours = ask(page, "scale.js", "Array.from(m.smoothed(Float32Array.from(values), 0.5))", values=values)
    seen, wanted = [], []
    for value in values:
        seen += [value] if value != -1 else []
        weights = 0.5 ** np.arange(len(seen))[::-1]
        wanted.append(float(weights @ seen / weights.sum()) if value != -1 else -1.0)
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)  # float32
    signed = ask(page, "scale.js", "Array.from(m.smoothed(Float32Array.of(-1, 1, -Infinity), 0.5, true), String)")
    assert signed == ["-1", str(np.float32(1 / 3).item()), "-Infinity"]


def test_an_axis_holds_what_can_be_drawn_on_it(page: Page) -> None:
    cases = "[0, -1, -2, 3, NaN, Infinity, -Infinity].map((v) => [m.drawable(v, true), m.drawable(v, false),"
    found = ask(page, "scale.js", f"{cases} m.drawable(v, false, true)])")
    assert found == [
        [False, True, True],
        [False, False, True],
        [False, True, True],
        [True, True, True],
        *[[False] * 3] * 3,
    ]
    assert ask(page, "scale.js", "m.ends(2, 4, false)[0] > 1.5 && m.ends(0, 4, false)[0] === 0")
    assert ask(page, "scale.js", "m.marks([0, 10], false, 4).map(([, text]) => text)") == ["0", "2.5", "5", "7.5", "10"]
    assert ask(page, "scale.js", "m.marks([-2, 1], true, 4).map(([, text]) => text)") == ["0.01", "0.1", "1", "10"]


def test_counts_are_of_steps_between_rows(page: Page) -> None:
    given = {"steps": [9, 19, 29, 49], "nonfinite_total": [0, 3, 3, 10], "clip_fraction": [0.5, 0, -1, 0.1]}
    found = ask(page, "counts.js", "m.stretches(g, 'nonfinite_total')", g=given)
    assert [(one["from"], one["step"], one["count"]) for one in found] == [(10, 19, 3), (30, 49, 7)]
    assert ask(page, "counts.js", "m.sum(m.stretches(g, 'clip_fraction'))", g=given) == 5 + 2
    assert ask(page, "counts.js", "m.windows([4, 5, 6])") == [1, 1, 1]
    assert ask(page, "counts.js", "m.stretches({steps: []}, 'skipped_total')") == []


def test_laying_runs_over_keeps_the_last_two(page: Page) -> None:
    steps = "let now = {compare: null, third: null}; return names.map((run) => (now = m.overlaid(now, run)));"
    found = ask(page, "runlist.js", f"(() => {{ {steps} }})()", names=["a", "b", "c", "b", "c"])
    pairs = [(one["compare"], one["third"]) for one in found]
    assert pairs == [("a", None), ("a", "b"), ("b", "c"), ("c", None), (None, None)]


def test_of_many_steps_that_were_not_finite_the_first_has_a_sign_and_bars_tell_the_rest(page: Page) -> None:
    code = """[few, many].map((count) => {
        const kinds = ["nonfinite", "skip", "spike"];
        const events = kinds.flatMap((kind) => Array.from({length: count}, (_, i) => ({kind, step: 9 + i})));
        const globals = {steps: [9, 49], nonfinite_total: [1, 30], skipped_total: [0, skipped]};
        const model = {events, globals, about: {optimizer: 0}};
        const {signs, bars} = m.happened({model, report: null, state: {values: {finding: ""}}}, {});
        return [signs.map((one) => [one.key, one.step]), bars.length];
    })"""
    (few, bars), (many, same) = ask(page, "happened.js", code, few=12, many=13, skipped=20)
    assert bars == same == 3
    assert len(few) == 3 * 12
    _, (uncounted, bars) = ask(page, "happened.js", code, few=12, many=13, skipped=0)
    assert (len(uncounted), bars) == (1 + 2 * 13, 2)
    assert many[:2] == [["nonfinite", 9], ["skip", 9]]
    assert many[2:] == [["spike", 9 + i] for i in range(13)]


@pytest.mark.parametrize(
    ("answer", "value", "words"),
    [
        ("none", None, "none needed"),
        ("keep", 1.0, "keep 1"),
        ("clip", 0.47, "use 0.47"),
        ("clip", None, "by layer or parameter"),
        ("keep", None, "keep it"),
    ],
)
def test_a_clip_value_in_a_word(page: Page, answer: str, value: float | None, words: str) -> None:
    assert ask(page, "clipvalue.js", "m.briefly({answer, value})", answer=answer, value=value) == words


def test_a_loss_goes_on_palely_where_it_was_not_finite_and_not_where_there_was_none(page: Page) -> None:
    code = """gaps.map((gap) => [true, false].map((bridge) => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [400, 100];
        const context = canvas.getContext("2d");
        const at = {left: 0, width: 400, from: 0, to: 4, x: (step) => step * 100};
        const values = [2, 2, Number(gap), 2, 2];
        const one = {steps: [0, 1, 2, 3, 4], values, colour: "#000", signed: true, marks: false, width: 4, bridge};
        m.strip(context, at, {top: 0, height: 100}, {font: "", line: "#fff0"}, {series: [one], stepLabels: false});
        const {data} = context.getImageData(0, 0, 400, 100);
        const darkest = (x) => Math.max(...Array.from({length: 100}, (_, y) => data[4 * (400 * y + x) + 3]));
        return [50, 150, 250, 350].map(darkest);
    }))"""
    for bridged, plain in ask(page, "strip.js", code, gaps=["Infinity", "NaN"]):
        assert bridged[0] == bridged[3] == plain[0] == plain[3] == 255
        assert all(0 < dark < 150 for dark in bridged[1:3])
        assert plain[1:3] == [0, 0]
    ((absent, _),) = ask(page, "strip.js", code, gaps=["-Infinity"])
    assert absent[1:3] == [0, 0]
