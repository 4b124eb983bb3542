"""The run record survives JSON and refuses damage; tables and page show what the record says."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from infoprune.errors import CheckpointError
from infoprune.report import RunRecord, Totals, print_tables, render_html, summary
from infoprune.report.record import finite
from infoprune.report.svg import Panel, run_chart, score_curve
from infoprune.report.text import speed_remarks, total_rows
from tests.sample_record import sample_record


class TestRecord:
    def test_json_round_trip_is_exact(self, tmp_path: Path) -> None:
        record = sample_record()
        record.save(tmp_path / "record.json")
        assert RunRecord.load(tmp_path / "record.json") == record

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda d: d.update(format=99), "format 99.*reads format 1"),
            (lambda d: d.pop("model"), "lacks the field 'model'"),
            (lambda d: d.update(modle="x"), "unknown field 'modle', did you mean 'model'"),
            (lambda d: d["events"][1].update(epoch="nine"), r"record.events\[1\].epoch is 'nine', expected int"),
            (lambda d: d["events"][0].update(index=True), r"record.events\[0\].index is True, expected int"),
            (lambda d: d["before"].update(macs=None), "record.before.macs is None, expected int"),
            (
                lambda d: d["layers"].append(7),
                r"record.layers\[20\] is 7, expected an object with the fields",
            ),
            (
                lambda d: d["after"]["metrics"].update({"test/top1": "98 %"}),
                r"metrics\['test/top1'\] is '98 %', expected float",
            ),
        ],
    )
    def test_damage_is_named(self, damage, message: str) -> None:
        data = json.loads(sample_record().to_json())
        damage(data)
        with pytest.raises(CheckpointError, match=message):
            RunRecord.from_dict(data)

    def test_truncated_file_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "record.json"
        path.write_text(sample_record().to_json()[:500])
        with pytest.raises(CheckpointError, match=r"cannot read .*record\.json.*cut short"):
            RunRecord.load(path)
        with pytest.raises(CheckpointError, match=r"cannot read .*absent\.json"):
            RunRecord.load(tmp_path / "absent.json")

    def test_metrics_that_are_not_finite_become_none(self) -> None:
        record = RunRecord("Net", "l1", Totals(2, 1), Totals(1, 1, metrics={"val/loss": finite(float("inf"))}))
        assert RunRecord.from_json(record.to_json()).after.metrics == {"val/loss": None}


class TestSummary:
    def test_three_sentences_with_the_measured_numbers(self) -> None:
        record = sample_record()
        what, saved, cost = summary(record)
        assert "lost 322 of its 688 filters in 2 steps, at the start of epochs 6 and 9" in what
        assert "10.3 M multiply-accumulates instead of 40.6 M (25.4 %)" in saved
        assert "1.48 ms instead of 2.13 ms, 1.44 times as fast" in saved
        assert cost == (
            "test/top1 was 98.06 % just before the first cut (start of epoch 6) and is 97.78 % at the end of training "
            "(−0.28 points): that training, too, is part of the change."
        )

    def test_without_training_the_change_is_the_cuts_own(self) -> None:
        record = sample_record()
        for event in record.events:
            event.epoch = -1
        assert summary(record)[2] == "test/top1 went from 98.06 % to 97.78 % (−0.28 points)."

    def test_a_gain_that_the_runs_hide_is_not_claimed(self) -> None:
        record = sample_record()
        record.before.latency_s, record.after.latency_s = 1.3e-3, 1.2e-3
        record.before.latency_spread_s = 0.4e-3
        assert "within the spread of the measurements" in summary(record)[1]
        assert "as fast" not in summary(record)[1]
        assert [row[-1] for row in total_rows(record) if row[0] == "latency"] == ["within the spread"]
        assert "1.08 times, within the spread of the runs" in speed_remarks(record.before, record.after)[0]
        assert "<dd>within the spread</dd>" in render_html(record)
        record.before.latency_spread_s = record.after.latency_spread_s = 0.01e-3
        assert "1.08 times as fast" in summary(record)[1]
        assert '<dd class="gain">\N{MINUS SIGN}7.7 %</dd>' in render_html(record)

    def test_a_cut_that_does_not_pay_is_said(self) -> None:
        record = sample_record()
        record.after.latency_s = record.before.latency_s
        assert "no faster on this device" in summary(record)[1]
        record.warnings = speed_remarks(record.before, record.after)
        assert "This cut does not pay on this device: the MACs would allow" in render_html(record)
        record.after.latency_s *= record.after.macs / record.before.macs
        assert speed_remarks(record.before, record.after) == []

    def test_runs_that_measured_less_say_less(self) -> None:
        record = sample_record()
        record.before.latency_s = None
        record.before.metrics = {}
        assert "forward pass" not in summary(record)[1]
        assert "was not measured before" in summary(record)[2]
        record.metric = None
        assert "No metric was measured" in summary(record)[2]
        record.events = []
        assert "no pruning event took place" in summary(record)[0]


def printed(record: RunRecord, width: int = 100) -> str:
    out = io.StringIO()
    print_tables(record, Console(file=out, width=width))
    return out.getvalue()


class TestTable:
    def test_every_layer_and_total_is_there(self) -> None:
        record = sample_record()
        lines = {line.split()[0]: line for line in printed(record).splitlines() if line.split()}
        for row in record.layers:
            assert row.name in lines
        assert "16 → 6" in lines["layer1.0.conv1"]
        assert re.search(r"2\.13 ms.* 1\.48 ms.*−30\.5 %", lines["latency"])
        assert re.search(r"98\.06 % +97\.78 % +−0\.28 points", lines["test/top1"])
        assert "Note:" in lines

    def test_names_are_never_read_as_markup(self) -> None:
        record = sample_record()
        record.layers[0].name = "[bold]conv[/bold]"
        record.warnings = ["[red]odd[/red]"]
        assert "[bold]conv[/bold]" in printed(record)
        assert "[red]odd[/red]" in printed(record)


class Page(HTMLParser):
    """Collects what a page holds, and complains about elements that are not closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.ids |= {values["id"]} if values.get("id") else set()
        self.links += [values[name] for name in ("href", "src", "xlink:href") if name in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in self.VOID else self.open

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class TestHtml:
    def test_sections_and_numbers(self) -> None:
        page = Page(render_html(sample_record()))
        sections = {"result", "notes", "layers", "scores", "run", "coupling", "frozen", "load", "reproduce"}
        assert sections <= page.ids
        for said in (
            "CifarResNet at 25 % of its MACs",
            "98.06 %",
            "97.78 %",
            "layer3.2.conv2",
            "through add in layer1.0",
        ):
            assert said in page.text, said
        for said in ("its channels are the model's output", "max_epochs: 14", "infoprune.load", "torch 2.6.0"):
            assert said in page.text, said

    def test_nothing_is_fetched_and_nothing_runs(self) -> None:
        html = render_html(sample_record())
        page = Page(html)
        assert page.tags.isdisjoint({"script", "img", "iframe", "object", "embed"})
        assert all(link.startswith("#") or link == "data:," for link in page.links)
        assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
        assert "@import" not in html
        assert "url(http" not in html

    def test_hostile_text_stays_text(self) -> None:
        record = sample_record()
        hostile = "<script>alert(1)</script>\"'&"
        record.model = record.criterion = record.command = record.config = hostile
        record.layers[0].name = record.layers[0].group = hostile
        record.events[0].scores = {hostile: [1.0, 2.0]}
        record.events[0].criterion = hostile
        record.frozen = record.coupling = record.files = record.versions = {hostile: hostile}
        record.options = {hostile: hostile}
        record.warnings = [hostile]
        record.metric = hostile
        record.before.metrics = record.after.metrics = {hostile: 0.5}
        record.history = [{"epoch": 1, hostile: 0.5}]
        record.events[0].details = {hostile: {hostile: 1.0}}
        html = render_html(record)
        assert "script" not in Page(html).tags
        assert "&lt;script&gt;" in html

    def test_an_empty_run_has_no_empty_sections(self) -> None:
        page = Page(render_html(RunRecord("Net", "l1", Totals(10, 5), Totals(10, 5))))
        assert page.ids == {"result"}

    def test_a_deep_net_stays_under_two_megabytes(self) -> None:
        record = sample_record(blocks=33)
        record.events = record.events * 5
        html = render_html(record)
        assert len(record.layers) > 190
        assert len(html.encode()) < 2_000_000

    def test_very_wide_layers_are_drawn_coarsely(self) -> None:
        assert len(score_curve([i / 4096 for i in range(4096)], removed=2000)) < 5_000


class TestSvg:
    def test_the_cut_stands_where_the_removed_units_end(self) -> None:
        svg = ElementTree.fromstring(score_curve([4, 1, 3, 2], removed=1, width=100, height=50))
        line = svg.find("line")
        assert line is not None
        assert float(line.attrib["x1"]) == 25
        assert svg[0].text == "3 of 4 units stay; scores from 1 to 4"

    @pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5, 0.5], [0.0, -1.0], [1e-30, 2e-30]])
    def test_odd_scores_are_drawn(self, scores: list[float]) -> None:
        svg = score_curve(scores, removed=0)
        assert "nan" not in svg
        assert ElementTree.fromstring(svg).find("line") is None

    @pytest.mark.parametrize("points", [[(1.0, 0.5)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, 0.98), (30.0, 0.99)]])
    def test_run_chart_fits_its_frame(self, points) -> None:
        panel = Panel("accuracy", points, show=lambda v: f"{v:g}", height=100)
        svg = ElementTree.fromstring(run_chart([panel], events=[1.0], width=300))
        assert "nan" not in ElementTree.tostring(svg, "unicode")
        for dot in svg.iter("circle"):
            assert 0 <= float(dot.attrib["cx"]) <= 300
        assert [t.text for t in svg.iter("text") if t.attrib.get("class") == "cut"] == ["event 1"]


def test_the_page_draws_what_cutting_each_group_costs() -> None:
    record = sample_record()
    assert 'id="losses"' not in render_html(record)
    event = record.events[-1]
    group = next(iter(event.scores))
    size = len(event.scores[group])
    event.curves = {group: {str(size): 0.0, "4": 0.01, "2": 0.25}, "left whole": {"8": 0.0, "4": 1e-9}}
    page = render_html(record)
    assert 'id="losses"' in page
    kept = len(event.kept.get(group, event.scores[group]))
    assert f"{kept} of {size} units stay; 0.01 at 4, 0.25 at 2" in page
    assert "8 of 8 units stay; 1e-09 at 4" in page
